"""The process that owns published weights, and the clients of the learner and of acting.

The server puts the value into the object store itself, so that the object's owner is the server:
when the learner dies, everybody can still pull. Without Ray the same server holds plain values.
"""

from __future__ import annotations

import os

import ray
from ray.actor import ActorHandle
from ray.exceptions import GetTimeoutError, RayError, RayTaskError

from learner.weights import N_KEPT_VERSIONS, NO_VERSION, Weights, require_newer

PULL_TIMEOUT_S = 30.0  # a pull of a few MB takes milliseconds; this long means a lost node
PUSH_TIMEOUT_S = 60.0


class WeightServerActor:
    """Keeps the last two versions; one caller at a time."""

    def __init__(self) -> None:
        self._kept: list[tuple[int, object]] = []  # (version, ObjectRef or Weights)

    def push(self, weights: Weights) -> None:
        """Take over `weights`; ValueError unless they are newer than all before."""
        require_newer(weights.version, self.version())
        held = ray.put(weights) if ray.is_initialized() else weights
        self._kept = [*self._kept, (weights.version, held)][-N_KEPT_VERSIONS:]

    def pull_if_newer(self, version: int) -> tuple[int, list[object]] | None:
        """(newest version, [reference to its Weights]) if newer than `version`, else None.

        The list keeps Ray from fetching the value on the way; without Ray it holds the value.
        """
        return (self.version(), [self._kept[-1][1]]) if self.version() > version else None

    def version(self) -> int:
        """Newest version held, NO_VERSION while empty."""
        return self._kept[-1][0] if self._kept else NO_VERSION

    def ping(self) -> int:
        """The process id; an answer means the constructor has finished."""
        return os.getpid()


class LocalWeightLink:
    """Source and sink over a server object in this process."""

    def __init__(self, server: WeightServerActor) -> None:
        self._server = server

    def push(self, weights: Weights) -> None:
        self._server.push(weights)

    def pull_if_newer(self, version: int) -> Weights | None:
        found = self._server.pull_if_newer(version)
        if found is None:
            return None
        weights = found[1][0]
        assert isinstance(weights, Weights), type(weights)
        return weights

    def published_version(self) -> int:
        return self._server.version()


class RayWeightSource:
    """Pulls from the server; while it can't be reached, callers keep the weights they have.

    server: its handle, or its name in the run's Ray namespace, since an actor that Ray restarts
    should have no handles among its arguments
    """

    def __init__(self, server: ActorHandle | str, timeout_s: float = PULL_TIMEOUT_S) -> None:
        self._server = server
        self._timeout_s = timeout_s
        self.n_failures = 0  # pulls that got no answer

    def pull_if_newer(self, version: int) -> Weights | None:
        """Newest weights if newer than `version`; None also when the server gives no answer."""
        try:
            if isinstance(self._server, str):
                self._server = ray.get_actor(self._server)
            found = ray.get(self._server.pull_if_newer.remote(version), timeout=self._timeout_s)
            if found is None:
                return None
            weights = ray.get(found[1][0], timeout=self._timeout_s)
        except RayTaskError:
            raise  # the server's own error is a defect, not an outage
        except (RayError, GetTimeoutError):
            self.n_failures += 1
            return None
        return weights if weights.version > version else None


class RayWeightSink:
    """Publishes to the server; a push without an answer is counted, the next one replaces it."""

    def __init__(self, server: ActorHandle, timeout_s: float = PUSH_TIMEOUT_S) -> None:
        self._server = server
        self._timeout_s = timeout_s
        self.n_failures = 0  # pushes that got no answer

    def push(self, weights: Weights) -> None:
        """Wait until the server owns `weights`; one publication is in flight at most."""
        try:
            ray.get(self._server.push.remote(weights), timeout=self._timeout_s)
        except RayTaskError:
            raise
        except (RayError, GetTimeoutError):
            self.n_failures += 1

    def published_version(self) -> int:
        """Newest version at the server; NO_VERSION when it is empty or gives no answer."""
        try:
            return ray.get(self._server.version.remote(), timeout=self._timeout_s)
        except RayTaskError:
            raise
        except (RayError, GetTimeoutError):
            self.n_failures += 1
            return NO_VERSION
