"""GPUs that were there and are not any more, and learning that fell back to the CPU."""

from __future__ import annotations

from collections.abc import Mapping

from launch.monitoring.json_lines import Scalar

Fields = dict[str, Scalar]


class GpuAlarm:
    """Owned by the reporter."""

    def __init__(self) -> None:
        self._most_seen = 0
        self._n_missing = 0

    def look(self, sample: Mapping[str, Scalar]) -> tuple[str, Fields] | None:
        """An event with its fields, if the number of GPUs in `sample` is another than before."""
        now = sample.get("gpu_count")
        if not isinstance(now, int | float):
            now = 0
        self._most_seen = max(self._most_seen, int(now))
        before, self._n_missing = self._n_missing, self._most_seen - int(now)
        if self._n_missing == before:
            return None
        kind = "gpu_lost" if self._n_missing > before else "gpu_back"
        cause = str(sample.get("gpu_missing_reason") or "")
        return kind, {"gpus": int(now), "missing": self._n_missing, "cause": cause}

    def figures(self) -> dict[str, float]:
        return {"gpus_missing": float(self._n_missing)}


def why_fallen_back(
    wanted: str, device: str, *, n_gpus: int | None, was_on_gpu: bool
) -> str | None:
    """Why the CPU, chosen by itself, is not what one would expect; None if it is.

    n_gpus: that the driver shows; was_on_gpu: this run, when it last wrote a record
    """
    if wanted != "auto" or device != "cpu":
        return None
    if was_on_gpu:
        return "the run learned on a GPU before, and PyTorch sees none now"
    if n_gpus:
        return f"{n_gpus} GPU{'s' * (n_gpus > 1)} of this machine can't be used by PyTorch"
    return None
