"""One training step: gradients, optimisers, and what a step that went wrong leaves alone."""
