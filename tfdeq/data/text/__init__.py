"""Data sets of text: one a file."""
