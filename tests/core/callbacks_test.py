"""Tests of tfdeq.callbacks: what the monitor changes, restores, prints and does not change."""

import glob

import keras
import numpy as np
import pytest
import tensorflow as tf

import tfdeq
from tests.support.cases import DenseCell, compile_classifier, fast, image_classifier, image_data
from tfdeq.callbacks import EquilibriumMonitor
from tfdeq.steadiness.scaled_schedule import ScaledSchedule

# Plain iteration of z/2 + x from zeros: after n evaluations the residual is about 2^-n, above any
# tiny threshold. With signs as noise, its penalty is exactly 1/4.
ROUGH = tfdeq.FixedPointIteration(max_steps=4, tolerance=1e-12)
HALF_SQUARED = 0.25


@keras.saving.register_keras_serializable(package="tfdeq_tests")
class HalfCell(keras.layers.Layer):
    """f(z, x) = z / 2 + x, and the number of times that it was traced."""

    traces = 0

    def build(self, z_shape, x_shape=None):
        self.scale = self.add_weight(shape=(), initializer=keras.initializers.Constant(0.5))

    def call(self, z, x):
        HalfCell.traces += 1
        return self.scale * z + x


def _rough_model(rate=0.0, jit_compile=False, **settings):
    """Returns a model whose loss is only the penalty, and which learns nothing at the rate 0."""
    inputs = keras.Input((2,))
    layer = tfdeq.DEQLayer(HalfCell(), ROUGH, name="depth", **settings)
    model = keras.Model(inputs, 0.0 * layer(inputs))
    model.compile(keras.optimizers.SGD(rate), "mse", jit_compile=jit_compile)
    return model


def _fit(model, monitor, epochs, batches=1, **settings):
    """Trains on ones; with one batch per epoch the history is that of the batches."""
    x, y = np.ones([4 * batches, 2], "float32"), np.zeros([4 * batches, 2], "float32")
    callbacks = [] if monitor is None else [monitor]
    return model.fit(x, y, 4, epochs, callbacks=callbacks, verbose=0, **settings).history


def _classifier(optimizer, jit_compile=False):
    """Returns two layers, one of them inside a model, with the solver that is traced fastest."""
    first, second = (
        tfdeq.DEQLayer(DenseCell(4), "fixed_point_iteration", name=name)
        for name in ("first", "second")
    )
    inputs = keras.Input((3,))
    z = second(keras.Sequential([keras.layers.Dense(4), first])(inputs))
    model = keras.Model(inputs, keras.layers.Dense(1)(keras.layers.BatchNormalization()(z)))
    model.compile(optimizer, "mse", jit_compile=jit_compile)
    return model


def _data(batches, poisoned=()):
    """Returns batches of 4; poisoned ones contain NaN."""
    x = np.random.default_rng(0).normal(size=(4 * batches, 3)).astype("float32")
    y = x.sum(1, keepdims=True)
    for batch in poisoned:
        x[4 * batch] = np.nan
    return tf.data.Dataset.from_tensor_slices((x, y)).batch(4)


def _is_finite(model):
    variables = [*model.weights, *model.optimizer.variables]
    return all(np.isfinite(keras.ops.convert_to_numpy(each)).all() for each in variables)


# --- high residuals ---------------------------------------------------------------------------------


@pytest.mark.slow
def test_penalty_doubles_while_the_residual_is_high_and_nothing_is_traced_again(capsys):
    model = _rough_model(jit_compile=True, jacobian_penalty=0.5)
    monitor = EquilibriumMonitor(residual_threshold=1e-6, frequency=1)
    _fit(model, monitor, 1)
    traces = HalfCell.traces
    losses = _fit(model, monitor, 6)["loss"]
    assert HalfCell.traces == traces
    # The first fit of one batch raised it once; 16 is the largest factor.
    expected = [HALF_SQUARED * 0.5 * scale for scale in (2, 4, 8, 16, 16, 16)]
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("EquilibriumMonitor, batch 1: depth: residual 0.0")
    assert lines[0].endswith("Jacobian penalty 1.")
    assert lines[3].endswith("Jacobian penalty 8.")
    assert len(lines) == 4
    # Without the monitor the layer trains as before.
    np.testing.assert_allclose(_fit(model, None, 1)["loss"], [HALF_SQUARED * 0.5], rtol=1e-5)


@pytest.mark.slow
def test_layer_without_a_penalty_gets_one():
    model = _rough_model(jit_compile=True)
    assert _fit(model, None, 1)["loss"] == [0.0]  # steps compiled without a monitor
    losses = _fit(model, EquilibriumMonitor(residual_threshold=1e-6, frequency=1), 7)["loss"]
    expected = [HALF_SQUARED * weight for weight in (0, 0.1, 0.2, 0.4, 0.8, 1.6, 1.6)]
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    assert _fit(model, None, 1)["loss"] == [0.0]


def test_penalty_from_the_monitor_reaches_the_weights():
    model = _rough_model(rate=0.1)
    _fit(model, EquilibriumMonitor(residual_threshold=1e-6, frequency=1), 2)
    # d/ds of 0.1 s² is 0.1, times the rate.
    np.testing.assert_allclose(model.get_layer("depth").cell.scale, 0.5 - 0.01, rtol=1e-5)


def test_changes_are_taken_back_below_half_the_threshold(capsys):
    model = _rough_model(jacobian_penalty=0.5)
    monitor = EquilibriumMonitor(residual_threshold=1e-6, frequency=1)
    _fit(model, monitor, 3)
    monitor._watches[0].threshold = 1.0
    losses = _fit(model, monitor, 5)["loss"]
    expected = [HALF_SQUARED * 0.5 * scale for scale in (8, 4, 2, 1, 1)]
    np.testing.assert_allclose(losses, expected, rtol=1e-5)


@pytest.mark.parametrize("budget", fast([2], [None, 2]))
def test_budget_grows_while_the_residual_is_high(budget):
    model = _rough_model(training_max_steps=budget)
    monitor = EquilibriumMonitor("budget", residual_threshold=1e-6, frequency=1)
    steps = _fit(model, monitor, 14)["depth_steps"]
    own = budget or 4
    assert steps[:5] == [np.ceil(own * scale) for scale in (1, 1.25, 1.5, 1.75, 2)]
    assert steps[-1] == 4 * own


def test_it_looks_every_so_many_batches_across_epochs():
    model = _rough_model(jacobian_penalty=0.5)
    monitor = EquilibriumMonitor(residual_threshold=1e-6, frequency=4)
    losses = _fit(model, monitor, 4, batches=3, validation_split=0.34)["loss"]
    # There are two training batches per epoch; the changes follow the fourth and the eighth.
    np.testing.assert_allclose(np.divide(losses, HALF_SQUARED * 0.5), [1, 1, 2, 2], rtol=1e-5)


@pytest.mark.slow
def test_the_window_is_of_training_alone():
    monitor = EquilibriumMonitor(residual_threshold=1e-6, frequency=2)
    _fit(_rough_model(jacobian_penalty=0.5), monitor, 2, batches=2, validation_split=0.5)
    # The fourth evaluation is at 1.75, where f is 1.875.
    assert abs(monitor._watches[0].residual - 0.125 / 1.875) < 1e-6


@pytest.mark.parametrize("settings", [{"steps_per_execution": 2}, {"run_eagerly": True}])
@pytest.mark.slow
def test_other_ways_to_run_the_steps(settings):
    model = _rough_model(jacobian_penalty=0.5)
    model.compile(keras.optimizers.SGD(0.0), "mse", jit_compile=False, **settings)
    monitor = EquilibriumMonitor(residual_threshold=1e-6, frequency=2)
    losses = _fit(model, monitor, 3, batches=2)["loss"]
    np.testing.assert_allclose(np.divide(losses, HALF_SQUARED * 0.5), [1, 2, 4], rtol=1e-5)


@pytest.mark.parametrize("jit_compile", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.slow
def test_cells_with_state_of_their_own_and_half_precision(jit_compile):
    keras.config.set_dtype_policy("mixed_bfloat16")
    model = compile_classifier(image_classifier(), jit_compile=jit_compile)
    images, labels = image_data(8)
    monitor = EquilibriumMonitor(residual_threshold=1e-6, frequency=1, verbose=False)
    model.fit(images, labels, 8, 3, verbose=0, callbacks=[monitor])
    assert monitor._watches[0].level > 3
    assert _is_finite(model)


# --- NaN --------------------------------------------------------------------------------------------


def _schedule():
    return keras.optimizers.schedules.ExponentialDecay(1e-2, 100, 1.0)


@pytest.mark.parametrize("rate", [1e-2, pytest.param("schedule", marks=pytest.mark.slow)])
@pytest.mark.parametrize("jit_compile", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_nan_brings_the_last_good_state_back_at_half_the_rate(rate, jit_compile, capsys):
    rate = _schedule() if rate == "schedule" else rate
    model = _classifier(keras.optimizers.Adam(rate), jit_compile=jit_compile)
    monitor = EquilibriumMonitor(frequency=2, residual_threshold=1.0)
    history = model.fit(_data(10, poisoned=[5]), epochs=1, verbose=0, callbacks=[monitor]).history
    assert monitor.restores == 1
    assert _is_finite(model)
    # Only the last four batches, because the epoch's mean was reset.
    assert np.isfinite(history["loss"][0])
    assert int(model.optimizer.iterations) == 4 + 4
    np.testing.assert_allclose(model.optimizer.learning_rate, 5e-3, rtol=1e-6)
    line = capsys.readouterr().out.splitlines()[0]
    assert "NaN or infinity" in line
    assert "batch 6:" in line
    assert "from batch 4 with learning rate 0.005" in line
    assert "first: Jacobian penalty 0.1; second: Jacobian penalty 0.1" in line


@pytest.mark.slow
def test_state_that_comes_back_is_the_good_one_to_the_bit():
    def weights(batches, poisoned, monitor):
        keras.utils.set_random_seed(3)
        model = _classifier(keras.optimizers.Adam(1e-2))
        data = _data(6, poisoned).take(batches)
        model.fit(data, epochs=1, verbose=0, callbacks=[monitor] if monitor else [])
        variables = [*model.weights, *model.optimizer.variables[2:]]
        return [keras.ops.convert_to_numpy(each) for each in variables]

    monitor = EquilibriumMonitor(frequency=2, residual_threshold=1.0, action="none")
    expected = weights(4, (), None)
    for one, other in zip(weights(6, [4], monitor), expected, strict=True):
        np.testing.assert_array_equal(one, other)
    assert monitor.restores == 1


@pytest.mark.slow
def test_rates_go_on_falling_and_it_gives_up_with_a_diagnosis(capsys):
    model = _classifier(keras.optimizers.Adam(1e-2))
    monitor = EquilibriumMonitor(frequency=1, max_restores=2, residual_threshold=1.0)
    history = model.fit(_data(8, range(3, 8)), epochs=3, verbose=0, callbacks=[monitor])
    assert len(history.epoch) == 1
    assert monitor.restores == 2
    assert _is_finite(model)
    assert int(model.optimizer.iterations) == 3
    lines = capsys.readouterr().out.splitlines()
    assert "learning rate 0.005" in lines[0]
    assert "learning rate 0.0025" in lines[1]
    assert "batch 6: Warning: NaN" in lines[2]
    assert "Giving up after 2 returns; the model is that of batch 3." in lines[2]
    assert "first: residual" in lines[2]
    assert len(lines) == 3


@pytest.mark.slow
def test_nan_in_the_last_steps_does_not_stay(capsys):
    model = _classifier(keras.optimizers.Adam(1e-2))
    monitor = EquilibriumMonitor(residual_threshold=1.0)
    model.fit(_data(3, [2]), epochs=1, verbose=0, callbacks=[monitor])
    assert _is_finite(model)
    assert "NaN or infinity" in capsys.readouterr().out


def test_residuals_that_stay_high_bring_the_good_state_back(capsys):
    model = _rough_model(rate=1e-3, jacobian_penalty=0.5)
    monitor = EquilibriumMonitor(residual_threshold=1.0, frequency=1, patience=2, max_restores=1)
    _fit(model, monitor, 1)
    watch = monitor._watches[0]
    watch.threshold, watch.level = 1e-6, 4
    monitor._good_is_steady, monitor._good_residual = True, 0.0
    monitor.on_train_begin = lambda logs=None: None  # continue with the state of the first fit
    _fit(model, monitor, 2)
    assert "residuals stay high though nothing more can be raised: depth (0.0" in (
        capsys.readouterr().out
    )
    assert monitor.restores == 1


# --- what it leaves alone ---------------------------------------------------------------------------


@pytest.mark.slow
def test_files_are_as_without_a_monitor(tmp_path):
    with_it, without = (_rough_model() for _ in range(2))
    path = str(tmp_path / "during.keras")
    save = keras.callbacks.ModelCheckpoint(path, monitor="loss")
    x = np.ones([4, 2], "float32")
    monitor = EquilibriumMonitor(residual_threshold=1e-6, frequency=1)
    with_it.fit(x, x, epochs=3, verbose=0, callbacks=[monitor, save])
    without.fit(x, x, verbose=0)
    without.save(tmp_path / "without.keras")
    loaded = keras.saving.load_model(path)
    loaded.fit(x, x, verbose=0)
    assert [each.shape for each in loaded.variables] == [each.shape for each in without.variables]
    with_it.load_weights(tmp_path / "without.keras")
    assert loaded.get_layer("depth").get_config()["jacobian_penalty"] == 0.0


@pytest.mark.parametrize("halved", [False, True])
@pytest.mark.slow
def test_schedules_are_the_users_own_again_unless_they_were_halved(halved, tmp_path):
    schedule = _schedule()
    model = _classifier(keras.optimizers.Adam(schedule))
    monitor = EquilibriumMonitor(frequency=1, residual_threshold=1.0, verbose=False)
    model.fit(_data(3, [1] if halved else []), verbose=0, callbacks=[monitor])
    assert isinstance(model.optimizer._learning_rate, ScaledSchedule) == halved
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    expected = 5e-3 if halved else 1e-2
    np.testing.assert_allclose(loaded.optimizer.learning_rate, expected, rtol=1e-6)
    model.fit(_data(3), verbose=0, callbacks=[monitor])
    np.testing.assert_allclose(model.optimizer.learning_rate, expected, rtol=1e-6)


def test_log_dir_receives_scalars(tmp_path):
    monitor = EquilibriumMonitor(
        residual_threshold=1e-6, frequency=1, log_dir=tmp_path, verbose=False
    )
    _fit(_rough_model(jacobian_penalty=0.5), monitor, 3)
    found = {}
    for path in glob.glob(str(tmp_path / "events*")):
        for event in tf.compat.v1.train.summary_iterator(path):
            for value in event.summary.value:
                found.setdefault(value.tag, {})[event.step] = float(tf.make_ndarray(value.tensor))
    assert found["depth/penalty_scale"] == {1: 2.0, 2: 4.0, 3: 8.0}
    assert set(found) == {
        "depth/residual",
        "depth/penalty_scale",
        "depth/budget_scale",
        "learning_rate",
        "restores",
    }


@pytest.mark.slow
def test_layers_inside_a_cell_are_part_of_it():
    @keras.saving.register_keras_serializable(package="tfdeq_tests")
    class Outer(keras.layers.Layer):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.inner = tfdeq.DEQLayer(DenseCell(2), name="inner")

        def call(self, z, x):
            return 0.5 * z + self.inner(x)

    inputs = keras.Input((2,))
    model = keras.Model(inputs, tfdeq.DEQLayer(Outer(), "anderson", name="outer")(inputs))
    model.compile("adam", "mse", jit_compile=False)
    monitor = EquilibriumMonitor(frequency=1)
    _fit(model, monitor, 2)
    assert [watch.layer.name for watch in monitor._watches] == ["outer"]


# --- errors -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"action": "pray"}, "action must be one of penalty, budget, none; received 'pray'"),
        ({"residual_threshold": 0.0}, "residual_threshold must be a finite number > 0"),
        ({"frequency": 0}, "frequency"),
        ({"max_restores": -1}, "max_restores"),
        ({"patience": 0}, "patience"),
    ],
)
def test_settings_out_of_range_are_refused(settings, says):
    with pytest.raises(ValueError, match=says):
        EquilibriumMonitor(**settings)


def test_models_without_a_layer_to_watch_are_refused(capsys):
    inputs = keras.Input((2,))
    model = keras.Model(inputs, keras.layers.Dense(2)(inputs))
    model.compile("sgd", "mse")
    with pytest.raises(ValueError, match="has none with convergence_metrics=True"):
        _fit(model, EquilibriumMonitor(), 1)
    with pytest.raises(ValueError, match="has none"):
        _fit(_rough_model(convergence_metrics=False), EquilibriumMonitor(), 1)
    assert "not watched, for want of convergence_metrics=True: depth" in capsys.readouterr().out
