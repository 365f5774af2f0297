"""How far the environments of a run are built, for people who wait for them."""

from __future__ import annotations

from collections.abc import Callable

from launch.control.child_health import State

ENV_ACTOR = "env-actor-"


class Construction:
    """Owned by the reporter. An env actor makes all its environments before it first answers."""

    def __init__(self, n_actors: int, envs_per_actor: int, clock: Callable[[], float]) -> None:
        self._n_envs = n_actors * envs_per_actor
        self._envs_per_actor = envs_per_actor
        self._clock = clock
        self._created_at = clock()
        self._began_at: dict[str, float] = {}  # by env actor that has not answered yet
        self._seen: set[str] = set()
        self._built: set[str] = set()  # env actors that have answered at least once

    def begun(self) -> str:
        """The first line; env actors are about to be started."""
        return f"{self._count()} ..."

    def changed(self, child: str, state: str) -> str | None:
        """A line for people, if `child` is done with making its environments."""
        if not child.startswith(ENV_ACTOR):
            return None
        now = self._clock()
        if state == State.STARTING:
            # The first ones were started before they were told of.
            self._began_at[child] = now if child in self._seen else self._created_at
            self._seen.add(child)
            return None
        began_at = self._began_at.pop(child, None)
        if state != State.HEALTHY or began_at is None:
            return None
        again = " again" if child in self._built else ""
        self._built.add(child)
        return f"{self._count()}, {child}{again} after {now - began_at:.1f} s"

    def _count(self) -> str:
        n_built = len(self._built) * self._envs_per_actor
        return f"[env] constructing {n_built}/{self._n_envs}"
