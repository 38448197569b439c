"""Data sets of text, one per file."""
