"""Strategies over devices and workers, and what workers tell each other."""
