"""The serial runtime: whole runs in this process, equal bit for bit under one seed."""

import hashlib
import json
import re
import shlex
from itertools import pairwise
from pathlib import Path

import pytest

from launch import evaluate, status, train
from launch.config import parse
from launch.control.pacing import make_limiter
from tests.monitoring.metrics_page import documented, undocumented

SMALL = shlex.split(
    """--preset cartpole --runtime serial --device cpu --envs-per-actor 2 --acting.num-actors 2
    --acting.segment-length 10 --acting.collect-steps 8 --simulations 6 --total-env-steps 240
    --replay.min-positions 40 --learner.batch-size 16 --limiter.samples-per-insert 4
    --control.updates-per-call 2 --learner.publish-every 4 --evaluation.every-env-steps 120
    --evaluation.n-episodes 1 --evaluation.final-episodes 2 --control.checkpoint-every-env-steps 120
    """
)


def run(folder: Path, *extra: str) -> int:
    return train.main([*SMALL, "--run-dir", str(folder), *extra])


def content_hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of the newest checkpoint that holds learned or collected state."""
    latest = folder / "checkpoints" / (folder / "checkpoints" / "LATEST").read_text().strip()
    files = sorted(p for part in ("learner", "replay") for p in (latest / part).rglob("*.*"))
    assert files
    return {str(p.relative_to(latest)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def events(folder: Path, kind: str) -> list[dict]:
    lines = (folder / "events.jsonl").read_text().splitlines()
    return [e for e in map(json.loads, lines) if e["event"] == kind]


def metrics(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def without_time(rows: list[dict]) -> list[dict]:
    return [{k: v for k, v in row.items() if k != "timestamp"} for row in rows]


@pytest.mark.parametrize("mode", ["local", "served"])
def test_one_seed_gives_one_run_and_another_seed_another(tmp_path, mode):
    for name in ("a", "b"):
        assert run(tmp_path / name, "--seed", "3", "--search.mode", mode) == 0
    assert run(tmp_path / "c", "--seed", "4", "--search.mode", mode) == 0
    first, second, other = (content_hashes(tmp_path / name) for name in "abc")
    assert first == second
    assert first != other
    for kind in ("episode_end", "evaluation"):
        rows = [without_time(events(tmp_path / name, kind)) for name in "ab"]
        assert rows[0] == rows[1]
        assert rows[0]


@pytest.mark.parametrize("mode", ["local", "served"])
def test_reanalysis_reaches_the_wanted_share_and_repeats(tmp_path, mode):
    reanalysis = ["--reanalysis.share", "0.5", "--reanalysis.segments-per-call", "1"]
    more = ["--total-env-steps", "480", "--search.mode", mode, "--control.log-period-s", "0.01"]
    for name in ("a", "b"):
        assert run(tmp_path / name, *reanalysis, *more) == 0
    assert run(tmp_path / "without", *more) == 0
    first, second, without = (content_hashes(tmp_path / n) for n in ("a", "b", "without"))
    assert first == second
    assert first != without
    records = metrics(tmp_path / "a")
    shares = [r["reanalysed_share"] for r in records if r.get("reanalysed_share") is not None]
    settled = shares[len(shares) // 3 :]
    # Samples of 32 positions a call: the mean over the calls has a standard error below 0.03.
    assert 0.4 < sum(settled) / len(settled) < 0.65, shares
    last = records[-1]
    assert last["reanalysis_segments_total"] > 0
    assert last["replay_patch_applied_total"] > 0
    assert last["replay_patch_invalid_total"] == last["reanalysis_failed_total"] == 0
    assert not any(name.startswith("reanalysis_") for name in metrics(tmp_path / "without")[-1])
    assert metrics(tmp_path / "without")[-1]["reanalysed_share"] == 0.0
    written = {name for record in records for name in record}
    assert not undocumented(written)
    assert ("search_served_batches" in written) == (mode == "served")


def test_a_run_leaves_everything_a_user_looks_for(tmp_path, capsys):
    folder = tmp_path / "run"
    assert run(folder) == 0
    assert f"tensorboard --logdir {folder / 'tensorboard'}" in capsys.readouterr().out
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["finished"]
    assert summary["env_steps"] >= 240
    assert summary["updates"] > 20
    records = metrics(folder)
    assert records[-1]["global_step"] == summary["env_steps"]
    assert records[-1]["loss_total"] is not None
    assert list((folder / "tensorboard").glob("events.*"))
    assert (folder / "config.yaml").is_file()
    assert len(events(folder, "evaluation")) >= 2
    versions = [e["weight_version"] for e in events(folder, "evaluation")]
    assert versions == sorted(versions)


def test_mario_with_a_language_model_repeats_too(tmp_path):
    mario = shlex.split(
        """--preset mario-quick --runtime serial --device cpu --envs-per-actor 2
        --acting.num-actors 1 --acting.segment-length 8 --acting.collect-steps 16 --simulations 4
        --total-env-steps 96 --replay.min-positions 16 --replay.capacity-mb 50
        --learner.batch-size 8 --limiter.samples-per-insert 1 --control.updates-per-call 2
        --evaluation.every-env-steps 1000 --evaluation.final-episodes 1 --evaluation.max-steps 8
        --schedule.wm-train-freq 4 --schedule.llm-train-freq 1
        --language.publish-every 1 --language.batch-size 4 --language.micro-batch-size 4
        --reanalysis.share 0.5 --learner.publish-every 2"""
    )
    for name in ("a", "b"):
        assert train.main([*mario, "--run-dir", str(tmp_path / name)]) == 0
    assert content_hashes(tmp_path / "a") == content_hashes(tmp_path / "b")
    records = metrics(tmp_path / "a")
    last = records[-1]
    assert max(r.get("reanalysis_prior_share", 0.0) for r in records) > 0
    assert last["prior_sent_total"] > 0
    assert last["prior_fallback_total"] == 0
    published = events(tmp_path / "a", "adapter_published")
    assert published
    assert all(e["accepted"] for e in published)
    assert list((tmp_path / "a" / "videos").glob("*.mp4"))
    _evaluates_stage_by_stage(tmp_path / "a")


def _evaluates_stage_by_stage(folder: Path) -> None:
    """With the run's language model, on a stage that it was not trained on too."""
    words = ["--episodes", "1", "--max-steps", "3", "--simulations", "2", "--stages", "1-1", "1-2"]
    assert evaluate.main([str(folder), *words]) == 0
    (path,) = (folder / "evaluations").glob("*.json")
    found = json.loads(path.read_text())
    assert found["prior"] is True
    assert [row["stage"] for row in found["rows"]] == ["1-1", "1-2", "all"] * 4
    assert all(row["clear_rate"]["value"] == 0.0 for row in found["rows"])
    assert all(row["max_x"]["value"] >= 40 for row in found["rows"])


MARIO = """--preset mario-quick --runtime serial --device cpu --envs-per-actor 2
    --acting.num-actors 1 --acting.segment-length 8 --acting.collect-steps 16 --simulations 4
    --total-env-steps 128 --replay.min-positions 16 --replay.capacity-mb 50
    --learner.batch-size 8 --limiter.samples-per-insert 2 --control.updates-per-call 2
    --evaluation.every-env-steps 1000 --evaluation.final-episodes 1 --evaluation.max-steps 8
    --language.publish-every 1 --language.batch-size 4 --language.micro-batch-size 4
    --schedule.wm-train-freq 4 --schedule.llm-train-freq 2 --schedule.wm-update-iters 6
    --schedule.llm-update-iters 4"""


@pytest.mark.parametrize(
    ("schedule", "order"),
    [
        # (world-model updates so far, language-model updates of the call)
        ("parallel", [(8, 2), (12, 2), (16, 2), (20, 2)]),
        ("sequential", [(4, 2), (8, 2), (12, 2), (16, 2)]),
        ("alternating", [(6, 2), (6, 2), (12, 2), (12, 2), (18, 2), (18, 2)]),
    ],
)
def test_models_learn_in_the_order_of_the_schedule(tmp_path, schedule, order):
    folder = tmp_path / "run"
    arguments = [*shlex.split(MARIO), "--run-dir", str(folder), "--schedule.name", schedule]
    assert train.main(arguments) == 0
    trained = events(folder, "language_trained")
    assert [(e["world_model_updates"], e["n_updates"]) for e in trained][: len(order)] == order
    assert [e["updates"] for e in trained] == list(range(2, 2 * len(trained) + 1, 2))
    phases = [e["phase"] for e in events(folder, "schedule_phase")]
    assert phases == ([] if schedule == "parallel" else ["llm", "wm"] * len(phases))[: len(phases)]
    assert (not phases) == (schedule == "parallel")


def batches_due_at_the_last_collect(folder, degree: int) -> float:
    """How many batches of 8 samples, at 2 samples a position, learning was behind by then."""
    arguments = [*shlex.split(MARIO), "--run-dir", str(folder), "--control.log-period-s", "0.001"]
    arguments += ["--schedule.off-policy-degree", str(degree), "--language.enabled", "false"]
    assert train.main(arguments) == 0
    records = metrics(folder)
    assert records[-1]["update"] == 32
    (before, after), *_ = (
        (a, b) for a, b in pairwise(records) if b["global_step"] == 128 > a["global_step"]
    )
    error_min = make_limiter(parse(arguments)[1]).error_min
    return (2 * before["replay_push_total"] - 8 * after["update"] - error_min) / 8


def test_play_is_ahead_of_learning_by_no_more_than_it_may(tmp_path):
    behind = {d: batches_due_at_the_last_collect(tmp_path / str(d), d) for d in (0, 12)}
    assert behind[0] < 2, "a train call of two batches could have been made"
    assert 2 <= behind[12] <= 12, behind


def test_a_run_that_was_too_short_to_learn_says_so(tmp_path, capsys):
    assert run(tmp_path / "short", "--total-env-steps", "40") == 0
    said = " ".join(capsys.readouterr().out.split())
    n_positions = int(metrics(tmp_path / "short")[-1]["replay_positions"])
    assert n_positions < 40
    assert f"nothing was learned: replay holds {n_positions} positions, and" in said
    assert "replay.min_positions=40; raise total_env_steps=40" in said


def test_the_same_command_goes_on_from_the_checkpoint(tmp_path):
    folder = tmp_path / "run"
    assert run(folder, "--total-env-steps", "120") == 0
    before = json.loads((folder / "summary.json").read_text())
    assert run(folder, "--total-env-steps", "240") == 0
    after = json.loads((folder / "summary.json").read_text())
    assert after["env_steps"] >= 240 > before["env_steps"]
    assert after["updates"] > before["updates"]
    assert events(folder, "resumed")[0]["env_steps"] == before["env_steps"]
    # Replay came back: without its positions learning would have had to wait for the minimum.
    assert after["metrics"]["replay_push_total"] > before["env_steps"] - 4 * 12


def test_two_shards_share_a_run_and_its_continuation_repeats(tmp_path):
    """Play goes to both alike, batches come from both, and resumes are equal bit for bit."""
    for name in ("a", "b"):
        shards = ["--replay.num-shards", "2"]
        assert run(tmp_path / name, *shards, "--total-env-steps", "120") == 0
        assert run(tmp_path / name, *shards, "--total-env-steps", "240") == 0
        assert events(tmp_path / name, "resumed")
    assert content_hashes(tmp_path / "a") == content_hashes(tmp_path / "b")
    checkpoints = tmp_path / "a" / "checkpoints"
    latest = checkpoints / (checkpoints / "LATEST").read_text().strip()
    counters = [
        json.loads((latest / "replay" / f"shard-{shard}" / "replay.json").read_text())["counters"]
        for shard in range(2)
    ]
    assert counters[0]["n_batches"] == counters[1]["n_batches"] > 20
    pushed = [count["n_pushed"] for count in counters]
    assert min(pushed) > 0.5 * max(pushed) > 0
    summary = json.loads((tmp_path / "a" / "summary.json").read_text())
    metrics = summary["metrics"]
    assert metrics["replay_push_total"] == sum(pushed)
    assert metrics["replay_sample_total"] == summary["updates"]
    assert (metrics["replay_shards_alive"], metrics["replay_shards_lost"]) == (2, 0)
    assert documented("replay_shards_") <= set(metrics) and not undocumented(set(metrics))


@pytest.mark.parametrize("loss", ["sft", "rft"])
def test_text_comes_from_two_shards_too(tmp_path, loss):
    mario = shlex.split(
        """--preset mario-quick --runtime serial --device cpu --envs-per-actor 2
        --acting.num-actors 1 --acting.segment-length 8 --acting.collect-steps 16 --simulations 4
        --total-env-steps 64 --replay.min-positions 16 --replay.capacity-mb 50
        --replay.num-shards 2 --learner.batch-size 8 --limiter.samples-per-insert 1
        --control.updates-per-call 2 --evaluation.every-env-steps 1000
        --evaluation.final-episodes 1 --evaluation.max-steps 8
        --schedule.wm-train-freq 2 --schedule.llm-train-freq 1
        --language.publish-every 1 --language.batch-size 4 --language.micro-batch-size 4"""
    )
    mario += ["--language.loss.name", loss, "--replay.advantages", str(loss != "sft")]
    assert train.main([*mario, "--run-dir", str(tmp_path / "run")]) == 0
    last = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["language_supervised"] > 0
    assert (last["language_kl_reference"] > 0) == (loss == "rft")


def test_a_checkpoint_with_another_number_of_shards_is_refused(tmp_path, capsys):
    """In its own directory and in another, by the settings that the checkpoint holds."""
    folder = tmp_path / "run"
    assert run(folder, "--total-env-steps", "120") == 0
    checkpoint = folder / "checkpoints" / (folder / "checkpoints" / "LATEST").read_text().strip()
    for goes_on in (folder, "auto"), (tmp_path / "other", str(checkpoint)):
        with pytest.raises(SystemExit):
            run(goes_on[0], "--replay.num-shards", "2", "--resume", goes_on[1])
        assert "replay.num_shards: 1 in the run, 2 now" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (["--env.frame-stack", "2"], ["env.frame_stack", "1", "2"]),
        (["--seed", "9"], ["seed", "9"]),
    ],
)
def test_a_run_is_not_continued_with_other_settings(tmp_path, capsys, changed, words):
    folder = tmp_path / "run"
    assert run(folder, "--total-env-steps", "120") == 0
    with pytest.raises(SystemExit) as caught:
        run(folder, *changed)
    assert caught.value.code == 2
    text = capsys.readouterr().err
    for word in [*words, "--run-dir"]:
        assert word in text


def test_schedules_that_adapt_repeat_and_a_run_says_where_its_time_went(tmp_path, capsys):
    adaptive = shlex.split(
        """--adaptive.learning-rate true --adaptive.exploration true --adaptive.episodes-per-look 2
        --adaptive.stall-looks 1 --adaptive.min-gain 1000 --adaptive.cooldown-env-steps 40"""
    )
    traces = shlex.split("--slow-step-trace-threshold 1000 --profile --trace.profile-s 0.5")
    for name, extra in (("a", traces), ("b", [])):
        assert run(tmp_path / name, *adaptive, *extra, "--control.log-period-s", "0.01") == 0
    changes = [without_time(events(tmp_path / name, "adapted")) for name in "ab"]
    assert changes[0] == changes[1]
    assert {change["cause"] for change in changes[0]} == {"stall"}
    first = changes[0][0]
    assert (first["learning_rate_scale"], first["exploration_scale"]) == (0.5, 1.25)
    assert all(b["env_steps"] - a["env_steps"] >= 40 for a, b in pairwise(changes[0]))
    last = metrics(tmp_path / "a")[-1]
    assert last["adaptive_exploration_scale"] == changes[0][-1]["exploration_scale"]
    assert content_hashes(tmp_path / "a") == content_hashes(tmp_path / "b")
    latest = (
        tmp_path / "a" / "checkpoints" / (tmp_path / "a/checkpoints/LATEST").read_text().strip()
    )
    saved = json.loads((latest / "counters.json").read_text())["progress"]["adaptive"]
    assert saved["exploration"] == last["adaptive_exploration_scale"]

    spans = json.loads((tmp_path / "a" / "profile.json").read_text())["traceEvents"]
    assert {"train", "compute", "sample"} <= {span["name"] for span in spans}
    tree = capsys.readouterr().out
    for word in ("learner, ", "env-actor-1, ", "insert-wait", "checkpoint", "evaluate"):
        assert word in tree
    assert status.main([str(tmp_path / "a")]) == 0
    shown = capsys.readouterr().out
    assert "finished" in shown and "env steps 240" in shown
    (actor,) = [row for row in shown.splitlines() if row.startswith("env-actor-1 ")]
    assert re.search(r" ago +\d+\.\d s: \S+ \d+%", actor), "when, and its times"
