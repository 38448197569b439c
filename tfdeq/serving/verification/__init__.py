"""Checks that a version gives the answers of its model."""
