"""Training runs: the loop, its task and schedule, and a run from flags to metrics.json."""
