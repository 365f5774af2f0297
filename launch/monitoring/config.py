"""Settings of what a run leaves behind to be looked at."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import Literal

from launch.control.config import check_no_password
from launch.monitoring.rotation import MEBIBYTE, Rotation


@dataclass(frozen=True, slots=True)
class MonitoringConfig:
    rotate_mb: float = 64.0  # metrics.jsonl, events.jsonl, ... this large are put aside, compressed
    keep_rotated: int = 20  # compressed parts of each that stay; lower keeps less of a long run
    # Weights & Biases: offline writes below the run directory, online needs WANDB_API_KEY
    wandb: Literal["off", "offline", "online"] = "off"
    wandb_project: str = "warpzone"  # where runs appear there
    # MLflow: URI of a tracking server, or file:PATH of a folder; empty is off
    mlflow_uri: str = ""
    mlflow_experiment: str = "warpzone"  # where runs appear there; made if it does not exist

    def __post_init__(self) -> None:
        if not self.rotate_mb > 0:
            raise ValueError(f"monitoring.rotate_mb must be above 0, got {self.rotate_mb}")
        if self.keep_rotated < 1:
            raise ValueError(f"monitoring.keep_rotated must be at least 1, got {self.keep_rotated}")
        for name in ("wandb_project", "mlflow_experiment"):
            if not getattr(self, name):
                raise ValueError(f"monitoring.{name} must not be empty")
        check_no_password("monitoring.mlflow_uri", self.mlflow_uri)

    @property
    def rotation(self) -> Rotation:
        return Rotation(int(self.rotate_mb * MEBIBYTE), self.keep_rotated)


def check_trackers(config: MonitoringConfig) -> None:
    """Raises ValueError, naming what to install, for a tracker whose package is not here."""
    for setting, package, is_wanted in (
        ("wandb", "wandb", config.wandb != "off"),
        ("mlflow_uri", "mlflow", bool(config.mlflow_uri)),
    ):
        if is_wanted and importlib.util.find_spec(package) is None:
            raise ValueError(
                f"monitoring.{setting}={getattr(config, setting)!r} needs the package {package}, "
                "which is not installed: set up with EXTRAS=trackers make setup, or leave it out"
            )
