"""The table of flags and their conditions, compared with what is built and trained."""

import types

import keras
import numpy as np
import pytest
from absl import flags

from tfdeq.data.token_data import token_data
from tfdeq.models.token_model import TokenModel
from tfdeq.training import experiment
from tfdeq.training.flags import flag_uses, shared
from tfdeq.training.text import language_model
from tfdeq.training.text.models import make_model
from trainers.language_model import CONFIGURATION_FLAGS

DEFAULTS = {name: flags.FLAGS[name].default for name in CONFIGURATION_FLAGS}
TINY = {
    "train_steps": 3,
    "batch_size": 2,
    "sequence_length": 8,
    "width": 8,
    "heads": 2,
    "feedforward": 8,
    "recurrent_scale": 1.0,
    "evaluation_windows": 2,
    "warmup_share": 0.05,
    "shallow_share": 0.4,
    "jit_compile": False,
    "inspect_every": 0,
    "checkpoint_minutes": 0.0,
    "log_every": 1,
}
KINDS = {
    "equilibrium": {},
    "trellis": {"cell": "trellis"},
    "depth": {"depth": 2},
    "transformer": {"model": "transformer", "depth": 2},
    "lstm": {"model": "lstm", "depth": 1},
    "gru": {"model": "gru", "depth": 1},
    "tcn": {"model": "tcn", "depth": 2},
    "trellisnet": {"model": "trellisnet", "depth": 2},
}
# Another value of every flag in the table.
OTHER = {
    "adam_rate_ratio": 3.0,
    "adjoint": "jacobian_free",
    "adjoint_damping": 0.5,
    "adjoint_steps": 2,
    "attention_span": 4,
    "backward_max_steps": 1,
    "backward_solver": "broyden",
    "cell": "trellis",
    "correction_steps": ["1"],
    "correction_weight": 0.7,
    "cutoff_factor": 2,
    "distance_slope": 0.5,
    "equilibrium_watch": "budget",
    "evaluation_rows": 1,
    "evaluation_windows": 1,
    "feedforward": 12,
    "heads": 4,
    "inspect_gradient": True,
    "jacobian_penalty": 0.1,
    "jacobian_penalty_end": 0.5,
    "jacobian_penalty_fraction": 1.0,
    "jacobian_penalty_power_steps": 0,
    "kernel_size": 3,
    "locked_dropout": True,
    "logical_devices": 2,
    "loss_chunk": 4,
    "max_steps": 3,
    "norm": "post",
    "normalization": "weight",
    "query_key_norm": True,
    "recurrent_scale": 0.5,
    "sampled_depth": 1,
    "shallow_share": 0.9,
    "shallow_steps": 2,
    "solver": "anderson",
    "test_windows": 1,
    "tolerance": 0.5,
    "training_max_steps": 2,
    "training_max_steps_end": 2,
    "watch_residual": 1e-6,
    "weight_dropout": 0.5,
}
# Flags of the data and the process, not of the model; tfdeq.data refuses the first two itself.
OUTSIDE = ("files", "data_dir", "tpu", "logical_devices")


def configuration(kind, **changes):
    return {**DEFAULTS, **TINY, **KINDS[kind], **changes}


def train(config, folder):
    """Trains for three steps and returns the losses and the test's results."""
    streams = {
        name: np.random.default_rng(seed).integers(0, 9, 100).astype(np.uint8)
        for seed, name in enumerate(("train", "validation", "test"))
    }
    data = token_data(streams, vocabulary_size=9, unit="byte")
    keras.utils.set_random_seed(0)
    made = language_model.make_experiment(config, data)
    columns = experiment.make_trainer(config, str(folder), made).train()
    return columns["loss"], made.test()


def test_the_table_names_flags_and_values_that_exist():
    # Flags of other trainers may also be in the table, if a test has imported them.
    assert {*OTHER, *OUTSIDE} == set(flag_uses.USES) & set(flags.FLAGS)
    for name in (*OTHER, *OUTSIDE):
        for case in flag_uses.USES[name]:
            for name, wanted in case.items():
                if wanted not in (flag_uses.GIVEN, flag_uses.NOT_GIVEN):
                    for value in wanted:
                        flags.FLAGS[name].parser.parse(value)


class Read(dict):
    """A configuration that records which of its entries are read."""

    def __init__(self, values):
        super().__init__(values)
        self.names = set()

    def __getitem__(self, name):
        self.names.add(name)
        return super().__getitem__(name)

    def get(self, name, default=None):
        self.names.add(name)
        return super().get(name, default)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_in_the_table_is_read_whatever_is_trained(kind, tmp_path):
    config = Read(configuration(kind))
    train(config, tmp_path)
    # Process and data are set up before; the last one is read only when steps go wrong.
    others = {*shared._NOT_CONFIGURATION, "dataset", "strategy", "max_rollbacks"}
    assert set(DEFAULTS) - set(flag_uses.USES) - others <= config.names


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_what_the_table_calls_unused_changes_nothing(kind, tmp_path):
    """All flags together, bit for bit."""
    config = configuration(kind)
    ignored = {name: OTHER[name] for name in OTHER if not flag_uses.is_used(name, config)}
    ignored.pop("logical_devices")
    assert len(ignored) >= 3
    plain = train(config, tmp_path / "plain")
    assert train({**config, **ignored}, tmp_path / "changed") == plain


@pytest.mark.parametrize("kind", KINDS)
def test_what_the_table_calls_used_is_in_the_model(kind, monkeypatch):
    monkeypatch.setattr(TokenModel, "build", lambda self, shape: None)  # which takes time
    config = configuration(kind, cutoffs=["4"])
    training_alone = (
        *(
            "training_max_steps",
            "training_max_steps_end",
            "sampled_depth",
            "shallow_share",
            "shallow_steps",
        ),
        *("jacobian_penalty_end", "equilibrium_watch", "watch_residual", "adam_rate_ratio"),
        *("correction_steps", "evaluation_windows", "test_windows", "logical_devices"),
    )

    def built(**changes):
        found = make_model({**config, **changes}, 9).get_config()
        return {key: value for key, value in found.items() if key != "name"}

    plain = built()
    assert built() == plain
    for name, value in OTHER.items():
        same = name in training_alone or config[name] == value
        if flag_uses.is_used(name, config) and not same:
            assert built(**{name: value}) != plain, name


def refused(*names, **values):
    values = {**DEFAULTS, "logical_devices": 0, "tpu": "", **values}
    return flag_uses.unused(values, {**DEFAULTS, "tpu": ""}, names or set(values))


@pytest.mark.parametrize(
    ("values", "names"),
    [
        ({"model": "transformer", "depth": 2, "query_key_norm": True}, ["query_key_norm"]),
        ({"cell": "trellis", "heads": 8, "attention_span": 5}, ["attention_span", "heads"]),
        ({"adjoint_steps": 3}, ["adjoint_steps"]),
        ({"adjoint": "unrolled", "adjoint_steps": 3, "adjoint_damping": 0.5}, ["adjoint_damping"]),
        ({"adjoint": "jacobian_free", "backward_solver": "gmres"}, ["backward_solver"]),
        ({"kernel_size": 4, "weight_dropout": 0.1}, ["kernel_size", "weight_dropout"]),
        ({"depth": 2, "solver": "broyden", "max_steps": 3}, ["max_steps", "solver"]),
        ({"depth": 2, "jacobian_penalty": 1.0, "jacobian_penalty_end": 0.5}, []),
        ({"jacobian_penalty": 0.0, "jacobian_penalty_end": 0.5}, ["jacobian_penalty_end"]),
        ({"carry_memory": True, "evaluation_windows": 8}, ["evaluation_windows"]),
        ({"evaluation_rows": 2}, ["evaluation_rows"]),
        ({"cutoff_factor": 2}, ["cutoff_factor"]),
        ({"cutoffs": ["5"], "cutoff_factor": 2, "loss_chunk": 4}, ["loss_chunk"]),
        ({"correction_weight": 1.0}, ["correction_weight"]),
        ({"optimizer": "adam", "adam_rate_ratio": 2.0}, ["adam_rate_ratio"]),
        ({"logical_devices": 2}, ["logical_devices"]),
        ({"strategy": "mirrored", "logical_devices": 2}, []),
        ({"tpu": "mine"}, ["tpu"]),
        ({"equilibrium_watch": "none", "watch_residual": 0.2}, ["watch_residual"]),
        ({"files": "*.txt"}, ["files"]),
        ({"dataset": "text", "files": "*.txt", "data_dir": "x"}, ["data_dir"]),
        # A feature may be switched off even if it could not be on.
        ({"model": "lstm", "depth": 1, "jacobian_penalty": 0.0, "equilibrium_watch": "none"}, []),
    ],
)
def test_flags_that_change_nothing(values, names):
    assert list(refused(**values)) == names


def test_only_what_the_user_has_set_is_refused():
    assert not refused("width", heads=8, cell="trellis")
    with pytest.raises(ValueError, match=r"Leave it out"):
        flag_uses.refuse_unused({**DEFAULTS, "evaluation_rows": 3}, DEFAULTS, ["evaluation_rows"])


def test_a_configuration_for_another_process_has_what_it_uses():
    config = configuration("depth", solver="anderson", heads=4)
    found = flag_uses.used(config)
    assert "solver" not in found
    assert found["heads"] == 4
    assert not flag_uses.unused({**DEFAULTS, **found}, DEFAULTS, DEFAULTS)


def test_when_a_flag_is_used_in_words():
    assert flag_uses.when_used("width") == ""
    assert flag_uses.when_used("solver") == "--model=deq --depth=0"
    assert flag_uses.when_used("loss_chunk") == "no --cutoffs"
    assert flag_uses.when_used("evaluation_windows") == "--nocarry_memory"
    found = flag_uses.when_used("kernel_size")
    assert found.endswith("--cell=trellis, or with --model=trellisnet, or with --model=tcn")


def test_a_flag_that_a_trainer_lacks_decides_nothing():
    assert flag_uses.is_used("files", types.MappingProxyType({"depth": 0}))
