"""`--profile_step`: a few steps under TensorFlow's profiler, for TensorBoard."""

import tensorflow as tf

_STEPS = 5


class Profiler:
    """Profiles five steps of a run.

    Args:
        folder: TensorBoard's.
        step: the first step that is profiled; 0: none is.
    """

    def __init__(self, folder: str, step: int):
        self._folder = folder
        # Where a call of several steps has to end.
        self.stops = (step, step + _STEPS) if step else ()
        self._runs = False

    def at(self, step: int) -> None:
        """Is told of each step that is about to be made."""
        if self.stops and step == self.stops[0]:
            tf.profiler.experimental.start(self._folder)
            self._runs = True
        elif self.stops and step >= self.stops[1]:
            self.stop()

    def stop(self) -> None:
        """Ends the profile, if one is being taken, and writes it."""
        if self._runs:
            tf.profiler.experimental.stop()
            self._runs = False
