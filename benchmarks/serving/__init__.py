"""The cost of serving."""
