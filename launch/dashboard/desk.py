"""What browsers tell the run: that they look, at what, and what they ask to be changed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from math import inf
from pathlib import Path

from launch.control.request_box import CHECKPOINT, SETTING, Answer, RequestDesk
from launch.dashboard.run_view import ENDED_STATES

PATIENCE_S = 120.0  # a run that makes a checkpoint of a large replay looks at nothing else
POLL_S = 0.2
SIGN_PERIOD_S = 3.0  # of somebody looking
MOST_OPEN = 8  # requests of all browsers that were not answered yet
NOTHING = ((-1, -1), -inf)  # told to the run: of which environment, and when


class Desk:
    """One per server, used from its event loop."""

    def __init__(
        self,
        run_dir: Path,
        state: Callable[[], str],
        *,
        patience_s: float,
    ) -> None:
        """state: of the run, as the page shows it."""
        self._desk = RequestDesk(run_dir)
        self._state = state
        self._patience_s = patience_s
        self._lookers: dict[object, tuple[int, int]] = {}  # by browser: env actor, environment
        self._told = NOTHING
        self._putting = asyncio.Lock()  # the run takes requests in the order in which they came
        self._telling = asyncio.Lock()  # one at a time changes what the run is told
        self._n_open = 0

    async def looks(self, browser: object, actor: int, env: int) -> None:
        """This browser shows the page, and that environment closely."""
        self._lookers.pop(browser, None)
        self._lookers[browser] = (actor, env)
        await self.keep_telling()

    async def leaves(self, browser: object) -> None:
        """It is gone, or its page is hidden; the last one to leave puts the light out."""
        if self._lookers.pop(browser, None) is None:
            return
        async with self._telling:
            if self._lookers:  # another came meanwhile
                return
            self._told = NOTHING
            await asyncio.to_thread(self._desk.leave)

    async def keep_telling(self) -> None:
        """Of two browsers the one that chose last is shown what it wants."""
        async with self._telling:
            if not self._lookers or self._state() in ENDED_STATES:
                return
            wanted = list(self._lookers.values())[-1]
            now = time.monotonic()
            if wanted == self._told[0] and now - self._told[1] < SIGN_PERIOD_S:
                return
            self._told = (wanted, now)
            try:
                await asyncio.to_thread(self._desk.look, *wanted)
            except OSError:
                return  # a run that can't be written to is shown as it shows itself

    async def ask(self, what: dict[str, object]) -> Answer:
        """Waits for the run's answer to a request; see `request_box`."""
        if what.get("ask") not in (SETTING, CHECKPOINT):
            return Answer(False, f"a page asks for {SETTING} or {CHECKPOINT}, nothing else")
        state = self._state()
        if state in ENDED_STATES:
            return Answer(False, f"this run has {state}: nothing of it can be changed any more")
        if self._n_open >= MOST_OPEN:
            return Answer(False, f"{MOST_OPEN} requests wait for the run already; try again later")
        self._n_open += 1
        try:
            return await self._ask(what)
        except OSError as error:
            return Answer(False, f"the run directory can't be written: {error.strerror}")
        finally:
            self._n_open -= 1

    async def _ask(self, what: dict[str, object]) -> Answer:
        async with self._putting:
            name = await asyncio.to_thread(self._desk.put, what)
        until = time.monotonic() + self._patience_s
        while True:
            answer = await asyncio.to_thread(self._desk.answer, name)
            if answer is not None:
                return answer
            if time.monotonic() >= until:
                break
            await asyncio.sleep(POLL_S)
        if await asyncio.to_thread(self._desk.withdraw, name):
            return Answer(
                False,
                f"the run did not look at it within {self._patience_s:.0f} s, so it was withdrawn; "
                "see above whether the run is alive",
            )
        return Answer(False, "the run took it and gave no answer; see its events")
