"""What reanalysis came to: totals since this process began, and a window for rates."""

from __future__ import annotations

from collections import Counter

from actors.reanalysis import ReanalysisReport

COUNTS = ("n_segments", "n_as_new", "n_positions", "n_failed", "n_with_prior", "versions_gained")
STAGES = ("pull", "fetch", "search", "patch")


class RefreshFigures:
    """Owned by the controller's Progress; writes nothing until a first call was answered."""

    def __init__(self) -> None:
        self._total: Counter[str] = Counter()
        self._window: Counter[str] = Counter()
        self._seconds: Counter[str] = Counter()
        self._has_begun = False

    def add(self, report: ReanalysisReport) -> None:
        self._has_begun = True
        counts = {name: getattr(report, name) for name in COUNTS}
        self._total.update(counts)
        self._window.update(counts)
        self._seconds.update(report.seconds)

    def close_window(self, elapsed: float) -> dict[str, float]:
        """The metrics of the `elapsed` seconds that end now; begins the next window."""
        if not self._has_begun:
            return {}
        total, window, seconds = self._total, self._window, self._seconds
        metrics = {
            "reanalysis_segments_total": float(total["n_segments"]),
            "reanalysis_positions_total": float(total["n_positions"]),
            "reanalysis_as_new_total": float(total["n_as_new"]),
            "reanalysis_failed_total": float(total["n_failed"]),
            "reanalysis_segments_per_sec": window["n_segments"] / elapsed,
            "reanalysis_positions_per_sec": window["n_positions"] / elapsed,
            **{
                f"time_percent/reanalyser/{stage}": 100.0 * seconds[stage] / elapsed
                for stage in STAGES
            },
        }
        if window["n_segments"]:
            n_segments, n_positions = window["n_segments"], window["n_positions"]
            metrics["reanalysis_version_advance_mean"] = window["versions_gained"] / n_segments
            metrics["reanalysis_search_ms_mean"] = 1e3 * seconds["search"] / n_positions
            metrics["reanalysis_prior_share"] = window["n_with_prior"] / n_positions
        self._window, self._seconds = Counter(), Counter()
        return metrics
