"""The served text classifier answers as the runtime does, merges what comes together, and is never upset."""

import re
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from bentos.http import MAX_BODY_BYTES, MAX_ROWS
from deploykit.artifact import Artifact
from deploykit.package import MODEL
from deploykit.runtime.model import Model
from tests.bentos.test_http import BAD, GOOD
from tests.models import NEGATIVE, NEUTRAL, POSITIVE

ROWS = [{"text": f"the {word} film {' '.join(NEUTRAL[:index])}"} for index, word in enumerate(POSITIVE + NEGATIVE)]


@pytest.fixture(scope="module")
def model(bento: Artifact) -> Model:
    return Model.open(bento.path / MODEL)


def test_answers_are_those_of_the_runtime_in_order(served: str, model: Model):
    rows = [*ROWS, {"text": "a good film", "text_pair": "a bad plot", "label": "ignored"}]
    answer = _post(served, rows)
    assert answer.status_code == 200
    assert answer.json() == {"predictions": model.predict(rows)}
    assert [found["label"] for found in answer.json()["predictions"][:-1]] == ["positive"] * 6 + ["negative"] * 6


def test_a_text_longer_than_the_model_takes_is_answered_and_says_so(served: str):
    cut, whole = _post(served, [{"text": "film " * 10_000}, GOOD]).json()["predictions"]
    assert cut["truncated"] is True
    assert "truncated" not in whole


def test_a_request_of_more_rows_than_a_batch_is_answered_in_order(served: str, model: Model):
    rows = (ROWS * MAX_ROWS)[:MAX_ROWS]
    assert _post(served, rows).json()["predictions"] == model.predict(rows)


@pytest.mark.parametrize(("body", "line"), BAD)
def test_a_bad_request_gets_one_line_and_never_an_error_of_the_server(served: str, body: bytes, line: str):
    answer = httpx.post(f"{served}/predict", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400
    assert list(answer.json()) == ["error"]
    assert line in answer.json()["error"]
    assert "\n" not in answer.json()["error"]


@pytest.mark.parametrize(
    ("method", "path", "content_type", "body", "status"),
    [
        ("POST", "/predict", "application/json", b" " * (20 * MAX_BODY_BYTES), 413),
        ("POST", "/predict", "application/vnd.bentoml+pickle", b"cos\nsystem\n(S'false'\ntR.", 415),
        ("POST", "/predict", "multipart/form-data", b"--x", 415),
        ("POST", "/predict", "application/x-www-form-urlencoded", b"rows=1", 415),
        ("POST", "/other", "application/json", b"{}", 404),
        ("GET", "/predict", "application/json", b"", 405),
        ("DELETE", "/predict", "application/json", b"", 405),
    ],
)
def test_what_is_no_request_to_predict_is_a_4xx(
    served: str, method: str, path: str, content_type: str, body: bytes, status: int
):
    answer = httpx.request(method, served + path, content=body, headers={"Content-Type": content_type})
    assert answer.status_code == status
    assert 0 < len(answer.text.strip().splitlines()) < 2


def test_requests_that_come_together_run_together_and_a_bad_one_harms_no_other(served: str, model: Model):
    expected = {row["text"]: model.predict([row])[0] for row in ROWS}
    before = _batches(served)
    sent = [row if index % 4 else {"text": ""} for index, row in enumerate(ROWS * 20)]
    with httpx.Client() as client, ThreadPoolExecutor(32) as pool:
        answers = list(pool.map(lambda row: _post(served, [row], client), sent))
    for row, answer in zip(sent, answers, strict=True):
        if row["text"]:
            assert answer.json() == {"predictions": [expected[row["text"]]]}
        else:
            assert answer.status_code == 400
    good = sum(bool(row["text"]) for row in sent)
    assert 0 < _batches(served) - before < good, "no two requests were merged"


def test_the_service_documents_itself(served: str):
    documents = httpx.get(f"{served}/docs.json").json()
    operation = documents["paths"]["/predict"]["post"]
    assert "rows" in str(operation["requestBody"])
    assert "text_pair" in str(documents)
    assert "predictions" in str(operation["responses"]["200"])
    assert httpx.get(f"{served}/").status_code == 200


def _post(url: str, rows: list[dict[str, str]], client: httpx.Client | None = None) -> httpx.Response:
    return (client or httpx).post(f"{url}/predict", json={"rows": rows}, timeout=60)


def _batches(url: str) -> int:
    """How many batches the service has run."""
    pattern = r"^bentoml_service_adaptive_batch_size_count\{.*\} (\S+)$"
    found = re.search(pattern, httpx.get(f"{url}/metrics").text, re.MULTILINE)
    return int(float(found[1])) if found else 0
