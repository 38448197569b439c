"""The files of a run: checkpoints, curves, TensorBoard's files and its environment."""
