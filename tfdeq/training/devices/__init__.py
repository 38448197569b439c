"""Strategies for devices and workers, and the communication between workers."""
