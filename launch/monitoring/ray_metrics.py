"""A run's figures as gauges of Ray: they appear in its dashboard, and Prometheus can read them.

The driver alone owns them, once per figure and not per process, so that a thousand env actors make
no more series than one. Ray forgets a gauge that was not set for about two of its report periods.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

import ray
from ray.util.metrics import Gauge

from launch.monitoring.prometheus_folder import PROMETHEUS_FOLDER, TARGETS_FILE

PREFIX = "warpzone_"
EXPORTED_PREFIX = f"ray_{PREFIX}"  # as Prometheus sees it
RUN_LABEL = "run"
# What the parts of a name such as time_percent/learner/compute are, by its first part.
LABELS: Mapping[str, tuple[str, ...]] = {
    "time_percent": ("process", "stage"),
    "wait_percent": ("process", "cause"),
    "cpu_percent_mean": ("role",),
    "cpu_percent_max": ("role",),
    "rss_mb_mean": ("role",),
    "rss_mb_max": ("role",),
    "uss_mb_mean": ("role",),
    "uss_mb_max": ("role",),
    "stage_clear_rate": ("level",),
}


def gauge_of(name: str) -> tuple[str, dict[str, str]]:
    """Gauge and labels of a figure of the metric files.

    >>> gauge_of("time_percent/learner/compute")
    ('warpzone_time_percent', {'process': 'learner', 'stage': 'compute'})
    """
    family, *values = name.split("/")
    labels = dict(zip(LABELS.get(family, ()), values, strict=True))
    return PREFIX + family, labels


class RayMetrics:
    """Takes each record of a run whose driver is connected to Ray."""

    def __init__(self, run_dir: Path) -> None:
        self._run = run_dir.name
        self._targets = run_dir / PROMETHEUS_FOLDER / TARGETS_FILE
        self._endpoints: list[str] = []
        self._gauges: dict[str, Gauge] = {}

    def write(self, numbers: Mapping[str, float], step: int) -> None:
        for name, value in numbers.items():
            family, labels = gauge_of(name)
            if family not in self._gauges:
                self._gauges[family] = Gauge(
                    family, "docs/metrics.md", tag_keys=(*labels, RUN_LABEL)
                )
            self._gauges[family].set(value, tags={**labels, RUN_LABEL: self._run})
        self._write_targets()

    def close(self, *, has_failed: bool) -> None:
        """Nothing to do: Ray forgets the gauges by itself."""

    def _write_targets(self) -> None:
        """Where Prometheus finds the metrics of each node, in its own format."""
        endpoints = metric_endpoints()
        if endpoints == self._endpoints:
            return
        self._targets.parent.mkdir(exist_ok=True)
        temporary = self._targets.with_name(f".{TARGETS_FILE}")
        temporary.write_text(json.dumps([{"targets": endpoints, "labels": {"job": "ray"}}]))
        os.replace(temporary, self._targets)
        self._endpoints = endpoints


def metric_endpoints() -> list[str]:
    """host:port of every living node of the cluster that this process is connected to."""
    living = [node for node in ray.nodes() if node["Alive"] and node["MetricsExportPort"]]
    return sorted(f"{node['NodeManagerAddress']}:{node['MetricsExportPort']}" for node in living)
