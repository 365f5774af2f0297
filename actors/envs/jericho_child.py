"""Runs one Jericho game in a process of its own, which the environment may kill: `-P this_file`.

Imports nothing of ours, and is the only place that imports jericho. Takes a line of JSON a request
on standard input and answers each with one; ends when its input does. A request that takes longer
than the limit ends the process, so that nothing is left of one whose parent died meanwhile.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
import warnings
from typing import Any

SPACY_MODEL = "en_core_web_sm"  # of jericho's search for commands


class Refused(Exception):
    """The game can't be played here; `problem` says which of the things that may be wrong."""

    def __init__(self, problem: str, detail: str = "") -> None:
        super().__init__(problem)
        self.problem, self.detail = problem, detail


class Story:
    """A running game. story: path; searches: whether commands are to be searched for."""

    def __init__(self, story: str, searches: bool) -> None:
        try:
            import jericho
            from jericho import defines, util
        except ImportError as error:
            raise Refused("missing", str(error)) from error
        if searches:
            with open(story, "rb") as file:
                digest = hashlib.md5(file.read(), usedforsecurity=False).hexdigest()
            if digest not in defines.BINDINGS_DICT:
                names = sorted(game["name"] for game in defines.BINDINGS_DICT.values())
                raise Refused("unknown", f"{digest};{', '.join(names)}")
            try:
                import spacy

                # Given to jericho here, which would try to download what is missing.
                util.spacy_nlp = spacy.load(SPACY_MODEL)
            except (ImportError, OSError) as error:
                raise Refused("spacy", str(error)) from error
        self._env = jericho.FrotzEnv(story, seed=1)
        self._searches = searches

    def reset(self) -> dict[str, Any]:
        text, _ = self._env.reset()
        return self._told(text, is_over=False)

    def step(self, command: str) -> dict[str, Any]:
        text, _, is_over, _ = self._env.step(command)
        return self._told(text, bool(is_over))

    def valid(self) -> dict[str, Any]:
        """The commands that change something, found by trying them; in this process alone."""
        return {"commands": self._env.get_valid_actions(use_parallel=False)}

    def _told(self, text: str, is_over: bool) -> dict[str, Any]:
        env = self._env
        return {
            "reply": text,
            "place": "" if is_over else self._aside("look"),
            "inventory": "" if is_over else self._aside("inventory"),
            "score": env.get_score(),
            "max_score": env.get_max_score(),
            "is_over": is_over,
            "won": env.victory(),
            "state": env.get_world_state_hash() if self._searches else "",
        }

    def _aside(self, command: str) -> str:
        """What the game says to a command that is then taken back."""
        saved = self._env.get_state()
        text = self._env.step(command)[0]
        self._env.set_state(saved)
        return text


def main(story: str, searches: str, limit_s: str) -> None:
    warnings.simplefilter("ignore")
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever the interpreter prints must not mix with answers
    signal.signal(signal.SIGALRM, signal.SIG_DFL)  # ends the process, in the interpreter too
    try:
        game = Story(story, searches == "search")
    except Refused as error:
        print(json.dumps({"refused": error.problem, "detail": error.detail}), file=answers)
        return
    print(json.dumps({"ready": True}), file=answers, flush=True)
    for line in sys.stdin:
        name, *arguments = json.loads(line)
        signal.setitimer(signal.ITIMER_REAL, float(limit_s))
        answer = getattr(game, name)(*arguments)
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
