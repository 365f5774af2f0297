"""What Ray's object store says of itself, asked from inside the cluster."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

PERIOD_S = 5.0
ANSWER_LIMIT_S = 2.0  # Ray does not answer while it waits for a worker that is stopped


class SpillReader:
    """Asks seldom and never fails; used inside an actor of Ray, or in a process without it."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._asked_at = float("-inf")
        self._last: int | None = None

    def bytes(self) -> int | None:
        """Moved to disk since Ray started, on all nodes; that of before while there is no answer,
        None without Ray.
        """
        now = self._clock()
        if now - self._asked_at >= PERIOD_S:
            self._asked_at = now
            self._last = _spilled_bytes(self._last)
        return self._last


def _spilled_bytes(before: int | None) -> int | None:
    if "ray" not in sys.modules:  # `--runtime serial` works without it
        return None
    import grpc
    import ray
    from ray._private import internal_api
    from ray._private.state import state

    if not ray.is_initialized():
        return None
    here = ray.get_runtime_context().get_node_id()
    for node in ray.nodes():
        if node["NodeID"] == here:
            address, port = node["NodeManagerAddress"], node["NodeManagerPort"]
            try:
                reply = internal_api.get_memory_info_reply(
                    state, address, port, timeout_seconds=ANSWER_LIMIT_S
                )
            except grpc.RpcError:
                return before
            return int(reply.store_stats.spilled_bytes_total)
    return before
