"""One training step: gradients, optimisers, and the handling of steps that go wrong."""
