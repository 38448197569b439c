"""How every program starts and how it says that its input is wrong."""

import logging as python_logging
import signal
import sys
from collections.abc import Callable

from absl import app, flags, logging

from tfdeq.programs import paths, preemption, presets, program_help
from tfdeq.programs.processes import RunFailed

# What bad input raises, here and in the libraries below; anything else is a defect, shown in full.
_INPUT_ERRORS = (ValueError, OSError, FloatingPointError, RunFailed)


def run(main: Callable[..., None], arguments: bool = False, resumable: bool = False) -> None:
    """Runs a program: parses the flags, refuses stray arguments, turns input errors into a line.

    --help shows the program's own flags. The process ends with status 1 after an input error;
    --verbosity=1 shows its traceback too. SIGTERM ends it with status 143, or, as Ctrl-C does, with 75
    where the same command goes on with the work.

    Args:
        main: the program.
        arguments: whether it takes what is no flag: main(arguments) is called instead of main().
        resumable: whether the same command goes on where it ended.
    """
    # Both as an interrupt does: contexts are left, and end the processes that they started.
    if resumable:
        preemption.end_on_request()
    else:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))

    def guarded(argv: list[str]) -> None:
        if len(argv) > 1 and not arguments:
            raise app.UsageError(f"Unknown arguments: {' '.join(argv[1:])}. Flags begin with --.")
        if not flags.FLAGS["verbosity"].present:
            # Warnings only: TensorFlow notes every file that it writes at the level below.
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
