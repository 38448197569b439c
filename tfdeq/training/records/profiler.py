"""`--profile_step`: a few steps under TensorFlow's profiler, for TensorBoard."""

import tensorflow as tf

_STEPS = 5


class Profiler:
    """Profiles five steps of a run.

    Args:
        folder: TensorBoard's folder.
        step: the first step to profile; 0: none.
    """

    def __init__(self, folder: str, step: int):
        self._folder = folder
        # Steps at which a call of several steps must end.
        self.stops = (step, step + _STEPS) if step else ()
        self._runs = False

    def at(self, step: int) -> None:
        """Call it before each step."""
        if self.stops and step == self.stops[0]:
            tf.profiler.experimental.start(self._folder)
            self._runs = True
        elif self.stops and step >= self.stops[1]:
            self.stop()

    def stop(self) -> None:
        """Ends the current profile, if there is one, and writes it."""
        if self._runs:
            tf.profiler.experimental.stop()
            self._runs = False
