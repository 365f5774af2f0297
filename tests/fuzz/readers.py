"""Coverage-guided fuzzing of what reads files and messages: every input is valid or a clear error.

    pip install atheris==3.0.0
    python tests/fuzz/readers.py                          # every reader, 20,000 inputs each
    python tests/fuzz/readers.py --only manifest --runs 1000000 --seed 7

A reader may return, or raise the error that it documents; anything else ends the run with the input
in `crash-*`, in the folder that is printed. Inputs start from sound ones, and those that reach new
code are kept for as long as the run lasts.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import atheris

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

READ_BY = ["replay_service", "launch.control", "launch.setting_types"]
COMPILED = ["replay_service.sum_tree"]  # by numba, which does not know the marks of coverage

with atheris.instrument_imports(include=READ_BY, exclude=COMPILED):
    import numpy as np
    import torch

    from launch.config import Config, ConfigError, to_dict
    from launch.control import checkpoint, metadata, stored_settings
    from launch.control.counters import checked_counters
    from replay_service import GameSpec, Replay, ReplayConfig, Segment, SegmentHeader, TargetConfig
    from replay_service.array_file import check_array, read_array
    from replay_service.segment_check import check_segment

SPEC = GameSpec((2,), "float32", n_actions=2)
LONGEST_INPUT = 16_384

Reader = Callable[[Path, bytes], None]


def read_manifest(folder: Path, content: bytes) -> None:
    (folder / checkpoint.MANIFEST).write_bytes(content)
    (folder / checkpoint.COUNTERS).write_text("{}")
    with contextlib.suppress(checkpoint.CheckpointError):
        checkpoint.verify(folder)


def read_metadata(folder: Path, content: bytes) -> None:
    (folder / checkpoint.METADATA).write_bytes(content)
    with contextlib.suppress(checkpoint.CheckpointError, ConfigError):
        metadata.read_metadata(folder)


def read_counters(folder: Path, content: bytes) -> None:
    path = folder / checkpoint.COUNTERS
    path.write_bytes(content)
    with contextlib.suppress(checkpoint.CheckpointError):
        checked_counters(checkpoint.read_json(path), path)


def read_settings(folder: Path, content: bytes) -> None:
    (folder / "config.yaml").write_bytes(content)
    with contextlib.suppress(ConfigError):
        stored_settings.read_settings_file(folder / "config.yaml")


def read_segment_header(folder: Path, content: bytes) -> None:
    """The header of a segment that is sound otherwise, as it travels in plain arrays."""
    arrays = sound_segment().to_arrays() | {"header": np.frombuffer(content, np.uint8)}
    with contextlib.suppress(ValueError):
        check_segment(Segment.from_arrays(arrays), SPEC)


def read_array_header(folder: Path, content: bytes) -> None:
    """A column of a replay snapshot, header and all."""
    out = torch.zeros((3, 2), dtype=torch.float32)
    try:
        check_array(io.BytesIO(content), "column", out)
        read_array(io.BytesIO(content), "column", out)
    except (ValueError, EOFError):
        pass


def read_snapshot(folder: Path, content: bytes) -> None:
    """replay.json of a snapshot whose arrays are sound."""
    replay = small_replay()
    replay.add([sound_segment()])
    replay.save(folder)
    (folder / "replay.json").write_bytes(content)
    with contextlib.suppress(ValueError):
        small_replay().load(folder)


def small_replay() -> Replay:
    config = ReplayConfig(capacity_mb=0.01, min_positions=1)
    return Replay(config, TargetConfig(unroll_steps=1, n_step=1), SPEC, seed=0)


def sound_segment() -> Segment:
    n_steps = 4
    ended = np.array([False] * (n_steps - 1) + [True])
    return Segment(
        header=SegmentHeader("run", 0, 0, 0, 0, "", 0, "", 0, 0, -1, 1),
        obs=np.zeros((n_steps + 1, 2), np.float32),
        action=np.zeros(n_steps, np.int16),
        reward=np.zeros(n_steps, np.float32),
        terminated=ended,
        truncated=np.zeros(n_steps, bool),
        policy=np.full((n_steps, 2), 0.5, np.float16),
        root_value=np.zeros(n_steps, np.float16),
        priority=np.ones(n_steps, np.float32),
        n_trainable=n_steps,
    )


def sound_inputs(name: str, folder: Path) -> list[bytes]:
    """What a run really writes, to begin with."""
    if name == "manifest":
        entry = {
            "bytes": 2,
            "sha256": "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a",
        }
        return [json.dumps({"files": {checkpoint.COUNTERS: entry}}).encode()]
    if name == "metadata":
        progress = {"progress": {"env_steps": 1, "updates": 2}}
        return [json.dumps(metadata.describe(Config(), progress, "stopped")).encode()]
    if name == "settings":
        small = {"seed": 1, "env": {"id": "CartPole-v1"}, "replay": {"capacity_mb": 1.5}}
        return [json.dumps(small).encode(), json.dumps(to_dict(Config())).encode(), b"seed: 1\n"]
    if name == "segment header":
        return [sound_segment().to_arrays()["header"].tobytes()]
    if name == "array header":
        buffer = io.BytesIO()
        np.save(buffer, np.zeros((3, 2), np.float32))
        return [buffer.getvalue()]
    if name == "snapshot":
        replay = small_replay()
        replay.add([sound_segment()])
        replay.save(folder)
        return [(folder / "replay.json").read_bytes()]
    return [
        json.dumps({"progress": {}, "limiter": {"inserted": 1, "sampled": 2}}).encode(),
        b"{}",
    ]


READERS: dict[str, Reader] = {
    "manifest": read_manifest,
    "metadata": read_metadata,
    "counters": read_counters,
    "settings": read_settings,
    "segment header": read_segment_header,
    "array header": read_array_header,
    "snapshot": read_snapshot,
}


def fuzz(name: str, runs: int, seed: int) -> None:
    """Does not return: libFuzzer ends the process."""
    corpus = Path(tempfile.mkdtemp(prefix="warpzone-fuzz-corpus-"))
    folder = Path(tempfile.mkdtemp(prefix="warpzone-fuzz-"))
    for i, content in enumerate(sound_inputs(name, folder)):
        (corpus / str(i)).write_bytes(content)
    reader = READERS[name]
    arguments = [
        f"-runs={runs}", f"-seed={seed}", f"-max_len={LONGEST_INPUT}", "-verbosity=0",
        f"-artifact_prefix={folder}/", str(corpus),
    ]  # fmt: skip
    atheris.Setup([sys.argv[0], *arguments], lambda content: reader(folder, content))
    atheris.Fuzz()


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=sorted(READERS))
    parser.add_argument("--runs", type=int, default=20_000, help="inputs for each reader")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--in-this-process", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.in_this_process:
        fuzz(options.only, options.runs, options.seed)
    failed = []
    for name in [options.only] if options.only else READERS:
        command = [sys.executable, __file__, "--in-this-process", "--only", name]
        command += ["--runs", str(options.runs), "--seed", str(options.seed)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        outcome = "no input did anything but what is documented"
        if done.returncode:
            failed.append(name)
            outcome = f"FAILED\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
        print(f"[fuzz] {name}: {options.runs:,} inputs, seed {options.seed}: {outcome}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
