"""Warm starts with real parts: the environment that docs/priors.md shows is played, the language
model learns from what was played, and engines, learner and runs begin with what came out.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import ray
import torch

from actors.demonstrations.notebook import Notebook
from actors.prior.backend import LocalPriorTransport
from actors.prior.client import PriorClient
from actors.prior.config import PriorConfig
from actors.prior.local_engine import LocalPriorEngine
from launch import pretrain_prior, train
from launch.recorded_play import recorded_play
from learner.language.adapter import AdapterCheck, adapter_folder
from learner.language.config import LanguageConfig
from learner.language.language_learner import LanguageLearner
from learner.language.pretraining import PretrainReport, pretrain, split
from learner.language.prompt_config import PromptConfig
from replay_service.targets import TextBatch
from tests.actors.prior.conftest import EngineStarter

ROOT = Path(__file__).resolve().parents[3]
PROMPT = PromptConfig(shuffle=False)
LANGUAGE = LanguageConfig(batch_size=16, micro_batch_size=16, learning_rate=1e-2)
SMALL = shlex.split(
    """--preset cartpole --env corridor:Corridor-v0 --runtime serial --device cpu
    --prior.enabled true --prior.prompt.shuffle false --envs-per-actor 2 --simulations 6
    --acting.segment-length 10 --acting.collect-steps 16 --replay.min-positions 40
    --learner.batch-size 8 --limiter.samples-per-insert 2 --control.updates-per-call 2
    --total-env-steps 160 --evaluation.every-env-steps 1000 --evaluation.final-episodes 1
    --evaluation.max-steps 20 --control.checkpoint-every-env-steps 80
    --language.batch-size 8 --language.micro-batch-size 8"""
)


def example() -> str:
    """The code that docs/priors.md shows."""
    page = (ROOT / "docs" / "priors.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    return code


@pytest.fixture(scope="module", autouse=True)
def corridor(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The example as a module that `--env corridor:Corridor-v0` finds."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("example")
    (folder / "corridor.py").write_text(example())
    sys.path.insert(0, str(folder))
    yield
    sys.path.remove(str(folder))
    sys.modules.pop("corridor", None)
    gymnasium.registry.pop("Corridor-v0", None)


@pytest.fixture(scope="module")
def recorded(tiny_llm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run in the corridor."""
    folder = tmp_path_factory.mktemp("recorded") / "run"
    words = [*SMALL, "--prior.model", str(tiny_llm), "--run-dir", str(folder)]
    assert train.main(words) == 0
    return folder


def solved_corridor() -> TextBatch:
    """The way to the door from everywhere."""
    env = gymnasium.make("corridor:Corridor-v0").unwrapped
    env.reset(seed=0)
    notebook = Notebook()
    for door, west in ((0, True), (8, False)):
        for at in range(1, 8):
            env.at, env.door = at, door
            notebook.add(env.prompt(), env.option_texts(), None, 0 if west else 1)
    return notebook.as_batch()


@pytest.fixture(scope="module")
def made(
    corridor: None, tiny_llm: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, PretrainReport]:
    """An adapter that knows the way, and how it was made."""
    folder = tmp_path_factory.mktemp("made") / "warm"
    report = pretrain(
        solved_corridor(),
        tiny_llm,
        folder,
        config=LANGUAGE,
        prompt=PROMPT,
        n_steps=60,
        held_out_share=0.3,
        seed=0,
        source="the corridor, solved",
    )
    return folder, report


def run_in_place(folder: Path, adapter: Path) -> Path:
    """The adapters of a run that begins with `adapter`."""
    shutil.copytree(adapter, adapter_folder(folder, 0))
    return folder


def test_the_pages_example_is_a_game_with_words_that_a_run_plays(recorded: Path) -> None:
    played = recorded_play(recorded, "visits")
    assert len(played.prompt) > 100
    assert all(text.startswith("You stand in a corridor at") for text in played.prompt)
    assert set(played.options) == {("walk west", "walk east", "wait")}
    acted = recorded_play(recorded, "actions")
    assert torch.equal(acted.policy.argmax(1), played.action) and (acted.policy.sum(1) == 1).all()
    assert (played.policy.max(1).values < 1).any()
    events = [json.loads(line) for line in (recorded / "events.jsonl").read_text().splitlines()]
    assert {e["level"] for e in events if e["event"] == "episode_end"} == {"corridor"}


def test_held_out_answers_become_likelier(made: tuple[Path, PretrainReport]) -> None:
    _, report = made
    before, after = report.held_out_before, report.held_out_after
    assert after.n == before.n == 4 and before.tokens == 4
    assert after.log_prob > before.log_prob + 0.5
    assert after.agreement == 1.0 > after.chance
    assert report.after.loss < report.before.loss and report.n_steps == 60


def test_recorded_play_teaches_by_the_command(
    recorded: Path, tiny_llm: Path, tmp_path: Path, capsys
) -> None:
    words = [
        "--source", "run", "--from", str(recorded), "--output", str(tmp_path / "warm"),
        "--optimizer-steps", "25", "--held-out", "0.25",
        "--prior.model", str(tiny_llm), "--prior.prompt.shuffle", "false",
        "--language.learning-rate", "0.005",
    ]  # fmt: skip
    assert pretrain_prior.main(words) == 0
    figures = json.loads((tmp_path / "warm" / "warm_start.json").read_text())["figures"]
    assert figures["n_steps"] == 25 and figures["before_tokens"] > 0
    assert figures["held_out_after_loss"] < figures["held_out_before_loss"]
    printed = capsys.readouterr().out
    for words_of in ("supervised tokens", "25 optimiser steps", "held out", "agreement"):
        assert words_of in printed
    for words_of in ("reading the replay of", "shards read: 1 of 1", " states; they are answered"):
        assert words_of in printed


def test_the_learner_goes_on_from_it_and_keeps_it(
    made: tuple[Path, PretrainReport], tiny_llm: Path, tmp_path: Path
) -> None:
    folder, report = made
    train_on, held_out = split(solved_corridor(), 0.3, 0)
    learner = LanguageLearner(
        LANGUAGE, tiny_llm, run_in_place(tmp_path, folder), seed=5, prompt=PROMPT
    )
    assert learner.version == 0
    assert learner.measure(train_on).loss == pytest.approx(report.after.loss, abs=1e-5)
    assert learner.measure(held_out).loss == pytest.approx(report.held_out_after.loss, abs=1e-5)
    for _ in range(5):
        learner.update(train_on)
        learner.publish()
    learner.save(tmp_path / "checkpoint")
    again = LanguageLearner(LANGUAGE, tiny_llm, tmp_path, seed=5, prompt=PROMPT)
    again.load(tmp_path / "checkpoint")  # wins over what the run began with
    assert again.measure(train_on) == learner.measure(train_on)
    assert abs(again.measure(train_on).loss - report.after.loss) > 1e-3
    names = sorted(path.name for path in tmp_path.glob("adapter-*"))
    assert names == ["adapter-000000", "adapter-000003", "adapter-000004", "adapter-000005"]


def test_a_run_begins_with_it_and_goes_on_from_its_checkpoint(
    made: tuple[Path, PretrainReport], tiny_llm: Path, tmp_path: Path, capsys
) -> None:
    folder, _ = made
    run = tmp_path / "run"
    words = [
        *SMALL, "--run-dir", str(run), "--prior.model", str(tiny_llm),
        "--prior.adapter", str(folder), "--language.enabled", "true",
        "--language.publish-every", "2", "--schedule.wm-train-freq", "4",
        "--schedule.llm-train-freq", "2",
    ]  # fmt: skip
    assert train.main(words) == 0
    names = {path.name for path in (run / "adapters").iterdir()}
    assert "adapter-000000" in names and len(names) > 1
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    published = [e["version"] for e in events if e["event"] == "adapter_published"]
    assert published and published == list(range(1, published[-1] + 1))
    # Another one is refused while one is tuned, also under the same name.
    moved = shutil.copytree(folder, tmp_path / "moved")
    more = [*words, "--total-env-steps", "240"]
    assert "prior.adapter" in refused([*more, "--prior.adapter", str(moved)], capsys)
    # What it began with does not come back: the engine begins with what was published last.
    assert train.main(more) == 0
    newest = max(int(path.name[8:]) for path in (run / "adapters").iterdir())
    assert newest > published[-1]


def test_a_run_that_tunes_nothing_is_advised_by_it(
    made: tuple[Path, PretrainReport], tiny_llm: Path, tmp_path: Path
) -> None:
    """The client asks a real engine in this process: every answer knows the way."""
    config = PriorConfig(model=str(tiny_llm), backend="transformers", prompt=PROMPT)
    engine = LocalPriorEngine(config, adapters_dir=run_in_place(tmp_path, made[0]))
    client = PriorClient(config, LocalPriorTransport(engine), seed=0)
    solved = solved_corridor()
    prior = client.ask(solved.prompt, solved.options).collect()
    assert prior.available.all()
    assert (np.argmax(prior.probabilities, axis=1) == solved.action.numpy()).mean() > 0.9


def refused(words: list[str], capsys) -> str:
    with pytest.raises(SystemExit) as stop:
        train.main(words)
    assert stop.value.code == 2
    return " ".join(capsys.readouterr().err.split())


def _say(name: str, value: object) -> Callable[[Path], None]:
    """Changes what warm_start.json says."""

    def damage(warm: Path) -> None:
        content = json.loads((warm / "warm_start.json").read_text())
        (warm / "warm_start.json").write_text(json.dumps(content | {name: value}))

    return damage


DAMAGES = {
    "gone": (lambda warm: shutil.rmtree(warm), "is not a folder"),
    "incomplete": (lambda warm: (warm / "check.json").unlink(), "has no check.json"),
    "another model": (_say("model_fingerprint", "0" * 64), "was made for another model"),
    "another rank": (_say("lora_rank", 4), "says it has rank 4"),
    "cut": (lambda warm: (warm / "adapter_model.safetensors").write_bytes(b"x"), "can't be read"),
    "nonsense": (lambda warm: (warm / "warm_start.json").write_text("[]"), "no object of format"),
}


@pytest.mark.parametrize("case", DAMAGES)
def test_an_adapter_that_can_not_be_used_is_refused_before_anything_starts(
    made: tuple[Path, PretrainReport], tiny_llm: Path, tmp_path: Path, capsys, case: str
) -> None:
    damage, words = DAMAGES[case]
    warm = shutil.copytree(made[0], tmp_path / "warm")
    damage(warm)
    run = tmp_path / "run"
    start = [*SMALL, "--run-dir", str(run), "--prior.model", str(tiny_llm)]
    said = refused([*start, "--prior.adapter", str(warm)], capsys)
    assert "prior.adapter" in said and words in said
    assert not run.exists()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ("--language.enabled true --language.lora-rank 4", "language.lora_rank=4"),
        ("--language.enabled true --language.lora-alpha 3", "language.lora_alpha=3.0"),
        ("--language.enabled true --language.publish full", "language.publish=full"),
        ("--prior.prompt.scoring text", "prior.prompt.scoring was 'label' and is 'text'"),
    ],
)
def test_settings_that_it_does_not_fit_are_refused(
    made: tuple[Path, PretrainReport], tiny_llm: Path, tmp_path: Path, capsys, settings, words
) -> None:
    start = [*SMALL, "--run-dir", str(tmp_path / "run"), "--prior.model", str(tiny_llm)]
    more = ["--prior.adapter", str(made[0]), *settings.split()]
    assert words in refused([*start, *more], capsys)


def test_nothing_to_supervise_is_an_error(tiny_llm: Path, tmp_path: Path) -> None:
    solved = solved_corridor()
    nothing = TextBatch(solved.prompt, solved.options, solved.policy * 0, solved.action)
    how = {"config": LANGUAGE, "prompt": PROMPT, "n_steps": 1, "held_out_share": 0.1, "seed": 0}
    with pytest.raises(ValueError, match="0 supervised tokens"):
        pretrain(nothing, tiny_llm, tmp_path / "warm", source="nothing", **how)
    assert not (tmp_path / "warm").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--source run", "--from names the run"),
        ("--source run --from nowhere", "--from nowhere is neither a run"),
        ("--source textworld", "--source textworld plays WarpZone/TextWorld-v0, but env.id is"),
        ("--source mario --held-out 1.5", "--held-out must lie in (0, 1), got 1.5"),
        ("--source mario --optimizer-steps 0", "--optimizer-steps must be at least 1, got 0"),
        ("--source mario --output /proc", "--output /proc exists"),
    ],
)
def test_bad_input_of_the_command(tmp_path: Path, capsys, words: str, said: str) -> None:
    with pytest.raises(SystemExit) as stop:
        pretrain_prior.main(["--output", str(tmp_path / "warm"), *words.split()])
    assert stop.value.code == 2
    assert said in capsys.readouterr().err


def test_states_held_out_are_on_one_side_only() -> None:
    solved = solved_corridor()
    twice = TextBatch(
        solved.prompt * 2,
        solved.options * 2,
        torch.cat([solved.policy] * 2),
        torch.cat([solved.action] * 2),
    )
    train_on, held_out = split(twice, 0.25, seed=3)
    assert len(train_on.prompt) + len(held_out.prompt) == 28 and len(held_out.prompt) == 8
    assert not set(train_on.prompt) & set(held_out.prompt)


# The last one: it starts Ray, and runs without Ray can't follow in the same process.
def test_a_vllm_engine_serves_it_as_version_0_and_takes_what_is_learnt_next(
    made: tuple[Path, PretrainReport], tiny_llm: Path, tmp_path: Path, start_engine: EngineStarter
) -> None:
    adapters = run_in_place(tmp_path, made[0])
    config = PriorConfig(model=str(tiny_llm), kv_cache_mb=64, prompt=PROMPT)
    actor = start_engine(config, max_lora_rank=LANGUAGE.lora_rank, adapters_dir=adapters)
    check = AdapterCheck.read(made[0])
    assert ray.get(actor.start.remote(), timeout=300).version == 0
    batch = ray.get(actor.score.remote(check.requests))
    assert batch.version == 0
    assert check.gap(batch.log_probs) < 1e-3
    bare = LocalPriorEngine(config)
    assert check.gap(bare.score(check.requests).log_probs) > 0.1

    learner = LanguageLearner(LANGUAGE, tiny_llm, adapters, seed=0, prompt=PROMPT)
    learner.update(solved_corridor())
    adapter = learner.publish()
    assert adapter.version == 1
    report = ray.get(actor.publish.remote(adapter.version, adapter.path))
    assert report.accepted, report
    assert ray.get(actor.score.remote(check.requests)).version == 1
