"""What a version can be asked: tensors, functions and checks of requests."""
