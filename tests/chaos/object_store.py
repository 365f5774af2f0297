"""What Ray's object store says of itself, asked from outside the run that it belongs to."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import grpc
import psutil
from ray._private import internal_api
from ray._private.state import GlobalState
from ray._raylet import GcsClientOptions

ANSWER_LIMIT_S = 5.0
GCS_ADDRESS = re.compile(r"--gcs-address=(\S+)")


@dataclass(frozen=True, slots=True)
class StoreFigures:
    """`spilled` since Ray started, the others now."""

    used_bytes: int
    n_objects: int
    spilled_bytes: int


class ObjectStore:
    """The store of the Ray that a run has started on this machine."""

    def __init__(self, driver_pid: int) -> None:
        """ValueError if no raylet runs below the driver."""
        self._state = _state_of(driver_pid)
        self._last = StoreFigures(0, 0, 0)

    def figures(self) -> StoreFigures:
        """Those of before while Ray waits for a worker that is stopped; `spilled` misses nothing,
        since it is a total.
        """
        try:
            reply = internal_api.get_memory_info_reply(self._state, timeout_seconds=ANSWER_LIMIT_S)
        except grpc.RpcError:
            return self._last
        stats: Any = reply.store_stats
        self._last = StoreFigures(
            used_bytes=stats.object_store_bytes_used,
            n_objects=stats.num_local_objects,
            spilled_bytes=stats.spilled_bytes_total,
        )
        return self._last


def actors_of(driver_pid: int) -> list[dict[str, Any]]:
    """Those that live in the Ray that this driver has started, in Ray's words."""
    table = _state_of(driver_pid).actor_table(None, None, None)
    return [actor for actor in table.values() if actor["State"] == "ALIVE"]


def _state_of(driver_pid: int) -> GlobalState:
    # Ray's own call for this would look for 127.0.0.1 at the machine's other address.
    state = GlobalState()
    state._initialize_global_state(
        GcsClientOptions.create(
            _gcs_address(driver_pid),
            None,
            allow_cluster_id_nil=True,
            fetch_cluster_id_if_nil=False,
        )
    )
    return state


def _gcs_address(driver_pid: int) -> str:
    for process in psutil.Process(driver_pid).children(recursive=True):
        if process.name() == "raylet":
            found = GCS_ADDRESS.search(" ".join(process.cmdline()))
            if found:
                return found[1]
    raise ValueError(f"no raylet runs below process {driver_pid}")
