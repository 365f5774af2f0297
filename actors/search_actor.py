"""The process shell of the search service, and how clients reach it over Ray.

An async actor: calls wait on its event loop while one thread searches, batch by batch. Give it
`max_concurrency` of twice its clients, so that a question asked again finds a place.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
import traceback
from collections.abc import Hashable
from dataclasses import dataclass

import ray
import torch
from ray.actor import ActorHandle
from ray.exceptions import GetTimeoutError, RayError, RayTaskError

from actors.search.batching import BatchQueue
from actors.search.client import SearchUnavailable
from actors.search.messages import SearchReply, SearchRequest
from actors.search.service import SearchService, ServiceStats, make_service

REPLY_TIMEOUT_S = 60.0  # the first search of a process compiles for seconds


@dataclass(frozen=True, slots=True)
class _Call:
    request: SearchRequest
    reply: asyncio.Future[SearchReply]


class SearchActor:
    """Takes what `make_service` takes; owns nothing that clients can't bring back."""

    def __init__(self, *, wait_ms: float, **settings: object) -> None:
        torch.set_num_threads(1)
        self._service: SearchService = make_service(**settings)  # type: ignore[arg-type]
        self._queue = BatchQueue[_Call](self._service.max_roots, wait_ms / 1e3)
        self._turn = threading.Lock()  # between a batch and a look at the statistics
        self._busy_s, self._since = 0.0, time.monotonic()
        threading.Thread(target=self._work, name="search", daemon=True).start()

    async def search(self, request: SearchRequest) -> SearchReply:
        """Wait for a place in a batch and for its result; ValueError for a bad request."""
        call = _Call(request, asyncio.get_running_loop().create_future())
        self._queue.put(call, request.client, request.n_roots)
        return await call.reply

    async def stats(self) -> ServiceStats:
        """Of service and queue since the last call."""
        return await asyncio.to_thread(self._stats)

    async def ping(self) -> int:
        """The process id; an answer means the constructor has finished."""
        return os.getpid()

    def _stats(self) -> ServiceStats:
        with self._turn:
            stats, queue = self._service.stats(), self._queue.stats()
            busy_s, seconds = self._busy_s, time.monotonic() - self._since
            self._busy_s, self._since = 0.0, self._since + seconds
        stats.metrics["search_served_busy_share"] = busy_s / max(seconds, 1e-9)
        if queue.n_taken:
            stats.metrics["search_served_wait_ms_mean"] = queue.wait_s / queue.n_taken * 1e3
            n_batches = queue.full + queue.complete + queue.overdue
            stats.metrics["search_served_overdue_share"] = queue.overdue / n_batches
        return stats

    def _work(self) -> None:
        """Search for ever. What the device or the model raises leaves nothing to rely on, so the
        process ends with it and Ray starts a new one, to which clients bring their contexts.
        """
        try:
            while True:
                calls = self._queue.take()
                with self._turn:
                    start = time.monotonic()
                    replies = self._service.run([call.request for call in calls])
                    self._busy_s += time.monotonic() - start
                for call, reply in zip(calls, replies, strict=True):
                    call.reply.get_loop().call_soon_threadsafe(_settle, call.reply, reply)
        except BaseException:
            traceback.print_exc()
            os._exit(1)


def _settle(future: asyncio.Future[SearchReply], reply: SearchReply | ValueError) -> None:
    if future.done():  # its caller has gone
        return
    if isinstance(reply, ValueError):
        future.set_exception(reply)
    else:
        future.set_result(reply)


class RaySearchTransport:
    """Reaches a SearchActor; travels to acting processes inside their arguments."""

    def __init__(self, actor: ActorHandle) -> None:
        self._actor = actor

    def submit(self, request: SearchRequest) -> Hashable:
        try:
            return self._actor.search.remote(request)
        except RayError as error:
            raise SearchUnavailable(str(error)) from error

    def result(self, handle: Hashable) -> SearchReply:
        try:
            return ray.get(handle, timeout=REPLY_TIMEOUT_S)
        except RayTaskError:
            raise  # a bad request, or a defect of the service: no outage
        except GetTimeoutError as error:
            raise SearchUnavailable(f"no reply within {REPLY_TIMEOUT_S:.0f} s") from error
        except RayError as error:
            raise SearchUnavailable(str(error)) from error
