"""The web server of the live page: one HTML page and one WebSocket, both read-only.

Reading the run happens in a worker thread at most once per period, however many browsers watch.
"""

from __future__ import annotations

import asyncio
import hmac
import time
from importlib import resources
from urllib.parse import urlsplit

from fastapi import FastAPI, Request, WebSocket, WebSocketDisconnect
from fastapi.responses import HTMLResponse, PlainTextResponse, Response

from launch.access import is_loopback
from launch.dashboard.run_view import RunView

PERIOD_S = 1.0
# No address but this server's own: the page works without the internet and can't leak a run.
CONTENT_POLICY = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
    "script-src 'unsafe-inline'; connect-src 'self'; base-uri 'none'; frame-ancestors 'none'"
)
WRONG_TOKEN = "This page needs the token of `watch.py`: open the address that it printed, whole.\n"


def read_page() -> str:
    """The page with its style and script inside."""
    folder = resources.files("launch.dashboard")
    page = folder.joinpath("page.html").read_text()
    for kind in ("css", "js"):
        page = page.replace(f"/*page.{kind}*/", folder.joinpath(f"page.{kind}").read_text())
    return page


class Gate:
    """Who may look: with a token whoever has it, without one only this machine's own browsers."""

    def __init__(self, token: str | None) -> None:
        self._token = token

    def lets_in(self, token: str | None, host_header: str, origin: str | None) -> bool:
        """`origin` is set on WebSockets: a foreign web page may not open one to us."""
        host = urlsplit(f"//{host_header}").hostname or ""
        if origin is not None and urlsplit(origin).netloc != host_header:
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

    async def news(self, seen: dict[str, int]) -> list[dict[str, object]]:
        async with self._lock:
            if time.monotonic() - self._refreshed_at >= PERIOD_S / 2:
                await asyncio.to_thread(self._view.refresh)
                self._refreshed_at = time.monotonic()
            return self._view.changed_since(seen)


def make_app(view: RunView, token: str | None) -> FastAPI:
    """`token` None lets in whoever reaches the server from this machine."""
    app = FastAPI(title="WarpZone", docs_url=None, redoc_url=None, openapi_url=None)
    gate, feed, page = Gate(token), Feed(view), read_page()

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
        listener = asyncio.create_task(_until_closed(socket))
        try:
            await _send_news(socket, feed, listener)
        except (WebSocketDisconnect, RuntimeError):
            return  # the browser left while we were sending
        finally:
            listener.cancel()

    return app


async def _send_news(socket: WebSocket, feed: Feed, listener: asyncio.Task[None]) -> None:
    seen: dict[str, int] = {}
    while not listener.done():
        messages = await feed.news(seen)
        await socket.send_json({"now": time.time(), "messages": messages})
        await asyncio.wait([listener], timeout=PERIOD_S)


async def _until_closed(socket: WebSocket) -> None:
    """Returns when the browser goes; what it sends is ignored."""
    while (await socket.receive())["type"] != "websocket.disconnect":
        pass
