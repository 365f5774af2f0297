"""What a run's Ray tells Prometheus, read as Prometheus reads it."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from launch.monitoring.prometheus_folder import PROMETHEUS_FOLDER, TARGETS_FILE
from launch.monitoring.ray_metrics import EXPORTED_PREFIX, LABELS

ANSWER_LIMIT_S = 10.0


def exported_figures(run_dir: Path) -> dict[str, float]:
    """By the names of the metric files; {} while the run has no list of nodes."""
    targets = run_dir / PROMETHEUS_FOLDER / TARGETS_FILE
    if not targets.exists():
        return {}
    found = {}
    for group in json.loads(targets.read_text()):
        for endpoint in group["targets"]:
            for family in text_string_to_metric_families(_metrics_of(endpoint)):
                for sample in family.samples:
                    if sample.labels.get("run") == run_dir.name:
                        found[_name(sample.name, sample.labels)] = sample.value
    return found


def _metrics_of(endpoint: str) -> str:
    """Nothing while the agent of a node starts."""
    try:
        address = f"http://{endpoint}/metrics"
        with urllib.request.urlopen(address, timeout=ANSWER_LIMIT_S) as answer:
            return answer.read().decode()
    except OSError:
        return ""


def _name(gauge: str, labels: dict[str, str]) -> str:
    family = gauge.removeprefix(EXPORTED_PREFIX)
    return "/".join([family, *(labels[key] for key in LABELS.get(family, ()))])
