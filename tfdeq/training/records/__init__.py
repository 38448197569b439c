"""What a run writes and finds again: checkpoints, curves, TensorBoard's files, its environment."""
