"""What became of a run, as one HTML file; several runs are compared.

    python launch/report.py runs/mario-quick              # writes runs/mario-quick/report.html
    python launch/report.py runs/a runs/b runs/c          # writes runs/comparison.html
    python launch/report.py runs/seed-* --output seeds.html

Every run writes its report at its end; this writes it again, while a run goes on or after it died.
Runs that differ in their seed alone are drawn as one line with their spread.

Exit codes: 0 done, 1 a run can't be read or the file not be written, 2 bad input.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from launch.config import fail
from launch.control.shutdown import EXIT_FAILED, EXIT_FINISHED
from launch.dashboard.run_view import NotARunError, check_run
from launch.reports.page import REPORT_FILE, page_of, put_page

COMPARISON_FILE = "comparison.html"
MOST_RUNS = 100


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(sys.argv[1:] if arguments is None else arguments)
    runs = list(dict.fromkeys(options.runs))
    if len(runs) > MOST_RUNS:
        fail(f"{len(runs)} runs are more than one page can show; give at most {MOST_RUNS}")
    for run in runs:
        try:
            check_run(run)
        except NotARunError as error:
            fail(str(error))
    if options.output is not None:
        path = options.output
        if path.is_dir():
            fail(f"--output {path} is a folder; name a file in it, such as {COMPARISON_FILE}")
    elif len(runs) == 1:
        path = runs[0] / REPORT_FILE
    else:
        path = runs[0].absolute().parent / COMPARISON_FILE
    try:
        text = page_of(runs, path.absolute().parent)
    except OSError as error:
        sys.stderr.write(f"error: {error.filename} can't be read: {error.strerror}\n")
        return EXIT_FAILED
    try:
        put_page(text, path)
    except OSError as error:
        sys.stderr.write(f"error: {path} can't be written: {error.strerror}; give --output\n")
        return EXIT_FAILED
    sys.stdout.write(f"[report] {path}\n")
    return EXIT_FINISHED


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="report.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="the folder of a run")
    parser.add_argument("--output", type=Path, help="the file to write")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
