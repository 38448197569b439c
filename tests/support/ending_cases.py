"""Runs the real trainer in a separate process that is ended at a chosen moment.

The cause of the end is patched into that process only: the program reads no test settings.
"""

import functools
import importlib
import json
import multiprocessing
import os
import pathlib
import random
import re
import shutil
import signal
import sys

ROOT = pathlib.Path(__file__).absolute().parents[2]
FLAGS = ("--dataset=text", "--files=words.txt", "--prepared_dir=prepared", "--train_steps=6",
         "--log_every=1", "--evaluate_every=3", "--checkpoint_every=2", "--inspect_every=0",
         "--batch_size=4", "--sequence_length=16", "--width=16", "--heads=2", "--feedforward=32",
         "--recurrent_scale=1", "--dropout=0.1", "--shallow_share=0", "--evaluation_windows=8",
         "--jacobian_penalty=0", "--nojit_compile")  # fmt: skip


def write_text(folder):
    words = random.Random(0).choices(["equilibrium", "solver", "residual", "step"], k=3000)
    (folder / "words.txt").write_text(" ".join(words))


def run(folder, workdir, *flags, hook=None, log=None, seconds=120):
    """Runs the language model's trainer in a folder; returns its exit status and output.

    Args:
        hook: (function, *arguments), picklable, called in its process before it starts.
        log: file in the folder for its output. Default: named like workdir.
    """
    log = folder / (log or f"{workdir}.txt")
    arguments = [*FLAGS, *flags, f"--workdir={workdir}"]
    status = in_a_process(_train, str(folder), str(log), arguments, hook, seconds=seconds)
    return status, log.read_text()


def in_a_process(function, *arguments, seconds=55):
    """Calls a function in a new process; returns its exit status, negative for a signal."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tensorflow", "keras", "trainers.language_model"])
    process = context.Process(target=function, args=arguments)
    process.start()
    process.join(timeout=seconds)
    if process.exitcode is None:
        process.kill()
        process.join()
        raise AssertionError(f"It did not end within {seconds} s.")
    return process.exitcode


def _train(folder, log, arguments, hook):
    os.chdir(folder)
    with open(log, "w", encoding="utf-8") as file:
        for stream in (1, 2):
            os.dup2(file.fileno(), stream)
    # Like a program started by a shell.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = ["trainers.language_model", *arguments]
    from trainers import language_model

    if hook is not None:
        hook[0](*hook[1:])
    language_model.run()


def signal_at(place, call, *numbers):
    """Makes this process send itself signals at a given call of a function.

    Args:
        place: "module:name" or "module:class.name" of the function.
    """
    module, names = place.split(":")
    owner = importlib.import_module(module)
    *owners, name = names.split(".")
    for part in owners:
        owner = getattr(owner, part)
    original, calls = getattr(owner, name), [0]

    @functools.wraps(original)
    def function(*args, **kwargs):
        calls[0] += 1
        if calls[0] == call:
            for number in numbers:
                os.kill(os.getpid(), number)
        return original(*args, **kwargs)

    setattr(owner, name, function)


_MOVERS = ((os, "replace"), (os, "rename"), (os, "remove"), (os, "unlink"), (os, "rmdir"),
           (shutil, "rmtree"))  # fmt: skip


def watch_moves(record=None, victim=None, before=True):
    """Watches where this process renames and removes files, and kills it at one of these places.

    A place is a line of trainers/, the function called there, and the kind of file; only the first time
    counts.

    Args:
        record: file for the places, one per line. victim: the place at which to kill the process,
            before or after the call.
    """
    seen = set()

    def wrap(owner, name):
        original = getattr(owner, name)

        @functools.wraps(original)
        def function(path, *args, **kwargs):
            place = _place(name, args[0] if name in ("replace", "rename") else path)
            new = place is not None and place not in seen
            if new:
                seen.add(place)
                if record is not None:
                    with open(record, "a", encoding="utf-8") as file:
                        file.write(f"{place}\n")
            if new and place == victim and before:
                os.kill(os.getpid(), signal.SIGKILL)
            result = original(path, *args, **kwargs)
            if new and place == victim:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        setattr(owner, name, function)

    for owner, name in _MOVERS:
        wrap(owner, name)


def _place(name, path):
    frame, found = sys._getframe(2), []
    while frame is not None:
        file = pathlib.Path(frame.f_code.co_filename)
        if file.parent == ROOT / "trainers":
            found.append(f"{file.stem}.{frame.f_code.co_name}:{frame.f_lineno}")
        frame = frame.f_back
    if not found:
        return None
    path = pathlib.Path(os.fspath(path))
    best = "best/" * ("best" in path.parts)
    file = re.sub("[0-9]+", "N", re.sub("^tmp.*", "tmp", path.name))
    return f"{name} of {best}{file} in {' < '.join(found[:2])}"


def results(workdir):
    """Returns the results of a run that must not depend on how often it was ended."""
    import keras

    import tfdeq.models  # noqa: F401, registers the model that Keras loads

    metrics = json.loads((workdir / "metrics.json").read_text())
    curves = metrics["train"]
    for name in ("seconds_per_step", "tokens_per_second", "data_seconds", "peak_memory_mib"):
        curves.pop(name, None)
    weights = keras.models.load_model(workdir / "model.keras").get_weights()
    residuals = (workdir / "residuals.json").read_text()
    return metrics, residuals, [weight.tobytes() for weight in weights]


def leftovers(workdir):
    """Returns names of files and folders of a run that exist only while it writes."""
    temporary = re.compile(r"\.partial-.*|unfinished|finished")
    return sorted(path.name for path in workdir.rglob("*") if temporary.fullmatch(path.name))
