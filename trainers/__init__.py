"""Programs that train, one a task; the library is `tfdeq.training`."""

import os

# TensorFlow's start-up notes about CUDA and oneDNN would bury a program's own first lines.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
