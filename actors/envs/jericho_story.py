"""A Jericho game as its environment sees it: a child process that is killed when it hangs."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from actors.envs import jericho_child

_START_LIMIT_S = 120.0  # imports spaCy
_CHUNK = 65_536
_SHOWN_NAMES = 600


class GameHung(Exception):
    """The child gave no answer in time, or died; the next request starts another."""


class StoryProcess:
    """Owned by one environment. n_replaced counts the children that were lost."""

    def __init__(self, story: Path, *, searches: bool, limit_s: float) -> None:
        """Starts the child. Raises ValueError naming env.game if the game can't be played here."""
        self._story, self._searches, self._limit_s = story, searches, limit_s
        self._child: subprocess.Popen[bytes] | None = None
        self._left = b""  # of its output, behind the last whole line
        self.n_replaced = 0
        self._start()

    @property
    def pid(self) -> int | None:
        """Of the child, None between two."""
        return None if self._child is None else self._child.pid

    def ask(self, *request: str) -> dict[str, Any]:
        """One answer of `jericho_child.Story`. Raises GameHung; the game's state is then lost."""
        child = self._child or self._start()
        assert child.stdin is not None
        try:
            child.stdin.write(json.dumps(request).encode() + b"\n")
            child.stdin.flush()
            return self._answer(child, self._limit_s)
        except (BrokenPipeError, EOFError, TimeoutError) as error:
            self.close()
            self.n_replaced += 1
            raise GameHung(f"{request[0]}: {error}") from error

    def close(self) -> None:
        child, self._child, self._left = self._child, None, b""
        if child is not None:
            child.kill()
            child.communicate()

    def _start(self) -> subprocess.Popen[bytes]:
        searches = "search" if self._searches else "given"
        script = str(Path(jericho_child.__file__))
        child = subprocess.Popen(
            [sys.executable, "-P", script, str(self._story), searches, str(2 * self._limit_s)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        )
        self._child = child
        try:
            answer = self._answer(child, _START_LIMIT_S)
        except (EOFError, TimeoutError) as error:
            self.close()
            raise ValueError(
                f"env.game {str(self._story)!r}: the interpreter did not start ({error}); is it a "
                "story file (.z3 to .z8)?"
            ) from error
        if "refused" in answer:
            self.close()
            raise ValueError(_refusal(self._story, answer["refused"], answer["detail"]))
        return child

    def _answer(self, child: subprocess.Popen[bytes], limit_s: float) -> dict[str, Any]:
        assert child.stdout is not None
        deadline = time.monotonic() + limit_s
        while b"\n" not in self._left:
            remaining = deadline - time.monotonic()
            if remaining <= 0 or not select.select([child.stdout], [], [], remaining)[0]:
                raise TimeoutError(f"no answer in {limit_s:g} s")
            chunk = os.read(child.stdout.fileno(), _CHUNK)
            if not chunk:
                raise EOFError("the interpreter ended")
            self._left += chunk
        line, _, self._left = self._left.partition(b"\n")
        return json.loads(line)


def _refusal(story: Path, problem: str, detail: str) -> str:
    if problem == "unknown":
        digest, _, names = detail.partition(";")
        return (
            f"env.game {str(story)!r} has md5 {digest}, which jericho does not know, so its valid "
            "commands and score can't be found; use the exact release of a supported game: "
            f"{names[:_SHOWN_NAMES]}"
        )
    if problem == "spacy":
        return (
            f"env.id WarpZone/Jericho-v0 needs spaCy's model {jericho_child.SPACY_MODEL}, which is "
            f"not installed ({detail.splitlines()[0][:200]}); it is not on PyPI: run `.venv/bin/"
            f"python -m spacy download {jericho_child.SPACY_MODEL}`, or pip install its wheel"
        )
    return (
        f"env.id WarpZone/Jericho-v0 needs jericho, which can't be imported ({detail}); install it "
        "with `EXTRAS=text make setup`"
    )
