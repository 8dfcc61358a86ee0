"""`jaxft board`: serves the pages of runs that go on, and sends what changes as events."""

from __future__ import annotations

import asyncio
import json
import secrets
import socket
import threading
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from jaxft.board.folders import Folder, find_folders
from jaxft.board.guard import Guard, is_loopback, machine_names
from jaxft.board.pages import ListPage, Page, RunsPage, StudyPage, change
from jaxft.board.stop import Stopper
from jaxft.errors import UserError
from jaxft.report.page.page import Served

PERIOD = 1.0  # seconds between two looks at the files of a page
SILENCE = 15.0  # seconds after which a comment tells whether the reader is still there
MOST_STREAMS = 32  # pages that are open at once
MOST_PAGES = 16  # that are remembered with what was read for them


class Board:
    """The runs below a folder, and the pages that are open of them.

    Args:
        top: the folder.
        token: part of each address.
    """

    def __init__(self, top: Path, token: str):
        self.top, self.token = top, token
        self.stopper = Stopper()
        self.streams = 0
        self._pages: OrderedDict[tuple[str, ...], tuple[Page, threading.Lock]] = OrderedDict()
        self._sent: OrderedDict[str, dict[str, int]] = OrderedDict()
        self._lock = threading.Lock()

    def folder(self, key: str) -> Folder:
        """Return a run or study by its key.

        Raises:
            UserError: there is none of that key.
        """
        for folder in find_folders(self.top):
            if folder.key == key:
                return folder
        raise UserError("There is no such run or study.", "It may have been renamed or deleted.")

    def open(self, path: str, keys: tuple[str, ...]) -> str:
        """Return a page whole, as it is now.

        Args:
            path: `/`, `/runs` or `/study`.
            keys: of its runs, or of its study.

        Raises:
            UserError: there is no such run, or there are too many.
        """
        load = secrets.token_hex(8)
        page, lock = self._page(path, keys)
        query = [("page", path), ("load", load), *(("key", key) for key in keys)]
        served = Served(home=page.address("/"), events=page.address("/events", query))
        with lock:
            page.mark()
            text = page.render(served)
        sent: dict[str, int] = {}
        change(served, sent)
        with self._lock:
            self._sent[load] = sent
            while len(self._sent) > 2 * MOST_STREAMS:
                self._sent.popitem(last=False)
        return text

    def changes(self, path: str, keys: tuple[str, ...], load: str) -> Changes:
        """Return what to send to an open page; `load` names when it was opened."""
        page, lock = self._page(path, keys)
        with self._lock:
            return Changes(page, lock, self._sent.setdefault(load, {}))

    def _page(self, path: str, keys: tuple[str, ...]) -> tuple[Page, threading.Lock]:
        name = (path, *keys)
        with self._lock:
            if name in self._pages:
                self._pages.move_to_end(name)
                return self._pages[name]
        folders = [self.folder(key) for key in dict.fromkeys(keys)]
        if path == "/":
            page: Page = ListPage(self.top, self.token)
        elif path == "/study" and len(folders) == 1 and folders[0].is_study:
            page = StudyPage(folders[0], self.token)
        elif path == "/runs" and folders and not any(folder.is_study for folder in folders):
            page = RunsPage(folders, self.token)
        else:
            raise UserError("There is no such page.", "Tick a run, and compare runs with runs.")
        with self._lock:
            entry = self._pages.setdefault(name, (page, threading.Lock()))
            while len(self._pages) > MOST_PAGES:
                self._pages.popitem(last=False)
        return entry


class Changes:
    """Changes that one open page has to be sent.

    Args:
        page: the page.
        lock: taken while it is made; several readers share it.
        sent: hashes of what the reader has.
    """

    def __init__(self, page: Page, lock: threading.Lock, sent: dict[str, int]):
        self._page, self._lock, self._sent = page, lock, sent
        self._mark: Any = None
        self._states: dict[str, str] | None = None

    def next(self) -> str | None:
        """Look at the files; return a message as JSON, or None where nothing has changed."""
        with self._lock:
            mark = self._page.mark()
            if mark == self._mark:
                return None
            self._mark = mark
            served = Served(home=self._page.address("/"), events="", whole=False)
            self._page.render(served)
            before, self._states = self._states, dict(self._page.states())
        message = change(served, self._sent)
        if message is None:
            return None
        message["announcement"] = _announcement(before, self._states)
        return json.dumps(message, allow_nan=False)


def _announcement(before: dict[str, str] | None, now: dict[str, str]) -> str:
    """Return the new states of the runs whose state has changed, for screen readers too."""
    changed = [
        f"{name}: {state}" for name, state in now.items() if before and before.get(name) != state
    ]
    return "; ".join(changed[:5])


def make_app(
    top: Path,
    token: str,
    names: frozenset[str] = frozenset(),
    is_ending: Callable[[], bool] = lambda: False,
) -> Starlette:
    """Return the board as an ASGI application.

    Args:
        top: the folder of runs and studies.
        token: that each request must have in its address; empty for none.
        names: of this machine, by which it may be asked besides numbers and `localhost`.
        is_ending: tells whether the server is about to end, and waits for open streams.
    """
    board = Board(top, token)

    async def page(request: Request) -> Response:
        kind = {"/runs": "run", "/study": "study"}.get(request.url.path, "")
        keys = tuple(request.query_params.getlist(kind))
        return await _answered(lambda: HTMLResponse(board.open(request.url.path, keys)))

    async def events(request: Request) -> Response:
        asked = request.query_params
        keys, load = tuple(asked.getlist("key")), asked.get("load", "")[:32]
        if board.streams >= MOST_STREAMS:
            return PlainTextResponse("Too many pages of this board are open.", 503)
        return await _answered(
            lambda: StreamingResponse(
                stream(board, board.changes(asked.get("page", ""), keys, load), is_ending),
                media_type="text/event-stream",
            )
        )

    async def stop(request: Request) -> Response:
        key = request.query_params.get("run", "")
        return await _answered(lambda: PlainTextResponse(board.stopper.stop(board.folder(key))))

    routes = [
        *(Route(path, page) for path in ("/", "/runs", "/study")),
        Route("/events", events),
        Route("/stop", stop, methods=["POST"]),
    ]
    return Starlette(routes=routes, middleware=[Middleware(Guard, token=token, names=names)])


async def stream(
    board: Board, changes: Changes, is_ending: Callable[[], bool] = lambda: False
) -> AsyncIterator[str]:
    """Yield the changes of a page as server-sent events, until its reader or the server is gone."""
    board.streams += 1
    quiet = 0.0
    try:
        while not is_ending():
            try:
                message = await run_in_threadpool(changes.next)
            except UserError:
                message = None
            if message is not None or quiet >= SILENCE:
                quiet = 0.0
                yield ": \n\n" if message is None else f"data: {message}\n\n"
            await asyncio.sleep(PERIOD)
            quiet += PERIOD
    finally:
        board.streams -= 1


async def _answered(answer: Callable[[], Response]) -> Response:
    """Return an answer, made beside the loop; a sentence where the person asked for nothing."""
    try:
        return await run_in_threadpool(answer)
    except UserError as error:
        return PlainTextResponse(str(error), 404)


def bind(host: str, port: int) -> socket.socket:
    """Return a listening socket.

    Raises:
        UserError: the port is taken, or the address is none of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    opened = socket.socket(family, socket.SOCK_STREAM)
    try:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind((host, port))
        opened.listen(64)
    except (OSError, OverflowError) as error:
        opened.close()
        reason = error.strerror if isinstance(error, OSError) else "no such port"
        raise UserError(
            f"The board cannot listen on {host}, port {port}: {reason}.",
            "Choose another --port; 0 takes a free one.",
        ) from None
    return opened


def serve(top: Path, host: str, port: int, asks_token: bool, say: Callable[[str], None]) -> None:
    """Serve the board until Ctrl-C.

    Args:
        top: the folder of runs and studies.
        host, port: where to listen; port 0 takes a free one.
        asks_token: whether each address needs a token.
        say: prints the address.

    Raises:
        UserError: the port is taken; or the board would be open to the network without a token.
    """
    if not asks_token and not is_loopback(host):
        raise UserError(
            f"Without a token anyone on the network could stop the runs through {host}.",
            "Leave out --no-token, or --host.",
        )
    token = secrets.token_urlsafe(24) if asks_token else ""
    with bind(host, port) as opened:
        name = f"[{host}]" if ":" in host else host
        address = f"http://{name}:{opened.getsockname()[1]}/"
        say(f"{address}?token={token}" if token else address)
        config = uvicorn.Config(
            make_app(top, token, machine_names(host), lambda: server.should_exit),
            log_level="error",
            access_log=False,  # addresses have the token
            server_header=False,
            timeout_graceful_shutdown=5,
            lifespan="off",
        )
        server = uvicorn.Server(config)
        server.run(sockets=[opened])
