"""The progress of a run: rows of the curves, TensorBoard, a progress bar and a clock."""

import contextlib
import os
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf
from tqdm import tqdm

from tfdeq.programs.workdir import Curves, writing
from tfdeq.training.records import event_files


class Clock:
    """The time of training steps, without evaluations, checkpoints and compilations."""

    def __init__(self) -> None:
        self._seconds, self._steps = 0.0, 0
        self._started, self._since = time.perf_counter(), 0

    def start(self, step: int) -> None:
        """Starts to count at this step."""
        self._started, self._since = time.perf_counter(), step

    def stop(self, step: int) -> None:
        """Stops, and counts the steps since the start."""
        self._seconds += time.perf_counter() - self._started
        self._steps += step - self._since

    def seconds_per_step(self) -> float | None:
        """Returns the mean since the last call, or None if no step was counted."""
        mean = self._seconds / self._steps if self._steps else None
        self._seconds, self._steps = 0.0, 0
        return mean


class Progress:
    """Curves, TensorBoard and the progress bar of a run.

    Args:
        workdir: receives curves.jsonl and tensorboard/.
        display: {"loss": …} -> name -> number, for the bar and TensorBoard.
        steps: number of steps of the whole run.
        item: the items that rows count per second.
    """

    def __init__(
        self,
        workdir: str,
        display: Callable[[Mapping[str, float]], dict[str, float]],
        steps: int,
        item: str = "tokens",
    ):
        self.curves = Curves(os.path.join(workdir, "curves.jsonl"))
        self._folder = os.path.join(workdir, "tensorboard")
        self._writer: tf.summary.SummaryWriter | None = None
        self._display = display
        self._steps = steps
        self._item = item
        self._bar: tqdm | None = None

    @property
    def writer(self) -> tf.summary.SummaryWriter:
        """TensorBoard's writer; its file is created on first use."""
        if self._writer is None:
            with self._writing():
                self._writer = tf.summary.create_file_writer(self._folder)
        return self._writer

    def rewind(self, step: int) -> None:
        """Removes the records of all later steps, because the run will repeat them."""
        self.close()
        self.curves.rewind(step)
        with self._writing():
            event_files.rewind(self._folder, step)

    def flush(self) -> None:
        """Flushes TensorBoard's records to the disk, so that a checkpoint is never ahead of them."""
        if self._writer is not None:
            with self._writing():
                self._writer.flush()

    def close(self) -> None:
        """Flushes and closes TensorBoard's file."""
        if self._writer is not None:
            with self._writing():
                self._writer.close()
            self._writer = None

    def _writing(self) -> contextlib.AbstractContextManager[None]:
        return writing(self._folder, tf.errors.OpError)

    def bar(self, step: int) -> tqdm:
        """Returns the progress bar, a context, starting at a step."""
        # A terminal is updated often; a file receives a line from time to time.
        interval = 0.5 if sys.stderr.isatty() else 30.0
        self._bar = tqdm(
            initial=step, total=self._steps, unit="step", dynamic_ncols=True, mininterval=interval
        )
        return self._bar

    def row(self, row: dict[str, Any]) -> None:
        """Shows and records the means over the steps since the last row."""
        self.curves.append(row)
        display = {} if row["loss"] is None else self._display(row)
        self.scalars(row["step"], "train", {**row, **display})
        shown = {**display, "residual": row.get("residual"), "steps": row.get("steps"),
                 f"{self._item}/s": row[f"{self._item}_per_second"]}  # fmt: skip
        if self._bar is not None:
            text = {k: f"{v:.3g}" for k, v in shown.items() if v is not None}
            self._bar.set_postfix(text, refresh=False)

    def scalars(self, step: int, group: str, values: Mapping[str, Any]) -> None:
        """Writes numbers to TensorBoard, under group/name."""
        with self._writing(), self.writer.as_default(step=step):
            for name, value in values.items():
                if value is not None and name != "step":
                    # Cast here, because TensorFlow refuses numbers that float32 cannot represent.
                    with np.errstate(over="ignore"):
                        tf.summary.scalar(f"{group}/{name}", np.float32(value))

    def histograms(self, step: int) -> Callable[..., Any]:
        """Returns (name, values) -> None, which writes a histogram to TensorBoard."""

        def write(name: str, values: tf.Tensor) -> None:
            with self._writing(), self.writer.as_default(step=step):
                tf.summary.histogram(name, values)

        return write

    def evaluation(self, step: int, results: Mapping[str, float]) -> None:
        """Shows and records the results on the validation data."""
        self.curves.append({"step": step, **{f"validation_{k}": v for k, v in results.items()}})
        self.scalars(step, "validation", results)
        text = ", ".join(f"{name} {value:.4g}" for name, value in results.items())
        self.say(f"step {step}: validation {text}")

    def say(self, text: str) -> None:
        """Prints a line without damaging the bar."""
        tqdm.write(text)

    def move_to(self, step: int) -> None:
        """Moves the bar to a step."""
        if self._bar is not None:
            self._bar.update(step - self._bar.n)

    def last_finite_row(self) -> dict[str, Any] | None:
        """Returns the last row without skipped steps."""
        rows = [row for row in self.curves.rows if row.get("loss") is not None]
        return next((row for row in reversed(rows) if not row["skipped_steps"]), None)
