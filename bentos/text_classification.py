"""Serve text classification: `{"rows": [{"text": ...}]}` to `{"predictions": [{"label": ..., "score": ...}]}`."""

from typing import Any

import bentoml
from pydantic import BaseModel, Field

from bentos.http import ENVIRONMENT, LOGGING, MAX_BATCH_ROWS, MAX_LATENCY_MS, MAX_ROWS, Gate, HttpRequest, HttpResponse
from bentos.model import open_model


class Row(BaseModel):
    """What is to be classified; other fields are ignored."""

    text: str = Field(examples=["a lovely film"])
    text_pair: str | None = Field(None, description="The second text, for a model of pairs.")


class Prediction(BaseModel):
    """The most probable label."""

    label: str
    score: float = Field(description="The label's probability.")
    truncated: bool = Field(False, description="True where the text was cut; absent otherwise.")  # noqa: FBT003


class Rows(HttpRequest):
    """The rows of one request."""

    rows: list[Row] = Field(min_length=1, max_length=MAX_ROWS)


class Predictions(HttpResponse):
    """One prediction per row, in order."""

    predictions: list[Prediction]


class TextClassification:
    """Text classification by one exported model."""

    def __init__(self) -> None:
        self.model = open_model()

    @bentoml.api(  # type: ignore[untyped-decorator]
        batchable=True,
        max_batch_size=MAX_BATCH_ROWS,
        max_latency_ms=MAX_LATENCY_MS,
        input_spec=Rows,
        output_spec=Predictions,
    )
    def predict(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Answer the rows of any number of requests at once."""
        return self.model.predict(rows, MAX_BATCH_ROWS)


service = bentoml.service(name="text_classification", workers=1, envs=ENVIRONMENT, logging=LOGGING)(TextClassification)
service.add_asgi_middleware(Gate, task="text-classification")
