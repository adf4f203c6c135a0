"""What every service does with HTTP: bad requests are refused in one line, before they reach a batch.

BentoML parses, batches and counts; its own refusals are lists of validation details and go to the log with a
traceback. So a request is parsed and checked once, by `Gate`, with the same checks as `deploykit predict`.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, MutableMapping
from http import HTTPStatus
from typing import Any, Self

import bentoml
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from deploykit.errors import DataError
from deploykit.runtime.tasks import decoder_of

ENVIRONMENT = [{"name": "BENTOML_DO_NOT_TRACK", "value": "True"}, {"name": "ORT_DISABLE_TELEMETRY", "value": "1"}]
"""No telemetry, in a container too."""
LOGGING = {"access": {"enabled": False}}
"""No line per request: `/metrics` counts them, and a line costs a third of a millisecond."""
PATH = "/predict"
MAX_BODY_BYTES = 1 << 20
MAX_DISCARDED_BYTES = 1 << 26
"""A body over the limit is read up to here before it is refused: a client that still sends would see its connection
reset, not the answer."""
MAX_BODY_SECONDS = 30
"""How long a body may take to arrive; BentoML gives up after 60 seconds, with a 5xx."""
MAX_ROWS = 256
"""How many rows one request may hold."""
MAX_BATCH_ROWS = 32
"""How many rows, of any number of requests, run together."""
MAX_LATENCY_MS = 10_000
"""A request that would wait longer than this is refused with 503: the machine is overloaded."""

_ROWS = "deploykit.rows"

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class HttpRequest(bentoml.IODescriptor):  # type: ignore[misc]
    """A request's input as the service documents it; `Gate` has parsed and checked it."""

    @classmethod
    async def from_http_request(cls, request: Request, serde: object) -> Self:  # noqa: ARG003
        """Take the rows, dicts as they came, from the gate."""
        return cls.model_construct(rows=request.scope[_ROWS])  # type: ignore[no-any-return]


class HttpResponse(bentoml.IODescriptor):  # type: ignore[misc]
    """A request's answer as the service documents it."""

    @classmethod
    async def to_http_response(cls, obj: Any, serde: object) -> Response:  # noqa: ARG003
        """Send the predictions as they are."""
        return JSONResponse({"predictions": obj})


class Refused(Exception):
    """A request that is answered with a 4xx status and one line."""

    def __init__(self, status: HTTPStatus, line: str) -> None:
        self.status = status
        super().__init__(line)


class Gate:
    """ASGI middleware that lets only requests through that can be answered."""

    def __init__(
        self, app: Callable[[Message, Receive, Send], Awaitable[None]], task: str, seconds: float = MAX_BODY_SECONDS
    ) -> None:
        self.app = app
        self.task = decoder_of(task)
        self.seconds = seconds

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer a bad request; hand a good one on with its rows."""
        if scope["type"] == "http" and scope["path"] == PATH and scope["method"] == "POST":
            try:
                body = await self._body(receive)  # first, whatever its type: see MAX_DISCARDED_BYTES
                _require_json(Request(scope).headers.get("content-type", "application/json"))
                scope[_ROWS] = rows_of(body, self.task.check)
            except Refused as refused:
                await JSONResponse({"error": str(refused)}, refused.status)(scope, receive, send)
                return
        await self.app(scope, receive, send)

    async def _body(self, receive: Receive) -> bytes:
        try:
            async with asyncio.timeout(self.seconds):
                return await read_body(receive)
        except TimeoutError as late:
            line = f"the body: expected its end within {self.seconds} s, found none; send it again"
            raise Refused(HTTPStatus.REQUEST_TIMEOUT, line) from late


def rows_of(body: bytes, check: Callable[[dict[str, Any], str], None]) -> list[dict[str, Any]]:
    """Parse a request's body and check every row.

    Raises:
        Refused: it is not JSON, or not of the form `{"rows": [{...}, ...]}`, or `check` refuses a row.
    """
    try:
        value = json.loads(body.decode())
    except (ValueError, RecursionError) as cause:
        raise _bad("the body", "JSON in UTF-8", str(cause)) from cause
    if not isinstance(value, dict) or list(value) != ["rows"]:
        found = f"the fields {', '.join(map(repr, value)) or 'none'}" if isinstance(value, dict) else _type_of(value)
        raise _bad("the body", 'an object {"rows": [...]}', found)
    rows = value["rows"]
    if not isinstance(rows, list) or not 0 < len(rows) <= MAX_ROWS:
        raise _bad(
            "rows", f"a list of 1 to {MAX_ROWS} rows", f"{len(rows)}" if isinstance(rows, list) else _type_of(rows)
        )
    for index, row in enumerate(rows):
        _check_row(row, f"rows[{index}]", check)
    return rows


def _check_row(row: Any, where: str, check: Callable[[dict[str, Any], str], None]) -> None:
    if not isinstance(row, dict):
        raise _bad(where, "an object", _type_of(row))
    try:
        check(row, where)
    except DataError as error:
        raise _bad(where, error.expected, error.found) from error


async def read_body(receive: Receive) -> bytes:
    """Read a body.

    Raises:
        Refused: it is larger than `MAX_BODY_BYTES`, or the client went away.
    """
    parts, size, more = [], 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Refused(HTTPStatus.BAD_REQUEST, "the client went away")
        part = message.get("body", b"")
        size += len(part)
        if size <= MAX_BODY_BYTES:
            parts.append(part)
        more = message.get("more_body", False) and size <= MAX_DISCARDED_BYTES
    if size > MAX_BODY_BYTES:
        line = f"the body: expected at most {MAX_BODY_BYTES} bytes, found more; send fewer rows at a time"
        raise Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, line)
    return b"".join(parts)


def _require_json(content_type: str) -> None:
    if content_type.partition(";")[0].strip().lower() != "application/json":
        line = f"Content-Type: expected application/json, found {content_type!r}; say what the body is"
        raise Refused(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, line)


def _bad(where: str, expected: str, found: str) -> Refused:
    line = f"{where}: expected {expected}, found {found}; repair the request"
    return Refused(HTTPStatus.BAD_REQUEST, " ".join(line.split()))


def _type_of(value: Any) -> str:
    return {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}.get(
        type(value), "a number"
    )
