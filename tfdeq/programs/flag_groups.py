"""The trainers' flags by topic, in the order in which --help shows them."""

# The help of a removed flag begins with this, and --help omits the flag.
REMOVED = "Is no more."

GROUPS: dict[str, tuple[str, ...]] = {
    "Run": (
        *(
            "workdir",
            "preset",
            "train_steps",
            "batch_size",
            "accumulation_steps",
            "sequence_length",
        ),
        *("carry_memory", "seed", "baseline", "dry_run"),
    ),
    "Data": (
        *("dataset", "task", "size", "grade", "files", "data_dir", "prepared_dir"),
        *("train_puzzles", "validation_puzzles", "test_puzzles"),
        *(
            "image_size",
            "train_pictures",
            "validation_pictures",
            "test_pictures",
            "shift",
            "mirror",
        ),
    ),
    "Model": (
        *(
            "model",
            "cell",
            "layers",
            "recursion",
            "inner_steps",
            "depth",
            "width",
            "embedding_width",
            "heads",
            "attention_heads",
            "feedforward",
        ),
        *("branches", "filters", "expansion", "groups", "block_dropout", "weight_normalization"),
        *("skip",),
        *("monotonicity", "stem_stride", "pooling", "head_channels", "head_features"),
        *("attention_span", "distance_slope", "norm", "query_key_norm", "kernel_size"),
        *("normalization", "recurrent_scale", "tied_output", "cutoffs", "cutoff_factor"),
        *("loss_chunk", "dropout", "locked_dropout", "weight_dropout", "input_dropout"),
        *("output_dropout", "precision"),
    ),
    "Solver and gradient": (
        *("solver", "max_steps", "training_max_steps", "training_max_steps_end", "sampled_depth"),
        *("tolerance", "block", "start_noise", "adjoint"),
        *("adjoint_steps", "adjoint_damping", "backward_solver", "backward_max_steps"),
        *("correction_steps", "correction_weight"),
    ),
    "Optimiser": (
        *("optimizer", "learning_rate", "adam_rate_ratio", "warmup_share", "schedule"),
        *("gradient_clip", "ema"),
    ),
    "Steadiness": (
        *("jacobian_penalty", "jacobian_penalty_end", "jacobian_penalty_fraction"),
        *("jacobian_penalty_power_steps", "shallow_share", "shallow_steps"),
        *(
            "settling_penalty",
            "progressive_weight",
            "segments",
            "halting",
            "path_noise",
            "equilibrium_watch",
            "watch_residual",
            "divergence_patience",
        ),
        "max_rollbacks",
    ),
    "Devices": (
        *("strategy", "logical_devices", "tpu", "steps_per_call", "jit_compile"),
        "keep_freed_memory",
    ),
    "Evaluation, reports and checkpoints": (
        *("evaluate_every", "evaluation_windows", "evaluation_rows", "evaluation_batches"),
        *(
            "test_windows",
            "test_batches",
            "test_lengths",
            "test_sizes",
            "test_set",
            "test_budget",
            "test_starts",
            "log_every",
            "inspect_every",
            "inspect_gradient",
        ),
        *("profile_step", "checkpoint_every", "checkpoint_minutes", "keep"),
    ),
}
