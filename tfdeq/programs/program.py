"""The start of every program, and its messages about wrong input."""

import logging as python_logging
import signal
import sys
from collections.abc import Callable

from absl import app, flags, logging

from tfdeq.programs import paths, preemption, presets, program_help
from tfdeq.programs.processes import RunFailed

# The errors that wrong input causes, here and in the libraries; others are defects, shown with a
# traceback.
_INPUT_ERRORS = (ValueError, OSError, FloatingPointError, RunFailed)


def run(main: Callable[..., None], arguments: bool = False, resumable: bool = False) -> None:
    """Runs a program: parses flags, refuses other arguments, and prints input errors as one line.

    --help shows the program's own flags. The process ends with status 1 after an input error;
    --verbosity=1 shows its traceback too. SIGTERM ends it with status 143. If the program is resumable,
    SIGTERM and Ctrl-C end it with status 75.

    Args:
        main: the program.
        arguments: whether it takes arguments that are not flags: main(arguments) is called instead of
            main().
        resumable: whether the same command continues where it ended.
    """
    # Both raise an exception, so that contexts are left and end the processes that they started.
    if resumable:
        preemption.end_on_request()
    else:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))

    def guarded(argv: list[str]) -> None:
        if len(argv) > 1 and not arguments:
            raise app.UsageError(f"Unknown arguments: {' '.join(argv[1:])}. Flags begin with --.")
        if not flags.FLAGS["verbosity"].present:
            # Only warnings: at the level below, TensorFlow logs every file that it writes.
            logging.set_verbosity(logging.WARNING)
            python_logging.getLogger("tensorflow").setLevel(python_logging.WARNING)
        paths.expand_flags(flags.FLAGS)
        try:
            main(*([argv[1:]] if arguments else []))
        except preemption.AskedToEnd:
            print(
                "Stopped on request. Run the same command again to resume from the last checkpoint.",
                flush=True,
            )
            raise
        except _INPUT_ERRORS as error:
            if logging.level_debug():
                raise
            sys.exit(f"Error: {error}")
        if resumable:
            preemption.ignore_requests()

    program_help.define(main)
    try:
        argv = [sys.argv[0], *presets.expanded(sys.argv[1:])]
    except ValueError as error:
        sys.exit(f"Error: {error}")
    app.run(guarded, argv=argv)
