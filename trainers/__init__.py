"""Command-line trainers: absl programs around the models of tfdeq."""

import os

# TensorFlow's start-up notes about CUDA and oneDNN would bury a program's own first lines.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
