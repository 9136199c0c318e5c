"""Server of the label page: loopback only, a token for every request, answers on the disk before they are confirmed."""

import secrets
import signal
import socket
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, Literal
from urllib.parse import parse_qs

import uvicorn
from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from pydantic import BaseModel, ConfigDict, Field
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from ..datasets.episodes import BadEpisodeError
from ..preference.answer_log import AlreadyAnsweredError, AnswerNotSavedError
from ..preference.answers import Choice
from ..preference.segments import SegmentPair
from .label_clips import Clips
from .label_queue import LabelQueue

HOST = "127.0.0.1"
TOKEN_HEADER = "x-guerdon-token"
_NAMES = ("127.0.0.1", "localhost")


class Guard:
    """Middleware that refuses every request that does not come from the page, with status 403.

    A request needs the token, in the query (``?token=``) or in the header ``X-Guerdon-Token``; a ``Host`` of this
    machine, so that no other site reaches the server under a name of its own (DNS rebinding); and, unless it only
    reads, an ``Origin`` that is the page's. No header allows other origins.

    Args:
        app: Application behind it.
        token: Token of the session.
    """

    def __init__(self, app: ASGIApp, token: str) -> None:
        self.app = app
        self._token = token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass an allowed request on, and refuse any other."""
        reason = self._refusal(scope) if scope["type"] == "http" else "expected HTTP"
        if reason:
            response = JSONResponse({"detail": f"refused: {reason}"}, status_code=403, headers=_PRIVATE)
            await response(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    def _refusal(self, scope: Scope) -> str:
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if host.partition(":")[0].lower() not in _NAMES:
            return f"expected the address of this machine, {HOST}"
        if scope["method"] not in ("GET", "HEAD") and headers.get("origin") != f"http://{host}":
            return "expected a request of the page itself"
        query = parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[0]
        if not secrets.compare_digest((headers.get(TOKEN_HEADER) or query).encode(), self._token):
            return "expected the token of the address that `guerdon label` printed"
        return ""


_PRIVATE = {
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


class _Sent(BaseModel):
    """Body of a request: unknown fields are refused, and nothing is converted."""

    model_config = ConfigDict(extra="forbid", strict=True)

    rater: str
    pair: str


class SentAnswer(_Sent):
    """Answer as the page sends it."""

    choice: Choice
    seconds: float | None = Field(default=None, ge=0, allow_inf_nan=False)


class SentUndo(_Sent):
    """Withdrawal as the page sends it."""


class LabelPage:
    """Label page of one session.

    Args:
        queue: Pairs and answers.
        clips: Clips of the pairs.
        token: Token that every request needs; None draws one.
    """

    def __init__(self, queue: LabelQueue, clips: Clips, token: str | None = None) -> None:
        self.queue, self.clips = queue, clips
        self.token = token or secrets.token_urlsafe(24)

    def app(self) -> ASGIApp:
        """Make the application."""
        app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
        app.add_api_route("/", self._page, response_class=HTMLResponse)
        app.add_api_route("/state", self._state)
        app.add_api_route("/clip", self._clip)
        app.add_api_route("/answer", self._answer, methods=["POST"])
        app.add_api_route("/undo", self._undo, methods=["POST"])
        for kind, status in ((ValueError, 422), (AnswerNotSavedError, 507)):
            app.add_exception_handler(kind, _explained(status))
        return Guard(app, self.token)

    def _page(self) -> HTMLResponse:
        nonce = secrets.token_urlsafe(12)
        policy = f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src 'self'; "
        policy += "img-src 'self' blob: data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        page = render(nonce, self.token, self.queue.raters)
        return HTMLResponse(page, headers=_PRIVATE | {"Content-Security-Policy": policy})

    def _state(self, rater: str) -> JSONResponse:
        self.queue.require_rater(rater)
        return self._where(rater)

    def _clip(self, pair: str, side: Literal["first", "second"]) -> Response:
        chosen = self._found(pair)
        try:
            clip = self.clips.clip(chosen.first if side == "first" else chosen.second)
        except BadEpisodeError as error:
            return JSONResponse({"detail": str(error)}, status_code=422, headers=_PRIVATE)
        return Response(clip, media_type="application/octet-stream", headers=_PRIVATE)

    def _answer(self, sent: SentAnswer) -> JSONResponse:
        self.queue.require_rater(sent.rater)
        self._found(sent.pair)
        try:
            self.queue.answer(sent.rater, sent.pair, sent.choice, sent.seconds)
        except AlreadyAnsweredError as error:
            return self._where(sent.rater, 409, {"detail": str(error), "choice": error.answer.choice})
        return self._where(sent.rater)

    def _undo(self, sent: SentUndo) -> JSONResponse:
        self.queue.require_rater(sent.rater)
        try:
            self.queue.undo(sent.rater, sent.pair)
        except LookupError as error:
            return self._where(sent.rater, 409, {"detail": str(error)})
        return self._where(sent.rater)

    def _found(self, pair: str) -> SegmentPair:
        if pair not in self.queue.pairs:
            raise HTTPException(404, f"there is no pair {pair!r} in this session")
        return self.queue.pairs[pair]

    def _where(self, rater: str, status: int = 200, more: Mapping[str, Any] | None = None) -> JSONResponse:
        """Answer with where the rater stands."""
        state = self.queue.state(rater)
        body = {
            **(more or {}),
            "pair": self._shown(state.pair),
            "following": self._shown(state.following),
            "answered": state.answered,
            "total": state.total,
            "seconds_left": state.seconds_left,
            "last": state.last,
        }
        return JSONResponse(body, status_code=status, headers=_PRIVATE)

    def _shown(self, pair: SegmentPair | None) -> dict[str, Any] | None:
        """Describe a pair to the page; the reason of the pair and the outcome of its episodes would sway raters."""
        if pair is None:
            return None
        words = [self.clips.summary(segment).instruction for segment in (pair.first, pair.second)]
        return {"id": pair.id, "instructions": list(dict.fromkeys(words))}


def render(nonce: str, token: str, raters: Sequence[str]) -> str:
    """Render the page.

    Args:
        nonce: Nonce of its script and style, which the content security policy names.
        token: Token of the session.
        raters: Names that may be chosen; empty asks for a name.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("label.html").render(nonce=nonce, token=token, raters=list(raters))


def bind(port: int = 0) -> socket.socket:
    """Open a socket on the loopback interface, which nothing outside this machine reaches.

    Args:
        port: Port; 0 takes a free one.

    Raises:
        OSError: If the port is taken.
    """
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((HOST, port))
        sock.listen(64)
    except OSError as error:
        sock.close()
        raise OSError(
            f"cannot use port {port} ({error.strerror}): choose another --port, or 0 for a free one"
        ) from error
    return sock


def serve(page: LabelPage, sock: socket.socket) -> None:
    """Serve a page until the process is interrupted (Ctrl-C) or terminated; open requests are finished first.

    Args:
        page: Page to serve.
        sock: Listening socket of `bind`.
    """
    with _stopping_quietly():
        make_server(page).run(sockets=[sock])


def make_server(page: LabelPage) -> uvicorn.Server:
    """Make the server of a page; nothing is logged, because addresses hold the token."""
    return uvicorn.Server(
        uvicorn.Config(
            page.app(),
            log_level="error",
            access_log=False,
            lifespan="off",
            ws="none",
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=3,
        )
    )


@contextmanager
def _stopping_quietly() -> Generator[None]:
    """Return to the caller after a signal to stop: uvicorn stops, then raises the signal again for this handler."""

    def ignore(number: int, frame: FrameType | None) -> None:
        del number, frame

    before = {number: signal.signal(number, ignore) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _explained(status: int) -> Callable[[Request, Exception], Response]:
    """Make a handler that answers with the message of an error."""

    def explain(request: Request, error: Exception) -> Response:
        return JSONResponse({"detail": str(error)}, status_code=status, headers=_PRIVATE)

    return explain


__all__ = ["HOST", "Guard", "LabelPage", "bind", "make_server", "render", "serve"]
