"""`launch/train.py`, with the live Python objects of every process counted now and then.

    python tests/chaos/counted_run.py --preset cartpole --run-dir runs/counted

Takes the words of `launch/train.py`. A thread of the driver has each child collect its garbage and
count what is left, through the call that Ray gives every actor, so no child knows of it; one line
a round goes to <run directory>/objects.jsonl.
"""

from __future__ import annotations

import gc
import sys
import threading
import time
from pathlib import Path

import ray
from ray.exceptions import RayError

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from launch import train
from launch.control.ray_runtime import RayRuntime
from launch.control.runtime import Child, Resources
from launch.monitoring.json_lines import JsonLinesFile

OBJECTS_FILE = "objects.jsonl"
PERIOD_S = 15.0
ANSWER_LIMIT_S = 60.0


def count_objects(_actor: object = None) -> int:
    """What the garbage collector tracks, after it has collected."""
    gc.collect()
    return len(gc.get_objects())


class Counter:
    """Knows the newest child of each name."""

    def __init__(self) -> None:
        self._children: dict[str, Child] = {}

    def install(self) -> None:
        """From now on, whatever a RayRuntime starts is counted."""
        start = RayRuntime.start

        def start_and_note(
            runtime: RayRuntime,
            name: str,
            role: str,
            factory: type,
            kwargs: dict[str, object],
            resources: Resources,
        ) -> Child:
            child = start(runtime, name, role, factory, kwargs, resources)
            self._children[name] = child
            return child

        RayRuntime.start = start_and_note

    def count(self) -> dict[str, int]:
        """By process; one that does not answer is left out."""
        answers = {
            name: child.handle.__ray_call__.remote(count_objects)
            for name, child in list(self._children.items())
        }
        counts = {"driver": count_objects()}
        for name, answer in answers.items():
            try:
                counts[name] = ray.get(answer, timeout=ANSWER_LIMIT_S)
            except RayError:
                continue
        return counts

    def write_rounds(self, file: JsonLinesFile) -> None:
        """Until the process ends."""
        while True:
            time.sleep(PERIOD_S)
            if ray.is_initialized() and self._children:
                file.append({"timestamp": time.time(), "objects": self.count()})


def main() -> int:
    words = sys.argv[1:]
    run_dir = Path(words[words.index("--run-dir") + 1])
    counter = Counter()
    counter.install()
    file = JsonLinesFile(run_dir / OBJECTS_FILE)
    threading.Thread(
        target=counter.write_rounds, args=(file,), name="object-counter", daemon=True
    ).start()
    return train.main(words)


if __name__ == "__main__":
    sys.exit(main())
