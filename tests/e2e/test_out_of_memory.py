"""Serial runs whose learner or env actors get too little memory: a ladder down, or a clear end."""

from __future__ import annotations

import json
import shlex
import weakref
from pathlib import Path

import pytest
import torch
import yaml

from actors.env_actor import EnvActor
from launch import train
from launch.control import memory_ladder
from learner.gradients import LocalGradients
from learner.learner import Learner

SMALL = shlex.split(
    """--preset cartpole --runtime serial --device cpu --envs-per-actor 2 --acting.num-actors 1
    --acting.segment-length 10 --acting.collect-steps 8 --simulations 4 --total-env-steps 120
    --replay.min-positions 40 --learner.batch-size 16 --limiter.samples-per-insert 4
    --control.updates-per-call 2 --evaluation.every-env-steps 10000
    --evaluation.final-episodes 1 --control.checkpoint-every-env-steps 60
    """
)
CUDA = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
CPU = RuntimeError(
    "[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: "
    "you tried to allocate 68719476736 bytes. Error code 12 (Cannot allocate memory)"
)


def run(folder: Path, *extra: str) -> int:
    return train.main([*SMALL, "--run-dir", str(folder), *extra])


def steps_down(folder: Path) -> list[str]:
    lines = (folder / "events.jsonl").read_text().splitlines()
    events = [e for e in map(json.loads, lines) if e["event"] == "memory_step_down"]
    return [e["change"] for e in events]


def saved_config(folder: Path) -> dict:
    return yaml.safe_load((folder / "config.yaml").read_text())


@pytest.fixture
def limit_learner(monkeypatch):
    """From update `begin` on, a pass over more than `most` samples finds too little memory."""

    def install(most: int, error: BaseException, begin: int = 0) -> None:
        real, real_update, n_updates = LocalGradients._predict, Learner.update, 0

        def update(learner, batch):
            nonlocal n_updates
            n_updates = learner.updates
            return real_update(learner, batch)

        def predict(gradients, batch, n_real):
            if len(batch) > most and n_updates >= begin:
                raise error
            return real(gradients, batch, n_real)

        monkeypatch.setattr(Learner, "update", update)
        monkeypatch.setattr(LocalGradients, "_predict", predict)

    return install


@pytest.mark.parametrize("error", [CUDA, CPU, MemoryError()], ids=["cuda", "cpu", "python"])
def test_a_learner_steps_down_and_the_same_command_stays_there(tmp_path, limit_learner, error):
    limit_learner(4, error)
    folder = tmp_path / "run"
    assert run(folder, "--auto-memory", "true") == 0
    wanted = ["learner.accumulate 1 -> 2", "learner.accumulate 2 -> 4"]
    assert steps_down(folder) == wanted
    learner = saved_config(folder)["learner"]
    assert (learner["accumulate"], learner["batch_size"]) == (4, 16)
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["finished"] and summary["updates"] > 10
    assert run(folder, "--auto-memory", "true", "--total-env-steps", "180") == 0
    assert steps_down(folder) == wanted
    assert saved_config(folder)["learner"]["accumulate"] == 4


def test_a_smaller_attempt_has_the_memory_of_the_one_before(tmp_path, monkeypatch):
    """In one process too, where nothing but the collector of cycles lets go of it."""
    learners: list[weakref.ref[Learner]] = []
    n_alive: list[int] = []
    real_init, real = Learner.__init__, LocalGradients._predict

    def init(learner, *args):
        n_alive.append(sum(earlier() is not None for earlier in learners))
        learners.append(weakref.ref(learner))
        real_init(learner, *args)

    def predict(gradients, batch, n_real):
        if len(batch) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return real(gradients, batch, n_real)

    monkeypatch.setattr(Learner, "__init__", init)
    monkeypatch.setattr(LocalGradients, "_predict", predict)
    assert run(tmp_path / "run", "--auto-memory", "true") == 0
    assert n_alive == [0, 0, 0]


def test_after_the_parts_the_batch_gets_smaller(tmp_path, monkeypatch):
    real = Learner.update

    def update(learner, batch):
        if len(batch) > 2:
            raise CUDA
        return real(learner, batch)

    monkeypatch.setattr(Learner, "update", update)
    folder = tmp_path / "run"
    assert run(folder, "--auto-memory", "true", "--learner.batch-size", "4") == 0
    assert steps_down(folder) == [
        "learner.accumulate 1 -> 2",
        "learner.accumulate 2 -> 4",
        "learner.batch_size 4 -> 2",
    ]
    assert saved_config(folder)["learner"]["batch_size"] == 2


@pytest.mark.parametrize("where", ["__init__", "collect"])
def test_env_actors_play_fewer_games_at_once(tmp_path, monkeypatch, where):
    real_init, real = EnvActor.__init__, getattr(EnvActor, where)
    sizes: dict[int, int] = {}

    def init(actor, **settings):
        sizes[id(actor)] = settings["acting"].envs_per_actor
        if where == "__init__" and sizes[id(actor)] > 1:
            raise CPU
        real_init(actor, **settings)

    def collect(actor, *args):
        if sizes[id(actor)] > 1:
            raise MemoryError
        return real(actor, *args)

    monkeypatch.setattr(EnvActor, "__init__", init)
    if where == "collect":
        monkeypatch.setattr(EnvActor, "collect", collect)
    folder = tmp_path / "run"
    assert run(folder, "--auto-memory", "true", "--envs-per-actor", "4") == 0
    changes = [f"acting.envs_per_actor {a} -> {b}" for a, b in ((4, 2), (2, 1))]
    assert steps_down(folder) == changes
    assert saved_config(folder)["acting"]["envs_per_actor"] == 1


def test_without_the_flag_the_message_names_it_and_the_settings(tmp_path, limit_learner, capsys):
    limit_learner(4, CUDA)
    assert run(tmp_path / "run") == 1
    text = capsys.readouterr().err
    for words in ("--auto-memory", "learner.accumulate", "learner.batch_size", "CUDA out of"):
        assert words in text
    assert steps_down(tmp_path / "run") == []


def test_env_actors_that_cannot_start_name_their_setting(tmp_path, monkeypatch, capsys):
    def init(actor, **settings):
        raise CPU

    monkeypatch.setattr(EnvActor, "__init__", init)
    assert run(tmp_path / "run") == 1
    text = capsys.readouterr().err
    assert "acting.envs_per_actor" in text and "--auto-memory" in text


def test_a_run_that_did_fit_is_not_made_smaller(tmp_path, limit_learner, monkeypatch):
    monkeypatch.setattr(memory_ladder, "FIRST_UPDATES", 4)
    limit_learner(4, CUDA, begin=8)
    assert run(tmp_path / "run", "--auto-memory", "true") == 1
    assert steps_down(tmp_path / "run") == []


def test_at_the_foot_of_the_ladder_the_run_ends(tmp_path, limit_learner, capsys):
    limit_learner(0, CUDA)
    assert run(tmp_path / "run", "--auto-memory", "true", "--learner.batch-size", "2") == 1
    assert steps_down(tmp_path / "run") == [
        "learner.accumulate 1 -> 2",
        "learner.batch_size 2 -> 1",
    ]
    assert "learner" in capsys.readouterr().err
