"""Measurements: speed, memory and accuracy, with tables and plots."""
