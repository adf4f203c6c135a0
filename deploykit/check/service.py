"""A served model as something to be timed: one client, and a server that does nothing to measure that client by."""

import asyncio
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
from aiohttp import web

from deploykit.artifact import digest_of
from deploykit.errors import DataError, EnvironmentMissing
from deploykit.evidence import Subject
from deploykit.runtime.tasks import RUNTIME_TASKS

Row = Mapping[str, Any]
PATH = "/predict"
_ABOUT = "/docs.json"
_TIMEOUT_S = 30.0
_INPUT_FIELDS = tuple(dict.fromkeys(field for task in RUNTIME_TASKS.values() for field in task.fields))


@dataclass(frozen=True)
class Service:
    """A client with connections that stay open; its calls run on `loop`."""

    url: str
    session: aiohttp.ClientSession
    loop: asyncio.AbstractEventLoop

    def predict(self, rows: Sequence[Row]) -> None:
        """Ask for the rows' predictions and wait for them.

        Raises:
            EnvironmentMissing: there is no such service, or it failed.
            DataError: the service refused the rows.
        """
        status, body = self.loop.run_until_complete(self._post(rows))
        if status >= 500 or (status == 200 and not _answers(body, rows)):
            raise self._missing(f"status {status}: {body[:200].decode(errors='replace')}")
        if status != 200:
            found = body[:200].decode(errors="replace")
            raise DataError(self.url, expected="rows that the service takes", found=found, next_step="repair the data")

    def subject(self) -> Subject:
        """Name what is served by what its API page says: BentoML gives the Bento's name and version there."""
        said = self.loop.run_until_complete(self._about())
        name, version = str(said.get("title", self.url)), said.get("version")
        return Subject(digest_of([self.url, said]), "service", f"{name} {version}" if version else name)

    async def ask(self, row: Row) -> bool:
        """Ask for one row's prediction; tells whether it came."""
        try:
            status, body = await self._exchange([row])
        except (aiohttp.ClientError, TimeoutError, OSError):
            return False
        return status == 200 and _answers(body, [row])

    async def _post(self, rows: Sequence[Row]) -> tuple[int, bytes]:
        try:
            return await self._exchange(rows)
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            raise self._missing(str(error) or type(error).__name__) from error

    async def _exchange(self, rows: Sequence[Row]) -> tuple[int, bytes]:
        async with self.session.post(self.url + PATH, json={"rows": [_input_of(row) for row in rows]}) as answer:
            return answer.status, await answer.read()

    async def _about(self) -> Mapping[str, Any]:
        """Return what the service says of itself; nothing where it has no such page."""
        try:
            async with self.session.get(self.url + _ABOUT) as answer:
                said = json.loads(await answer.read())["info"]
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError, KeyError, TypeError):
            return {}
        return said if isinstance(said, dict) else {}

    def _missing(self, found: str) -> EnvironmentMissing:
        return EnvironmentMissing(
            self.url,
            expected=f"a service that answers POST {PATH}",
            found=found,
            next_step="start it with `deploykit serve` and check the address",
        )


@contextmanager
def connected(url: str) -> Iterator[tuple[Service, Service]]:
    """Open a client of the service at `url`, and the same client of a server that does nothing."""
    loop = asyncio.new_event_loop()
    session = loop.run_until_complete(_session())
    runner = web.AppRunner(_null_app())
    try:
        null_url = loop.run_until_complete(_start(runner))
        yield Service(url.rstrip("/"), session, loop), Service(null_url, session, loop)
    finally:
        loop.run_until_complete(session.close())
        loop.run_until_complete(runner.cleanup())
        loop.close()


async def _session() -> aiohttp.ClientSession:
    """Open a session in which no request waits for another's connection."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=_TIMEOUT_S), trust_env=False
    )


def _null_app() -> web.Application:
    async def answer(request: web.Request) -> web.Response:
        rows = (await request.json())["rows"]
        return web.json_response({"predictions": [None] * len(rows)})

    app = web.Application()
    app.router.add_post(PATH, answer)
    return app


async def _start(runner: web.AppRunner) -> str:
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    return f"http://{host}:{port}"


def _input_of(row: Row) -> dict[str, Any]:
    return {name: row[name] for name in _INPUT_FIELDS if row.get(name) is not None}


def _answers(body: bytes, rows: Sequence[Row]) -> bool:
    try:
        predictions = json.loads(body)["predictions"]
    except (ValueError, KeyError, TypeError):
        return False
    return isinstance(predictions, list) and len(predictions) == len(rows)
