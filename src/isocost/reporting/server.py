"""The planner's server: read only, on this machine alone, and asking no other for anything."""

from __future__ import annotations

import contextlib
import socket
import threading
from pathlib import Path
from typing import Any

from isocost.errors import SpecError, StoreError
from isocost.reporting.page import plotly_source
from isocost.reporting.planner import Planner, Start
from isocost.reporting.planner_page import MEDIA_TYPES, empty_page, served_page
from isocost.reporting.planner_store import changed, picture, planner_of
from isocost.study import published
from isocost.study.seconds import Wanted
from isocost.study.store import Store

HOSTS = ["127.0.0.1", "localhost"]
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-cache",
}
MISSING = (
    "isocost serve needs FastAPI and uvicorn: pip install 'isocost[serve]'. Without them, `isocost plan STORE --page "
    "planner.html` writes the same page as a file."
)


class Live:
    """A folder's planner, made again when its results have changed."""

    def __init__(self, path: Path, start: Start, wanted: Wanted):
        self.path, self._start, self._wanted = path, start, wanted
        self._lock = threading.Lock()
        self._made: tuple[Any, Planner] | None = None

    def __call__(self) -> Planner:
        """Raises as `planner_of` does."""
        with self._lock:
            now = changed(self.path)
            if self._made is None or self._made[0] != now:
                self._made = now, planner_of(self.path, _picture_at, self._start, self._wanted)
            return self._made[1]


def create_app(path: Path | str, start: Start | None = None, wanted: Wanted | None = None) -> Any:
    """A FastAPI application that shows the planner of a folder of results.

    `/`: the page. `/planner.json`: its data. `/files/NAME`: what stands behind its links. `/pictures/KEY/K.png`.
    Raises `SpecError` where FastAPI is not installed; `StoreError` where the folder is no store.
    """
    try:
        from fastapi import FastAPI, HTTPException, Response
        from fastapi.middleware.trustedhost import TrustedHostMiddleware
        from fastapi.responses import HTMLResponse, JSONResponse
    except ModuleNotFoundError:
        raise SpecError(MISSING) from None

    path = Path(path)
    if not published.is_published(path):
        Store(path).study()
    live = Live(path, start or Start(), wanted or Wanted())
    with contextlib.suppress(StoreError, SpecError):  # which the page says
        live()  # so that the first visitor does not wait for it
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    @app.middleware("http")
    async def guarded(request: Any, call_next: Any) -> Any:
        response = await call_next(request)
        for name, value in HEADERS.items():
            response.headers.setdefault(name, value)
        response.headers.setdefault("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
        return response

    app.add_middleware(TrustedHostMiddleware, allowed_hosts=HOSTS)

    def page() -> Any:
        try:
            found = live()
        except (StoreError, SpecError) as error:
            text, rules = empty_page(str(error))
        else:
            text, rules = served_page(found, {name: f"files/{name}" for name in found.files}, "plotly.js")
        return HTMLResponse(text, headers={"Content-Security-Policy": f"{rules}; frame-ancestors 'none'"})

    def plotly() -> Any:
        day = {"Cache-Control": "max-age=86400"}
        return Response(plotly_source(), media_type="text/javascript; charset=utf-8", headers=day)

    def planner_json() -> Any:
        try:
            return JSONResponse(live().data)
        except (StoreError, SpecError) as error:
            raise HTTPException(404, str(error)) from None

    def file(name: str) -> Any:
        try:
            content = live().files[name]
        except (KeyError, StoreError, SpecError):
            raise HTTPException(404, f"no file '{name}'.") from None
        attached = {"Content-Disposition": f'attachment; filename="{name}"'}
        return Response(content, media_type=MEDIA_TYPES[Path(name).suffix], headers=attached)

    def strip(key: str, index: int) -> Any:
        store = Store(path)
        counts = {found["key"]: len(found["captions"]) for found in store.strips().values()}
        if not 0 <= index < counts.get(key, 0):
            raise HTTPException(404, "no such picture.")
        return Response(picture(store, key, index), media_type="image/png", headers={"Cache-Control": "max-age=86400"})

    app.add_api_route("/", page, methods=["GET", "HEAD"])
    app.add_api_route("/plotly.js", plotly, methods=["GET"])
    app.add_api_route("/planner.json", planner_json, methods=["GET"])
    app.add_api_route("/files/{name}", file, methods=["GET"])
    app.add_api_route("/pictures/{key}/{index}.png", strip, methods=["GET"])
    return app


def serve(app: Any, port: int, ready: Any = lambda address: None) -> None:
    """Serve on 127.0.0.1 until interrupted; port 0 takes a free one. `ready(address)` is called once it listens.

    Raises `SpecError` for a port that is taken.
    """
    import uvicorn

    with socket.socket() as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind(("127.0.0.1", port))
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or error
            raise SpecError(
                f"port {port} cannot be had ({reason}): choose another with --port, or 0 for any."
            ) from None
        ready(f"http://127.0.0.1:{listening.getsockname()[1]}/")
        config = uvicorn.Config(app, log_level="warning", server_header=False)
        uvicorn.Server(config).run(sockets=[listening])


def _picture_at(key: str, index: int) -> str:
    return f"pictures/{key}/{index}.png"
