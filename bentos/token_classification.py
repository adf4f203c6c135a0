"""Serve token classification: `{"rows": [{"text": ...}]}` to `{"predictions": [{"entities": [...]}]}`."""

from typing import Any

import bentoml
from pydantic import BaseModel, Field

from bentos.http import ENVIRONMENT, LOGGING, MAX_BATCH_ROWS, MAX_LATENCY_MS, MAX_ROWS, Gate, HttpRequest, HttpResponse
from bentos.model import open_model


class Row(BaseModel):
    """Where entities are to be found: running text, or its words; other fields are ignored."""

    text: str | None = Field(None, examples=["anna saw paris"])
    tokens: list[str] | None = Field(None, description="Used where given; offsets then count in their text.")


class Entity(BaseModel):
    """One entity: `text[start:end]`, in characters of the row's text, or of its tokens joined by one space."""

    label: str
    start: int
    end: int
    text: str
    score: float = Field(description="The mean probability of its words' labels.")


class Prediction(BaseModel):
    """The entities of one row, in order."""

    entities: list[Entity]
    truncated: bool = Field(False, description="True where the text was cut; absent otherwise.")  # noqa: FBT003


class Rows(HttpRequest):
    """The rows of one request."""

    rows: list[Row] = Field(min_length=1, max_length=MAX_ROWS)


class Predictions(HttpResponse):
    """One prediction per row, in order."""

    predictions: list[Prediction]


class TokenClassification:
    """Token classification by one exported model."""

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


service = bentoml.service(name="token_classification", workers=1, envs=ENVIRONMENT, logging=LOGGING)(
    TokenClassification
)
service.add_asgi_middleware(Gate, task="token-classification")
