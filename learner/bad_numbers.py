"""Updates that met NaN or infinity: which numbers they were, and the batch on disk to look at.

The checks are a few reductions that travel with the metrics of an update; the file costs only
when something is wrong.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from learner.measurement import Measured
from replay_service.targets import Batch, Handles, TextBatch

BAD_BATCHES_FOLDER = "bad-batches"  # in the run directory
_TEMPORARY = ".tmp-"

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class BadStep:
    """An update that changed nothing, since a number of it was not finite.

    update:     how many updates came before it
    not_finite: of `observation`, `output`, `loss`, `gradient`, `priority`, and the columns of the
                batch as `batch.<name>`; of the language model `log_probs`, `loss`, `gradient`
    file:       where the batch lies, "" where it was not saved: of a row, the first one is
    """

    update: int
    not_finite: tuple[str, ...]
    file: str


def finite_checks(
    batch: Batch, measured: Measured, norm: Tensor, priorities: Tensor
) -> dict[str, Tensor]:
    """By name, one number each that is finite only if all of that kind are; no synchronisation."""
    checks = {
        "output": measured.largest_output,
        "loss": measured.loss,
        "gradient": norm,
        "priority": priorities.amax(),
    }
    if batch.obs.is_floating_point():
        # Beyond what the losses read, observations still enter the input statistics.
        checks["observation"] = batch.obs.abs().amax()
    return checks


class BadBatches:
    """The newest bad batches of one learner, one npz each, for `numpy.load` without pickle."""

    def __init__(self, folder: Path, keep: int, *, prefix: str = "") -> None:
        """prefix: of the file names, which tells the learners of a run apart"""
        self._folder = folder
        self._keep = keep
        self._prefix = prefix

    def save(
        self, batch: Batch, *, update: int, version: int, n_real: int, numbers: Mapping[str, float]
    ) -> str:
        """Returns the file's path; "" if it can't be written, for a full disk stops no learner.

        It holds the columns of the batch, the handles of part i as `handles_<i>_shard`, `_slot` and
        `_generation`, `update`, `version`, `n_real`, and what was measured as `measured_<name>`.
        """
        arrays = _columns(batch) | _handles(batch) | {"n_real": np.asarray(n_real)}
        return self._write(arrays, update, version, numbers)

    def save_text(
        self, batch: TextBatch, *, update: int, version: int, numbers: Mapping[str, float]
    ) -> str:
        """As `save`: `prompt` [B] and `options` [B, A] as texts, `policy` [B, A], `update`,
        `version` of the adapter, and what was measured.
        """
        n_actions = batch.policy.shape[1]
        arrays: dict[str, NDArray[np.generic]] = {
            "prompt": np.array(batch.prompt, dtype=np.str_),
            "options": np.array([row or ("",) * n_actions for row in batch.options], dtype=np.str_),
            "policy": batch.policy.cpu().numpy(),
        }
        return self._write(arrays, update, version, numbers)

    def _write(
        self,
        arrays: dict[str, NDArray[np.generic]],
        update: int,
        version: int,
        numbers: Mapping[str, float],
    ) -> str:
        # Versions grow where update counts repeat after a roll-back.
        path = self._folder / f"{self._prefix}version-{version:010d}-update-{update:010d}.npz"
        temporary = self._folder / f"{_TEMPORARY}{path.name}"
        arrays |= {f"measured_{name}": np.asarray(value) for name, value in numbers.items()}
        arrays |= {"update": np.asarray(update), "version": np.asarray(version)}
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as file:
                np.savez_compressed(file, **arrays)
            os.replace(temporary, path)
            for surplus in sorted(self._folder.glob(f"{self._prefix}version-*.npz"))[: -self._keep]:
                surplus.unlink()
        except OSError as error:
            log.warning("[learner] a bad batch can't be saved: %s", error)
            with suppress(OSError):
                temporary.unlink()
            return ""
        return str(path)


def columns_not_finite(batch: Batch) -> tuple[str, ...]:
    """Names of the batch's columns that hold NaN or infinity; waits for the device."""
    return tuple(
        f"batch.{name}"
        for name, array in _columns(batch).items()
        if array.dtype.kind == "f" and not np.isfinite(array).all()
    )


def _columns(batch: Batch) -> dict[str, NDArray[np.generic]]:
    values = {field.name: getattr(batch, field.name) for field in fields(batch)}
    return {n: value.cpu().numpy() for n, value in values.items() if isinstance(value, Tensor)}


def _handles(batch: Batch) -> dict[str, NDArray[np.generic]]:
    parts = (batch.handles,) if isinstance(batch.handles, Handles) else batch.handles
    arrays: dict[str, NDArray[np.generic]] = {}
    for index, part in enumerate(parts):
        held = part.on_host()
        arrays[f"handles_{index}_shard"] = np.asarray(held.shard)
        arrays[f"handles_{index}_slot"] = held.slot
        arrays[f"handles_{index}_generation"] = held.generation
    return arrays
