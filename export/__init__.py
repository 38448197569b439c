"""Programs that write, verify, serve and ask versions; the library is `tfdeq.serving`."""

import os

# TensorFlow's start-up notes would bury a program's own lines.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
