"""Cost and results of training, compared with other ways to train."""
