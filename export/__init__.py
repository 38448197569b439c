"""Programs that write, verify, serve and query versions; the library is `tfdeq.serving`."""

import os

# TensorFlow's start-up messages would hide a program's own lines.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
