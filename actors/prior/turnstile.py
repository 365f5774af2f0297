"""Lets questions through side by side, and keeps them out while weights are exchanged."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Turnstile:
    """Used on one event loop. Whoever is inside when it closes is waited for."""

    def __init__(self) -> None:
        self._changed = asyncio.Condition()
        self._n_inside = 0
        self._is_closed = False

    @asynccontextmanager
    async def inside(self) -> AsyncIterator[None]:
        """Waits while it is closed."""
        async with self._changed:
            await self._changed.wait_for(lambda: not self._is_closed)
            self._n_inside += 1
        try:
            yield
        finally:
            # No await may stand between: a cancelled question has to leave as well.
            self._n_inside -= 1
            if self._n_inside == 0 and self._is_closed:
                await self._tell()

    @asynccontextmanager
    async def closed(self) -> AsyncIterator[None]:
        """Nobody is inside, and nobody comes in; one caller at a time."""
        async with self._changed:
            await self._changed.wait_for(lambda: not self._is_closed)
            self._is_closed = True
        try:
            async with self._changed:
                await self._changed.wait_for(lambda: self._n_inside == 0)
            yield
        finally:
            self._is_closed = False
            await self._tell()

    async def _tell(self) -> None:
        async with self._changed:
            self._changed.notify_all()
