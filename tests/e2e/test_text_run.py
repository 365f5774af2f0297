"""A short run on a real text game, with the same loop, search, replay and learner as Mario."""

import json
import shlex

import pytest

from launch import train

pytest.importorskip("textworld", reason="needs TextWorld: EXTRAS=text make setup")
SMALL = shlex.split(
    """--preset textworld --device cpu --envs-per-actor 2 --env.text.options level=2
    --acting.segment-length 10 --acting.collect-steps 8 --simulations 4 --total-env-steps 160
    --replay.min-positions 40 --learner.batch-size 8 --limiter.samples-per-insert 2
    --control.updates-per-call 2 --learner.publish-every 4 --evaluation.every-env-steps 80
    --evaluation.n-episodes 1 --evaluation.final-episodes 1 --control.checkpoint-every-env-steps 80
    """
)


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> str:
    return str(tmp_path_factory.mktemp("games"))


def events(folder, kind: str) -> list[dict]:
    lines = (folder / "events.jsonl").read_text().splitlines()
    return [event for event in map(json.loads, lines) if event["event"] == kind]


def test_a_run_collects_learns_resumes_and_evaluates(tmp_path, cache):
    words = [*SMALL, "--runtime", "serial", "--run-dir", str(tmp_path), "--env.text.cache", cache]
    assert train.main(words) == 0
    episodes = events(tmp_path, "episode_end")
    assert episodes
    assert {episode["level"] for episode in episodes} == {"coin_collector-0"}
    assert {episode["reason"] for episode in episodes} <= {"won", "truncated"}
    assert train.main([*words, "--total-env-steps", "240"]) == 0  # goes on from its checkpoint
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["global_step"] >= 240
    assert len(events(tmp_path, "evaluation")) >= 2


def test_a_run_with_ray_does_the_same(tmp_path, cache):
    words = [*SMALL, "--acting.num-actors", "2", "--env.text.cache", cache]
    assert train.main([*words, "--run-dir", str(tmp_path)]) == 0
    assert {episode["level"] for episode in events(tmp_path, "episode_end")} == {"coin_collector-0"}


def test_too_many_commands_end_the_start_with_the_setting(tmp_path, cache, capsys):
    words = [*SMALL, "--env.text.max-commands", "3", "--env.text.cache", cache]
    with pytest.raises(SystemExit) as stop:
        raise SystemExit(train.main([*words, "--run-dir", str(tmp_path)]))
    assert stop.value.code == 2
    assert "env.text.max_commands is 3" in capsys.readouterr().err
