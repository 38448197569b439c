"""One worker process per framework, for `benchmarks.engine.speed`; each imports only its framework."""
