"""What keeps the training of equilibria steady."""
