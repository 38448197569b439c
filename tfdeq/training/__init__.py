"""Training runs: the loop, its task and schedule, and complete runs from flags to metrics.json."""
