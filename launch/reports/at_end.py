"""The report that a run leaves at its end, which neither breaks nor delays the end."""

from __future__ import annotations

import logging
import threading
from pathlib import Path

from launch.reports.page import REPORT_FILE, write_report

LIMIT_S = 20.0

_log = logging.getLogger(__name__)


def leave_report(run_dir: Path, *, limit_s: float = LIMIT_S) -> bool:
    """Writes report.html, true if it did; never raises and takes `limit_s` at most.

    What goes wrong is a warning. A report that is not ready in time is given up with the process:
    it is written under another name first, so that no half of one is left.
    """
    causes: list[str] = []

    def work() -> None:
        try:
            write_report([run_dir], run_dir / REPORT_FILE)
        except Exception as error:  # of whatever kind: the run itself has ended well
            causes.append(f"{type(error).__name__}: {error}")

    thread = threading.Thread(target=work, name="report", daemon=True)
    thread.start()
    thread.join(limit_s)
    if thread.is_alive():
        causes.append(f"it was not ready after {limit_s:g} s")
    for cause in causes:
        _log.warning(
            "[train] no %s (%s); `python launch/report.py %s` writes it",
            REPORT_FILE,
            cause,
            run_dir,
        )
    return not causes
