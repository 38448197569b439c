"""The signatures of a version: tensors, functions and checks of requests."""
