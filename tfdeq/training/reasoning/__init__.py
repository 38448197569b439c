"""Puzzles as tasks: trained on small ones, tested on larger and harder ones, at growing budgets."""
