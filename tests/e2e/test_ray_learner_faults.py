"""A run of Ray processes whose learner gets too little memory, then spoilt weights."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
LIMIT_S = 400
RUN = shlex.split(
    """launch/train.py --preset cartpole --device cpu --simulations 6 --num-actors 1
    --acting.segment-length 10 --acting.collect-steps 8 --replay.min-positions 40
    --learner.batch-size 16 --limiter.samples-per-insert 8 --evaluation.every-env-steps 100000
    --evaluation.final-episodes 1 --control.checkpoint-every-env-steps 150
    --control.log-period-s 1 --total-env-steps 500 --auto-memory true
    --control.bad-updates-before-rollback 4 --learner.publish-every 10"""
)
# Checkpoints come near updates 16, 88 and 160; one amid the bad updates would go back before them.
# Python runs this as every process starts; it changes the learner's module where it is imported.
FAULTS = """
import importlib.util, sys

class Faults:
    def find_spec(self, name, path, target=None):
        if name != "learner.learner":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        load = spec.loader.exec_module
        spec.loader.exec_module = lambda module: (load(module), install(module))
        return spec

def install(module):
    import torch
    gradients, update, spoilt = module.LocalGradients, module.Learner.update, []
    predict = gradients._predict

    def starved_predict(self, batch, n_real):
        if len(batch) > 8:
            raise torch.OutOfMemoryError("CUDA out of memory (by a test)")
        return predict(self, batch, n_real)

    def spoilt_update(self, batch):
        if self.updates == 110 and not spoilt:
            spoilt.append(True)
            with torch.no_grad():
                self.model.latent_in.weight[0, 0] = torch.nan
        return update(self, batch)

    gradients._predict, module.Learner.update = starved_predict, spoilt_update

sys.meta_path.insert(0, Faults())
"""


def test_the_run_steps_down_goes_back_and_ends_well(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(FAULTS)
    run_dir = tmp_path / "run"
    paths = os.pathsep.join((str(tmp_path), str(ROOT)))
    result = subprocess.run(
        [sys.executable, *RUN, "--run-dir", str(run_dir)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": paths, "RAY_AUTH_MODE": "disabled"},
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    events = [json.loads(line) for line in (run_dir / "events.jsonl").read_text().splitlines()]
    (down,) = [e for e in events if e["event"] == "memory_step_down"]
    assert down["change"] == "learner.accumulate 1 -> 2"
    config = yaml.safe_load((run_dir / "config.yaml").read_text())
    assert config["learner"]["accumulate"] == 2
    (back,) = [e for e in events if e["event"] == "rolled_back"]
    skipped = [e for e in events if e["event"] == "update_skipped"]
    # Three are too few to act on; then the calls in flight count, two of 8 updates each.
    assert skipped[0]["update"] == 110 and 4 <= len(skipped) <= 3 + 2 * 8
    assert [Path(e["file"]).is_file() for e in skipped] == [True] + [False] * (len(skipped) - 1)
    records = [json.loads(x) for x in (run_dir / "metrics.jsonl").read_text().splitlines()]
    versions = [r["weight_version"] for r in records if r["weight_version"] >= 0]
    assert records[-1]["rollbacks"] == 1 and records[-1]["skipped_total"] == len(skipped)
    assert versions == sorted(versions) and versions[-1] >= back["weight_version"]
    assert "Traceback" not in result.stderr
