"""Puzzles as tasks: training on small ones, tests on larger and harder ones with growing budgets."""
