"""Programs that train, one per task; the library is `tfdeq.training`."""

import os

# TensorFlow's start-up messages about CUDA and oneDNN would hide a program's own first lines.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
