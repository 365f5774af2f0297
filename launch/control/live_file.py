"""`live.json`: the newest pictures of environments, as the live page shows them."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable, Sequence
from math import inf
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from actors.live_view import EnvView
from actors.search.tree_picture import TreePicture
from launch.control.whole_file import replace_file

LIVE_VIEW_FILE = "live.json"
LIVE_VIEW_PERIOD_S = 1.0
FORGOTTEN_AFTER_S = 60.0  # an environment that is shown no more, or whose actor is gone


class LiveFile:
    """Owned by the reporter. Written once a period at most, however many actors show something."""

    def __init__(self, run_dir: Path, clock: Callable[[], float]) -> None:
        self._path = run_dir / LIVE_VIEW_FILE
        self._clock = clock
        self._written_at = -inf
        self._shown: dict[tuple[int, int], tuple[float, dict[str, object]]] = {}

    def add(self, actor: int, views: Sequence[EnvView]) -> None:
        """`views` of one env actor. Raises OSError where they can't be written."""
        now = self._clock()
        for view in views:
            self._shown[actor, view.env_id] = now, _content(actor, view)
        if views and now - self._written_at >= LIVE_VIEW_PERIOD_S:
            self._written_at = now
            self._write(now)

    def _write(self, now: float) -> None:
        for key, (at, _) in list(self._shown.items()):
            if now - at > FORGOTTEN_AFTER_S:
                del self._shown[key]
        shown = [content for _, (_, content) in sorted(self._shown.items(), key=lambda e: e[0])]
        content = {"timestamp": time.time(), "environments": shown}
        replace_file(self._path, json.dumps(content).encode())


def _content(actor: int, view: EnvView) -> dict[str, object]:
    frame = view.frame_png
    return {
        "timestamp": time.time(),
        "actor": actor,
        "env": view.env_id,
        "level": view.level,
        "frame_png": None if frame is None else base64.b64encode(frame).decode(),
        "prompt": view.prompt,
        "llm_text": view.llm_text,
        "actions": list(view.actions),
        "n_actions": view.n_actions,
        "chosen": _place(view),
        "search": _numbers(view.search_policy),
        "model": _numbers(view.model_policy),
        "prior": None if view.llm_prior is None else _numbers(view.llm_prior),
        "value": _number(view.root_value),
        "length": view.length,
        "total_reward": _number(view.total_reward),
        "path": {
            "every": view.path.every,
            "value": _numbers(view.path.value),
            "total_reward": _numbers(view.path.total_reward),
        },
        "tree": None if view.tree is None else _tree(view.tree, view.tree_actions),
    }


def _place(view: EnvView) -> int:
    """Of the move about to be played among the actions shown; -1 if it is not one of them."""
    found = np.flatnonzero(view.indices == view.chosen)
    return int(found[0]) if len(found) else -1


def _tree(tree: TreePicture, actions: Sequence[str]) -> dict[str, object]:
    return {
        "parent": tree.parent.tolist(),
        "action": list(actions),
        "visits": tree.visits.tolist(),
        "value": _numbers(tree.value),
        "prior": _numbers(tree.prior),
        "n_nodes": tree.n_nodes,
    }


def _numbers(values: NDArray[np.floating]) -> list[float | None]:
    return [_number(value) for value in values.tolist()]


def _number(value: float) -> float | None:
    """JSON has no form for what is not finite."""
    return round(value, 4) if np.isfinite(value) else None
