"""Which sinks a run has, by its settings; what each needs is imported where it is opened."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from launch.monitoring.config import MonitoringConfig
from launch.monitoring.sinks import BackgroundSink, GuardedSink, Sink


def destinations(
    config: MonitoringConfig,
    run_dir: Path,
    settings: Mapping[str, object],
    *,
    goes_on: bool,
    on_ray: bool,
) -> list[GuardedSink | BackgroundSink]:
    """settings: of the whole run; goes_on: from a checkpoint of this folder"""

    def parquet() -> Sink:
        from launch.monitoring.parquet_file import PARQUET_FILE, ParquetFile

        return ParquetFile(run_dir / PARQUET_FILE)

    def ray_metrics() -> Sink:
        from launch.monitoring.ray_metrics import RayMetrics

        return RayMetrics(run_dir)

    def wandb() -> Sink:
        from launch.monitoring.trackers import WandbTracker

        return WandbTracker(run_dir, config.wandb, config.wandb_project, settings, goes_on)

    def mlflow() -> Sink:
        from launch.monitoring.trackers import MlflowTracker

        uri, experiment = config.mlflow_uri, config.mlflow_experiment
        return MlflowTracker(run_dir, uri, experiment, settings, goes_on)

    slow: list[tuple[str, Callable[[], Sink], bool]] = [
        ("metrics/latest.parquet", parquet, True),
        ("Weights & Biases", wandb, config.wandb != "off"),
        ("MLflow", mlflow, bool(config.mlflow_uri)),
    ]
    found: list[GuardedSink | BackgroundSink] = [
        BackgroundSink(GuardedSink(what, make)) for what, make, is_wanted in slow if is_wanted
    ]
    if on_ray:  # fast, and Ray's client is the driver's
        found.append(GuardedSink("Ray's metrics", ray_metrics))
    return found
