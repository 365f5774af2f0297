"""A pretended run on disk, which tests can let grow."""

from __future__ import annotations

import base64
import json
import time
from pathlib import Path

import cv2
import numpy as np
import pytest


class PretendRun:
    """Writes the files of a run as the controller would."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir()
        (path / "config.yaml").write_text("seed: 0\n")

    def append(self, name: str, record: object) -> None:
        with (self.path / name).open("a") as stream:
            stream.write(json.dumps(record) + "\n")

    def metrics(self, step: int, **metrics: object) -> None:
        head = {"timestamp": time.time(), "update": step // 2, "global_step": step}
        self.append("metrics.jsonl", {**head, **metrics})

    def heartbeat(self, **ages_s: float) -> None:
        processes = {
            name.replace("_", "-"): {
                "phase": "collect",
                "state": "suspect" if s > 60 else "healthy",
                "age_s": s,
                "is_stalled": s > 60,
            }
            for name, s in ages_s.items()
        }
        self.append("heartbeat.jsonl", {"timestamp": time.time(), "processes": processes})

    def live(self, prompt: str, prior: list[float] | None = None) -> None:
        _, png = cv2.imencode(".png", np.full((24, 32, 3), 120, np.uint8))
        live = {
            "timestamp": time.time(),
            "frame_png": base64.b64encode(png.tobytes()).decode(),
            "actions": ["stay", "right", "jump"],
            "search": [0.1, 0.7, 0.2],
            "model": [0.3, 0.3, 0.4],
            "prior": prior,
            "value": 1.5,
            "prompt": prompt,
        }
        (self.path / "live.json").write_text(json.dumps(live))

    def finish(self) -> None:
        (self.path / "summary.json").write_text('{"finished": true}')


@pytest.fixture
def empty_run(tmp_path: Path) -> PretendRun:
    return PretendRun(tmp_path / "empty-run")


@pytest.fixture
def run(tmp_path: Path) -> PretendRun:
    run = PretendRun(tmp_path / "demo-run")
    machine = {"rss_mb/learner": 512.0, "wait_percent/learner/sample": 61.0}
    for step in range(0, 100, 10):
        loss = None if step == 50 else 1.0
        run.metrics(step, avg_return=step / 10, loss_total=loss, **machine)
    run.heartbeat(learner=1.0, env_actor_0=130.0)
    run.append("events.jsonl", {"timestamp": 1.0, "event": "child_failed", "child": "learner"})
    run.live("Goomba 3 tiles right <b>bold</b>", prior=[0.2, 0.2, 0.6])
    return run
