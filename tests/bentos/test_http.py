"""A request that cannot be answered gets a 4xx status and one line that says why; nothing else is let through."""

import json
from typing import Any

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bentos.http import MAX_BODY_BYTES, MAX_DISCARDED_BYTES, MAX_ROWS, PATH, Gate, Refused, rows_of
from deploykit.runtime.tasks import TEXT_CLASSIFICATION, TOKEN_CLASSIFICATION

GOOD = {"text": "a good film"}

BAD = [
    (b"", "the body: expected JSON in UTF-8"),
    (b"{", "the body: expected JSON in UTF-8"),
    (b"\xff\xfe", "the body: expected JSON in UTF-8"),
    ('{"rows": [{"text": "é"}]}'.encode("latin-1"), "the body: expected JSON in UTF-8"),
    (b"[" * 100_000, "the body: expected JSON in UTF-8"),
    (b"9" * 5_000, "the body: expected JSON in UTF-8"),
    (b"null", "found null"),
    (b"[]", "found a list"),
    (b'"rows"', "found a string"),
    (b"true", "found a boolean"),
    (b"1.5", "found a number"),
    (b"{}", "found the fields none"),
    (b'{"text": "a"}', "found the fields 'text'"),
    (b'{"rows": [{"text": "a"}], "threshold": 1}', "found the fields 'rows', 'threshold'"),
    (b'{"rows": {}}', "rows: expected a list of 1 to 256 rows, found an object"),
    (b'{"rows": []}', "rows: expected a list of 1 to 256 rows, found 0"),
    (json.dumps({"rows": [GOOD] * (MAX_ROWS + 1)}).encode(), "found 257"),
    (b'{"rows": ["a"]}', "rows[0]: expected an object, found a string"),
    (b'{"rows": [{"text": "a"}, {}]}', "rows[1]: expected text in the field 'text', found no such field"),
    (b'{"rows": [{"text": 1}]}', "rows[0]: expected text in the field 'text', found int"),
    (b'{"rows": [{"text": null}]}', "found NoneType"),
    (b'{"rows": [{"text": ["a"]}]}', "found list"),
    (b'{"rows": [{"text": ""}]}', "found a blank one"),
    (b'{"rows": [{"text": " \\n"}]}', "found a blank one"),
    (b'{"rows": [{"text": "\\ud800"}]}', "half of a surrogate pair"),
    (b'{"rows": [{"text": "a", "text_pair": 1}]}', "'text_pair', found int"),
]


@pytest.mark.parametrize(("body", "line"), BAD)
def test_a_bad_body_is_refused_in_one_line(body: bytes, line: str):
    with pytest.raises(Refused) as caught:
        rows_of(body, TEXT_CLASSIFICATION.check)
    assert line in str(caught.value)
    assert str(caught.value).isprintable()
    assert 400 <= caught.value.status < 500


def test_a_good_body_gives_its_rows_as_they_are():
    rows = [GOOD | {"id": 1}, GOOD | {"text_pair": "a bad plot"}]
    assert rows_of(json.dumps({"rows": rows}).encode(), TEXT_CLASSIFICATION.check) == rows


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["rows", "text", "text_pair", "tokens"]), inner, max_size=3)
    ),
)


@given(st.binary(max_size=40) | JSON.map(lambda value: json.dumps(value).encode()))
def test_any_body_is_either_refused_or_can_be_answered(body: bytes):
    for task in (TEXT_CLASSIFICATION, TOKEN_CLASSIFICATION):
        try:
            rows = rows_of(body, task.check)
        except Refused:
            continue
        for row in rows:
            task.check(row, "row")


@pytest.mark.anyio
async def test_a_body_that_comes_in_parts_is_read_whole():
    status, rows = await _through_gate([b'{"rows": [{"te', b'xt": "a', b' good film"}]}'])
    assert (status, rows) == (200, [GOOD])


@pytest.mark.anyio
async def test_a_body_over_the_limit_is_refused_before_its_end():
    endless = [b" " * (MAX_BODY_BYTES // 2)] * (2 * MAX_DISCARDED_BYTES // MAX_BODY_BYTES + 3)
    assert (await _through_gate(endless))[0] == 413
    body = json.dumps({"rows": [GOOD]}).encode()
    assert (await _through_gate([body.ljust(MAX_BODY_BYTES)]))[0] == 200
    assert (await _through_gate([body.ljust(MAX_BODY_BYTES + 1)]))[0] == 413


@pytest.mark.anyio
async def test_a_body_that_never_ends_is_given_up_with_a_4xx():
    sent: list[Any] = []

    async def receive():
        await anyio.sleep_forever()

    async def send(message):
        sent.append(message)

    await Gate(_answer, "text-classification", seconds=0.01)(_scope(), receive, send)
    assert sent[0]["status"] == 408


@pytest.mark.anyio
@pytest.mark.parametrize("name", ["application/vnd.bentoml+pickle", "multipart/form-data", "text/plain", ""])
async def test_a_body_that_says_it_is_something_else_is_refused(name: str):
    assert (await _through_gate([json.dumps({"rows": [GOOD]}).encode()], name))[0] == 415


@pytest.mark.anyio
async def test_json_with_a_character_set_is_taken():
    body = json.dumps({"rows": [GOOD]}).encode()
    assert (await _through_gate([body], "Application/JSON; charset=utf-8"))[0] == 200


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def _through_gate(parts: list[bytes], content_type: str = "application/json") -> tuple[int, object]:
    """Send a request through the gate to an app that answers 200; returns the status and the rows that came through."""
    waiting = [
        {"type": "http.request", "body": part, "more_body": index < len(parts) - 1} for index, part in enumerate(parts)
    ]
    sent: list[Any] = []
    scope = _scope(content_type)

    async def receive():
        return waiting.pop(0)

    async def send(message):
        sent.append(message)

    await Gate(_answer, "text-classification")(scope, receive, send)
    return sent[0]["status"], scope.get("deploykit.rows")


def _scope(content_type: str = "application/json") -> dict[str, Any]:
    headers = [(b"content-type", content_type.encode())]
    return {"type": "http", "method": "POST", "path": PATH, "headers": headers}


async def _answer(scope, receive, send):
    await send({"type": "http.response.start", "status": 200})
