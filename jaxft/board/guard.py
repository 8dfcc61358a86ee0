"""Who may ask the board: holders of its token, by an address that no web page can make up."""

from __future__ import annotations

import hmac
import ipaddress
import socket
from dataclasses import dataclass, field
from urllib.parse import parse_qs, urlsplit

from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

# The pages bring their own policy for scripts and styles, by hashes, as the report's do.
HEADERS = {
    "content-security-policy": "frame-ancestors 'none'; base-uri 'none'; form-action 'self'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",  # the address has the token
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}


@dataclass(frozen=True)
class Guard:
    """ASGI middleware that refuses what does not come from the person who started the board.

    A page of another site can send requests to this machine, and through a name that it points
    here (DNS rebinding) also read the answers. So the `Host` must be a number or a name of this
    machine, a request that changes anything must come from a page of the board, and each must have
    the token.

    Attributes:
        app: what answers.
        token: that each request must have; empty for none.
        names: of this machine, besides `localhost` and numbers.
    """

    app: ASGIApp
    token: str
    names: frozenset[str] = field(default_factory=frozenset)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or refuse it with 403 and a sentence."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                more = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
                message = {**message, "headers": [*message["headers"], *more]}
            await send(message)

        sentence = self.refusal(scope)
        answer = PlainTextResponse(sentence, 403) if sentence else self.app
        await answer(scope, receive, send_with_headers)

    def refusal(self, scope: Scope) -> str:
        """Return why a request is refused; empty where it is not."""
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if not is_of_this_machine(host, self.names):
            return "The address has the name of another machine; use the one that was printed."
        if scope["method"] not in ("GET", "HEAD") and not _is_same(headers.get("origin"), host):
            return "Only a page of the board can do this."
        query = parse_qs(scope["query_string"].decode("ascii", errors="replace"))
        token = query.get("token", [""])[0]
        if not hmac.compare_digest(token.encode(errors="replace"), self.token.encode()):
            return "The token in the address is missing or wrong; use the address that was printed."
        return ""


def is_of_this_machine(host: str, names: frozenset[str]) -> bool:
    """Return whether a `Host` header is a number, which no name server can redirect, or a name.

    Args:
        host: a name or number, with a port or without.
        names: that are allowed besides `localhost`, in lower case.
    """
    try:
        name = urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return False
    if name == "localhost" or name in names:
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def machine_names(bound: str) -> frozenset[str]:
    """Return the names that this machine is reached by where the board is bound to `bound`."""
    if is_loopback(bound):
        return frozenset()
    own = {bound, socket.gethostname(), socket.getfqdn()}
    return frozenset(name.lower() for name in own)


def is_loopback(host: str) -> bool:
    """Return whether only this machine can connect to an address."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _is_same(origin: str | None, host: str) -> bool:
    return origin is not None and urlsplit(origin).netloc == host
