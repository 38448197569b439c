"""Prints the results of runs, and writes an HTML page that compares them.

python -m trainers.report WORKDIR... [--output=PAGE.html]
"""

import os

from absl import app, flags

from tfdeq.programs import commands, program
from tfdeq.programs.paths import expanded
from tfdeq.training.report import report_run
from tfdeq.training.report.summary import next_steps, summary, write_page

FLAGS = flags.FLAGS


def main(workdirs: list[str]) -> None:
    if not workdirs:
        raise app.UsageError(
            "No folder of a run was given. Name one or more, for example: "
            f"{commands.command('trainers.report')} runs/quickstart"
        )
    workdirs = [str(expanded(workdir)) for workdir in workdirs]
    output = FLAGS.output or os.path.join(workdirs[0], "report.html")
    runs = write_page(workdirs, output)
    folders = report_run.distinct_folders(workdirs)
    for folder, run in zip(folders, runs, strict=True):
        if len(runs) > 1 or run.metrics is None:
            print(f"\n{folder}: {run.state}")
        if run.metrics is not None:
            print("\n".join(summary(folder)))
    print(f"\nThe page, for any browser: {output}")
    finished = [f for f, run in zip(folders, runs, strict=True) if run.metrics is not None]
    if finished:
        print("\n".join(next_steps(finished[0])))


def run() -> None:
    """Entry point of the console script."""
    flags.DEFINE_string("output", None, "HTML page to write. Default: WORKDIR/report.html.")
    program.run(main, arguments=True)


if __name__ == "__main__":
    run()
