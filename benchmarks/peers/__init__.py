"""One worker process a framework, for `benchmarks.engine`; each imports its own framework only."""
