"""Weights & Biases and MLflow, where they are installed and asked for (EXTRAS=trackers).

Both go on with the tracker's run of before when a run is resumed. They get figures and settings,
which hold no secrets; keys come from the environment, as these packages want it.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from pathlib import Path

WANDB_ID_FILE = "wandb-run-id"
MLFLOW_ID_FILE = "mlflow-run-id"
LONGEST_VALUE = 500  # of a parameter, by MLflow's rule
MOST_PARAMETERS = 100  # in one call, by MLflow's rule


class WandbTracker:
    """Figures over `global_step`; offline ones are sent later by `wandb sync`."""

    def __init__(
        self, run_dir: Path, mode: str, project: str, settings: Mapping[str, object], goes_on: bool
    ) -> None:
        import wandb

        self._run = wandb.init(
            project=project,
            name=run_dir.name,
            id=_known_id(run_dir / WANDB_ID_FILE, goes_on) or _new_id(run_dir / WANDB_ID_FILE),
            resume="allow" if mode == "online" else None,
            dir=str(run_dir),
            mode="offline" if mode == "offline" else "online",
            config=dict(settings),
            settings=wandb.Settings(
                silent=True, console="off", disable_git=True, disable_code=True
            ),
        )
        # A resumed run repeats steps, which the tracker's own count of steps does not allow.
        self._run.define_metric("*", step_metric="global_step")

    def write(self, numbers: Mapping[str, float], step: int) -> None:
        self._run.log(dict(numbers))

    def close(self, *, has_failed: bool) -> None:
        self._run.finish(exit_code=int(has_failed))


class MlflowTracker:
    """Figures by env steps, settings as parameters."""

    def __init__(
        self,
        run_dir: Path,
        uri: str,
        experiment: str,
        settings: Mapping[str, object],
        goes_on: bool,
    ) -> None:
        if uri.startswith("file:"):  # MLflow wants to be told that a folder is meant
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param

        self._metric = Metric
        self._client = MlflowClient(tracking_uri=uri)
        known = _known_id(run_dir / MLFLOW_ID_FILE, goes_on)
        if known is not None:
            self._run_id = known
            self._client.update_run(known, status="RUNNING")
            return
        found = self._client.get_experiment_by_name(experiment)
        place = self._client.create_experiment(experiment) if found is None else found.experiment_id
        self._run_id = self._client.create_run(place, run_name=run_dir.name).info.run_id
        (run_dir / MLFLOW_ID_FILE).write_text(self._run_id)
        flat = _flatten(settings)
        parameters = [Param(name, str(value)[:LONGEST_VALUE]) for name, value in flat.items()]
        for first in range(0, len(parameters), MOST_PARAMETERS):
            batch = parameters[first : first + MOST_PARAMETERS]
            self._client.log_batch(self._run_id, params=batch)

    def write(self, numbers: Mapping[str, float], step: int) -> None:
        at_ms = int(1000 * numbers["timestamp"])
        metrics = [self._metric(name, value, at_ms, step) for name, value in numbers.items()]
        self._client.log_batch(self._run_id, metrics=metrics)

    def close(self, *, has_failed: bool) -> None:
        self._client.set_terminated(self._run_id, status="FAILED" if has_failed else "FINISHED")


def _known_id(path: Path, goes_on: bool) -> str | None:
    """Of the tracker's run to go on with; None at a new start."""
    return path.read_text().strip() if goes_on and path.exists() else None


def _new_id(path: Path) -> str:
    identifier = secrets.token_hex(6)
    path.write_text(identifier)
    return identifier


def _flatten(settings: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for name, value in settings.items():
        if isinstance(value, Mapping):
            flat.update(_flatten(value, f"{prefix}{name}."))
        else:
            flat[f"{prefix}{name}"] = value
    return flat
