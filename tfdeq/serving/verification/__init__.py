"""Whether a version answers as its model does."""
