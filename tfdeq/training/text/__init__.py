"""Language models as tasks: their flags, loss, evaluation and experiment."""
