"""Presets, command line and their errors: field, value, what is allowed, exit code 2."""

import dataclasses
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from launch.config import Config, ConfigError, load_preset, overlay, parse, preset_names, to_dict

ROOT = Path(__file__).resolve().parents[2]


def refused(capsys, *arguments):
    """The message of a refused command line; asserts exit code 2 and one screen."""
    with pytest.raises(SystemExit) as caught:
        parse(arguments)
    assert caught.value.code == 2
    captured = capsys.readouterr()
    text = captured.out + captured.err
    assert 0 < len(text.splitlines()) <= 40
    # Boxes and wrapping are for people; the test reads words.
    return " ".join(text.replace("│", " ").split())


def test_every_preset_loads_and_is_valid():
    assert {"mario-quick", "mario", "cartpole"} <= set(preset_names())
    for name in preset_names():
        assert isinstance(load_preset(name), Config)


def test_flags_beat_presets_beat_defaults():
    preset, config = parse(["--preset", "cartpole", "--seed", "7", "--learner.batch-size", "256"])
    assert preset == "cartpole"
    assert config.env.id == "CartPole-v1"
    assert (config.seed, config.learner.batch_size) == (7, 256)
    assert config.replay.alpha == Config().replay.alpha


def test_short_names_are_the_long_ones():
    _, config = parse(
        shlex.split(
            "--num-actors 32 --preset=mario --envs-per-actor 3 --simulations=9 --env CartPole-v1"
        )
    )
    assert config.acting.num_actors == 32
    assert config.acting.envs_per_actor == 3
    assert config.search.n_simulations == 9
    assert config.env.id == "CartPole-v1"


@pytest.mark.parametrize("word", ["false", "False"])
def test_switches_take_true_and_false_in_either_case(word):
    assert not parse(["--prior.enabled", word])[1].prior.enabled
    assert not parse([f"--prior.enabled={word}"])[1].prior.enabled


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--num-actors", "0"), ["acting.num_actors", "at least 1", "got 0"]),
        (("--preset", "mario-quik"), ["mario-quik", "mario-quick", "did you mean"]),
        (("--learner.batch-size", "0"), ["learner.batch_size", "0", "at least 1"]),
        (("--learner.batch-size", "many"), ["--learner.batch-size", "many"]),
        (("--learner.batchsize", "3"), ["--learner.batchsize", "--learner.batch-size"]),
        (("--runtime", "threads"), ["threads", "ray", "serial"]),
        (("--device", "tpu"), ["tpu", "cpu", "cuda"]),
        (("--env.stages", "9-9"), ["env.stages", "9-9"]),
        (("--seed", "-1"), ["seed", "-1"]),
        (("--total-env-steps", "0"), ["total_env_steps", "0"]),
        (("--preset",), ["--preset", "mario-quick"]),
    ],
)
def test_a_bad_setting_names_field_value_and_remedy(capsys, arguments, words):
    text = refused(capsys, *arguments)
    for word in words:
        assert word in text, text


def test_help_shows_settings_with_defaults(capsys):
    with pytest.raises(SystemExit) as caught:
        parse(["--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    for word in ("--learner.batch-size", "--acting.num-actors", "--num-actors", "--run-dir"):
        assert word in text
    assert "default" in text


def test_every_setting_has_help():
    text = subprocess.run(
        [sys.executable, "launch/train.py", "--help"],
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "COLUMNS": "120"},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    lines = [line.strip("│ ") for line in text.splitlines()]
    options = [i for i, line in enumerate(lines) if line.startswith("--") and "." in line[:20]]
    assert len(options) > 60
    for i in options:
        assert lines[i + 1].strip("─╰╯ ") and not lines[i + 1].startswith("("), lines[i]


def test_unknown_preset_keys_name_the_nearest():
    with pytest.raises(ConfigError, match=r"learner\.batchsize.*learner\.batch_size"):
        overlay(Config(), {"learner": {"batchsize": 3}}, where="here")
    with pytest.raises(ConfigError, match="learner must hold settings"):
        overlay(Config(), {"learner": 3}, where="here")


def test_the_resolved_config_is_plain_data_that_reads_back():
    config = dataclasses.replace(load_preset("mario-quick"), run_dir=Path("runs/x"), seed=5)
    again = overlay(Config(), yaml.safe_load(yaml.safe_dump(to_dict(config))), where="file")
    assert again == config


@pytest.mark.parametrize(
    ("arguments", "relaxed"),
    [
        ((), False),
        (("--resume-relaxed",), True),
        (("--resume-relaxed", "--seed", "3"), True),
        (("--seed", "3", "--resume-relaxed", "true"), True),
        (("--resume-relaxed", "false"), False),
        (("--resume-relaxed=true",), True),
    ],
)
def test_a_switch_may_stand_alone(arguments, relaxed):
    assert parse(arguments)[1].resume_relaxed is relaxed


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seed": "three"}, ["seed", "whole number", "'three'"]),
        ({"seed": True}, ["seed", "whole number", "True"]),
        ({"learner": {"learning_rate": "1e-3"}}, ["learner.learning_rate", "1.0e-3"]),
        ({"learner": {"learning_rate": float("nan")}}, ["learner.learning_rate", "finite"]),
        ({"device": "tpu"}, ["device", "auto, cpu, cuda", "'tpu'"]),
        ({"env": {"stages": "1-1"}}, ["env.stages", "list"]),
        ({"prior": {"enabled": 1}}, ["prior.enabled", "true or false"]),
        ({"env": {"id": None}}, ["env.id", "text", "None"]),
    ],
)
def test_a_value_of_another_type_is_refused_by_name(changes, words):
    with pytest.raises(ConfigError) as caught:
        overlay(Config(), changes, where="preset x")
    for word in ["preset x", *words]:
        assert word in str(caught.value)
