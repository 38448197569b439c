"""SavedModel versions that TensorFlow Serving loads: written whole, and verified outside Python."""
