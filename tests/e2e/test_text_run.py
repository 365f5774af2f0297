"""A short run on a real text game, with the same loop, search, replay and learner as Mario."""

import json
import os
import shlex
import signal
import threading
import time

import gymnasium
import psutil
import pytest

from actors.envs.textworld_games import find_games
from launch import evaluate, train

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
    assert evaluate.main([str(tmp_path), "--episodes", "2", "--max-steps", "10"]) == 0
    (path,) = (tmp_path / "evaluations").glob("*.json")
    found = json.loads(path.read_text())
    assert {row["stage"] for row in found["rows"]} == {"coin_collector-0"}
    assert all(0.0 <= row["clear_rate"]["value"] <= 1.0 for row in found["rows"])


@pytest.mark.parametrize("mode", ["local", "served"])
def test_a_run_with_ray_does_the_same(tmp_path, cache, mode):
    words = [*SMALL, "--acting.num-actors", "2", "--env.text.cache", cache, "--search.mode", mode]
    assert train.main([*words, "--run-dir", str(tmp_path)]) == 0
    assert {episode["level"] for episode in events(tmp_path, "episode_end")} == {"coin_collector-0"}


def test_too_many_commands_end_the_start_with_the_setting(tmp_path, cache, capsys):
    words = [*SMALL, "--env.text.max-commands", "3", "--env.text.cache", cache]
    with pytest.raises(SystemExit) as stop:
        raise SystemExit(train.main([*words, "--run-dir", str(tmp_path)]))
    assert stop.value.code == 2
    assert "env.text.max_commands is 3" in capsys.readouterr().err


def story_processes() -> list[psutil.Process]:
    children = psutil.Process().children()
    return [c for c in children if any("jericho_child" in word for word in c.cmdline())]


def freeze_story_processes(run_dir) -> None:
    """For good, all at once, when the first episode is over."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if (run_dir / "events.jsonl").exists() and events(run_dir, "episode_end"):
            for child in story_processes():
                os.kill(child.pid, signal.SIGSTOP)
            return
        time.sleep(0.05)


def test_a_jericho_game_that_hangs_costs_an_episode_and_no_more(tmp_path, cache):
    """A file that TextWorld compiled, with given commands: no known game may be in a repository."""
    pytest.importorskip("jericho", reason="needs jericho: EXTRAS=text make setup")
    story = find_games("coin_collector", ["level=2"], [0], cache)[0].story
    given = ("go north", "go east", "go south", "go west", "take coin", "look")
    settings = {"game": str(story), "commands": given, "max_commands": 20, "limit_s": 2.0}
    if "Test/Story-v0" not in gymnasium.registry:
        gymnasium.register(
            "Test/Story-v0", entry_point="actors.envs.jericho_env:JerichoEnv", kwargs=settings
        )
    stopper = threading.Thread(target=freeze_story_processes, args=(tmp_path,))
    stopper.start()
    words = [*SMALL, "--runtime", "serial", "--env", "Test/Story-v0", "--run-dir", str(tmp_path)]
    assert train.main([*words, "--total-env-steps", "400"]) == 0
    stopper.join()
    reasons = [episode["reason"] for episode in events(tmp_path, "episode_end")]
    # One of each game that was playing; those that started anew went on to their ends.
    assert reasons.count("hung") == 2
    assert reasons[-1] == "truncated"
