"""Parts that keep the training of equilibria stable."""
