"""The real program has the same result on one device, on two logical ones and in several processes."""

import pytest

from tests.support import worker_cases as cases

SHORT = ("--train_steps=10", "--evaluate_every=10", "--checkpoint_every=5", "--inspect_every=10",
         "--nojit_compile")  # fmt: skip
LONG = ("--train_steps=50", "--evaluate_every=50", "--checkpoint_every=25", "--inspect_every=50")
TWO_DEVICES = ("--strategy=mirrored", "--logical_devices=2")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("strategies")
    cases.write_text(folder)
    return folder


@pytest.fixture(scope="module")
def one_device(folder):
    cases.finish(cases.start(folder, folder / "one", *SHORT))
    return cases.read_metrics(folder / "one")


def check_same(metrics, expected, steps):
    """Losses agree to 1e-5, because sums over rows are rounded in another order; all else follows."""
    assert len(cases.losses(metrics)) == steps
    assert cases.losses(metrics) == pytest.approx(cases.losses(expected), rel=1e-5)
    for name in ("residual", "steps", "gradient_norm", "converged"):
        found, known = (
            [value for value in one["train"][name] if value is not None]
            for one in (metrics, expected)
        )
        assert found == pytest.approx(known, rel=1e-3), name
    assert metrics["test"]["bits_per_byte"] == pytest.approx(
        expected["test"]["bits_per_byte"], rel=1e-5
    )


@pytest.mark.slow
def test_two_logical_devices(folder, one_device):
    cases.finish(cases.start(folder, folder / "two", *SHORT, *TWO_DEVICES))
    metrics = cases.read_metrics(folder / "two")
    check_same(metrics, one_device, 10)
    assert metrics["train"]["replicas"] == 2


@pytest.mark.slow
def test_two_workers_and_what_they_leave(folder, one_device):
    cases.finish(*cases.start_workers(2, folder, folder / "workers", *SHORT))
    check_same(cases.read_metrics(folder / "workers"), one_device, 10)
    names = {path.name for path in (folder / "workers").iterdir()}
    assert {"metrics.json", "model.keras", "config.json", "curves.jsonl"} <= names
    # The other worker wrote its files elsewhere, and removed them.
    assert len(list((folder / "workers" / "tensorboard").glob("events*"))) == 1


@pytest.mark.slow
def test_a_batch_that_the_devices_cannot_share_is_refused(folder):
    process = cases.start(folder, folder / "odd", *TWO_DEVICES, "--batch_size=7")
    (output,) = cases.finish(process, expect=1)
    assert "--batch_size=7 is the batch of all devices together" in output
    assert not (folder / "odd" / "config.json").exists()


@pytest.mark.slow
def test_fifty_compiled_steps_on_one_two_and_four(folder):
    cases.finish(cases.start(folder, folder / "long", *LONG))
    expected = cases.read_metrics(folder / "long")
    cases.finish(cases.start(folder, folder / "long_two", *LONG, *TWO_DEVICES))
    check_same(cases.read_metrics(folder / "long_two"), expected, 50)
    for count in (2, 4):
        workdir = folder / f"long_{count}_workers"
        cases.finish(*cases.start_workers(count, folder, workdir, *LONG))
        check_same(cases.read_metrics(workdir), expected, 50)


@pytest.mark.slow
def test_several_steps_a_call_on_two_devices_and_workers(folder):
    flags = (*LONG, "--nojit_compile", "--steps_per_call=4", "--log_every=10",
             "--accumulation_steps=2", "--ema=0.9", "--optimizer=adam")  # fmt: skip
    cases.finish(cases.start(folder, folder / "calls", *flags))
    expected = cases.read_metrics(folder / "calls")
    cases.finish(cases.start(folder, folder / "calls_two", *flags, *TWO_DEVICES))
    check_same(cases.read_metrics(folder / "calls_two"), expected, 5)
    cases.finish(*cases.start_workers(2, folder, folder / "calls_workers", *flags))
    check_same(cases.read_metrics(folder / "calls_workers"), expected, 5)


@pytest.mark.slow
def test_memory_on_two_devices_and_workers(folder):
    flags = (*SHORT, "--carry_memory", "--attention_span=8", "--evaluation_rows=4")
    cases.finish(cases.start(folder, folder / "memory", *flags))
    expected = cases.read_metrics(folder / "memory")
    cases.finish(cases.start(folder, folder / "memory_two", *flags, *TWO_DEVICES))
    check_same(cases.read_metrics(folder / "memory_two"), expected, 10)
    cases.finish(*cases.start_workers(2, folder, folder / "memory_workers", *flags))
    check_same(cases.read_metrics(folder / "memory_workers"), expected, 10)
