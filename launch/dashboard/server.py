"""The web server of the live page: one HTML page and one WebSocket.

Reading the run happens in a worker thread at most once per period, however many browsers watch.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import time
from contextlib import suppress
from importlib import resources
from urllib.parse import urlsplit

from fastapi import FastAPI, Request, WebSocket, WebSocketDisconnect
from fastapi.responses import HTMLResponse, PlainTextResponse, Response

from launch.access import is_loopback
from launch.dashboard.desk import PATIENCE_S, Desk
from launch.dashboard.run_view import RunView

PERIOD_S = 1.0
GOING_AWAY = 1001
PARTING_S = 2.0  # a browser that hears nothing by then is left
LARGEST_MESSAGE_BYTES = 4_096  # from a browser
SCRIPTS = ("base", "charts", "environments", "tree", "panels", "settings", "page")
# No address but this server's own: the page works without the internet and can't leak a run.
CONTENT_POLICY = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
    "script-src 'unsafe-inline'; connect-src 'self'; base-uri 'none'; frame-ancestors 'none'"
)
WRONG_TOKEN = (
    "This page needs the token of the run: open the address that `watch.py` or `train.py` printed, "
    "whole, with your token in the place of TOKEN.\n"
)


def read_page() -> str:
    """The page with its style and scripts inside."""
    folder = resources.files("launch.dashboard").joinpath("page")
    scripts = [folder.joinpath(f"{name}.js").read_text() for name in SCRIPTS]
    page = folder.joinpath("page.html").read_text()
    page = page.replace("/*page.css*/", folder.joinpath("page.css").read_text())
    return page.replace("/*page.js*/", "\n".join(scripts))


class Gate:
    """Who may look: with a token whoever has it, without one only this machine's own browsers."""

    def __init__(self, token: str | None) -> None:
        self._token = token

    def lets_in(self, token: str | None, host_header: str, origin: str | None) -> bool:
        """`origin` is set on WebSockets: a foreign web page may not open one to us."""
        try:
            host = urlsplit(f"//{host_header}").hostname or ""
            asked_by = host_header if origin is None else urlsplit(origin).netloc
        except ValueError:  # no address, such as "["
            return False
        if asked_by != host_header:
            return False
        if self._token is None:
            return is_loopback(host)  # else a foreign name that resolves to 127.0.0.1 gets in
        return token is not None and hmac.compare_digest(token.encode(), self._token.encode())


class Feed:
    """Shares one RunView between all connections."""

    def __init__(self, view: RunView) -> None:
        self._view = view
        self._lock = asyncio.Lock()
        self._refreshed_at = float("-inf")

    async def news(self, seen: dict[str, int], *, is_last: bool = False) -> list[dict[str, object]]:
        async with self._lock:
            if is_last or time.monotonic() - self._refreshed_at >= PERIOD_S / 2:
                await asyncio.to_thread(self._view.refresh)
                self._refreshed_at = time.monotonic()
            return self._view.changed_since(seen)


class Visit:
    """One browser: sends it news, hears what it wants."""

    def __init__(self, socket: WebSocket, feed: Feed, desk: Desk) -> None:
        self._socket = socket
        self._feed = feed
        self._desk = desk
        self._replies: list[dict[str, object]] = []
        self._has_replies = asyncio.Event()
        self._asking: set[asyncio.Task[None]] = set()
        self._farewell = ""

    async def serve(self) -> None:
        """Until the browser goes."""
        listener = asyncio.create_task(self._listen())
        try:
            await self._send_news(listener)
            if listener.done():
                listener.result()  # raises what ended it, if not that the browser left
        except (WebSocketDisconnect, RuntimeError):
            return  # the browser left while we were sending
        finally:
            tasks = (listener, *self._asking)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._desk.leaves(self)

    def part(self, farewell: str) -> None:
        """The browser gets the last news with this, and the connection ends."""
        self._farewell = farewell
        self._has_replies.set()

    async def _send_news(self, listener: asyncio.Task[None]) -> None:
        seen: dict[str, int] = {}
        while not listener.done():
            self._has_replies.clear()
            farewell = self._farewell
            replies, self._replies = self._replies, []
            messages = await self._feed.news(seen, is_last=bool(farewell))
            news = {"now": time.time(), "messages": messages, "replies": replies}
            if farewell:
                news["farewell"] = farewell
            # In ASCII: text of a run, or its name, may hold what UTF-8 has no form for.
            await self._socket.send_text(json.dumps(news, separators=(",", ":")))
            if farewell:
                await self._socket.close(code=GOING_AWAY)
                return
            await self._desk.keep_telling()
            waiter = asyncio.create_task(self._has_replies.wait())
            await asyncio.wait(
                [listener, waiter], timeout=PERIOD_S, return_when=asyncio.FIRST_COMPLETED
            )
            waiter.cancel()

    async def _listen(self) -> None:
        """Returns when the browser goes; what it sends and makes no sense is ignored."""
        while (message := await self._socket.receive())["type"] != "websocket.disconnect":
            try:
                said = json.loads(message.get("text") or "")
            except (ValueError, RecursionError):
                continue
            if not isinstance(said, dict):
                continue
            actor, env = said.get("actor"), said.get("env")
            if said.get("kind") == "look" and isinstance(actor, int) and isinstance(env, int):
                await self._desk.looks(self, actor, env)
            elif said.get("kind") == "away":
                await self._desk.leaves(self)
            elif said.get("kind") == "ask":
                task = asyncio.create_task(self._ask(said))
                self._asking.add(task)
                task.add_done_callback(self._asking.discard)

    async def _ask(self, said: dict[str, object]) -> None:
        answer = await self._desk.ask(
            {name: said[name] for name in ("ask", "setting", "value") if name in said}
        )
        reply = {"id": said.get("id"), "is_done": answer.is_done, "text": answer.text}
        self._replies.append(reply)
        self._has_replies.set()


class Audience:
    """The browsers that are connected: all hear of it when the page ends with its run."""

    def __init__(self) -> None:
        self._visits: set[Visit] = set()
        self._loop: asyncio.AbstractEventLoop | None = None  # of the server; None before anybody

    async def serve(self, visit: Visit) -> None:
        self._loop = asyncio.get_running_loop()
        self._visits.add(visit)
        try:
            await visit.serve()
        finally:
            self._visits.discard(visit)

    def part(self, farewell: str) -> None:
        """From another thread; waits until all have heard it, PARTING_S at most."""
        if self._loop is None:
            return
        with suppress(TimeoutError):
            asyncio.run_coroutine_threadsafe(self._part(farewell), self._loop).result(PARTING_S)

    async def _part(self, farewell: str) -> None:
        while self._visits:  # one may come meanwhile
            for visit in self._visits:
                visit.part(farewell)
            await asyncio.sleep(0.05)


def make_app(
    view: RunView,
    token: str | None,
    *,
    patience_s: float = PATIENCE_S,
    audience: Audience | None = None,
) -> FastAPI:
    """`token` None lets in whoever reaches the server from this machine.

    patience_s: how long a run may take to look at a request
    audience: who is connected, for a page that ends with its run
    """
    app = FastAPI(title="WarpZone", docs_url=None, redoc_url=None, openapi_url=None)
    gate, feed, page = Gate(token), Feed(view), read_page()
    desk = Desk(view.run_dir, lambda: view.state, patience_s=patience_s)
    everybody = Audience() if audience is None else audience

    @app.get("/")
    async def show_page(request: Request) -> Response:
        headers = request.headers
        if not gate.lets_in(request.query_params.get("token"), headers.get("host", ""), None):
            return PlainTextResponse(WRONG_TOKEN, status_code=401)
        return HTMLResponse(
            page,
            headers={
                "Content-Security-Policy": CONTENT_POLICY,
                "Cache-Control": "no-store",
                "Referrer-Policy": "no-referrer",
            },
        )

    @app.websocket("/feed")
    async def feed_browser(socket: WebSocket) -> None:
        headers = socket.headers
        token_given = socket.query_params.get("token")
        if not gate.lets_in(token_given, headers.get("host", ""), headers.get("origin")):
            await socket.close(code=1008)
            return
        await socket.accept()
        await everybody.serve(Visit(socket, feed, desk))

    return app
