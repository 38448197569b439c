"""One worker process a framework, for `benchmarks.engine.speed`; each imports its own framework only."""
