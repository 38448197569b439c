"""Code shared by all command-line programs: help, signals, processes and atomic files."""
