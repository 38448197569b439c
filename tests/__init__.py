"""Tests, and the cells and helpers that they share."""
