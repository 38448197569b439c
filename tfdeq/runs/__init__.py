"""The files in a run's folder that exports, serving and comparisons use."""
