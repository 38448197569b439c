"""Training programs: absl mains that share one training loop and its data sets."""
