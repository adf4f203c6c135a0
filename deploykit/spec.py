"""What `deploykit.json` of a checkpoint says: its task, its shape, and the decided quantization."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from deploykit.families import Structure

Scheme = Literal["dynamic-int8", "static-int8", "int4", "fp16"]
Overflow = Literal["fp32", "bf16"]
"""In what a matrix is multiplied whose values overflow fp16."""
Embeddings = Literal["int8", "int4", "float32"]
"""How the table of word embeddings is held: int8 with one scale a row, int4 with one for each 64 of a row, or float."""


@dataclass(frozen=True)
class Activation:
    """How the input of one linear module is quantized to uint8, whatever the batch."""

    name: str
    """The linear module, relative to the model."""
    scale: float
    """A float32."""
    zero_point: int


@dataclass(frozen=True)
class Quantization:
    """What compress decided and export lowers."""

    scheme: Scheme
    weight_bits: int = 7
    """7 keeps pairs of uint8 x int8 products within 16 bits: exact on processors without VNNI."""
    keep_float: tuple[str, ...] = ()
    """Linear modules, and norms for fp16, relative to the model, that stay in float32."""
    bf16: tuple[str, ...] = ()
    """fp16 only: linear modules that are multiplied in bf16."""
    activations: tuple[Activation, ...] = ()
    """static-int8 only: one for each module that is not kept in float."""
    block_size: int | None = None
    """int4 only: how many weights of one output channel share a scale."""
    embeddings: Embeddings = "float32"


@dataclass(frozen=True)
class Spec:
    """What `deploykit.json` of a checkpoint adds to the Hugging Face configuration."""

    task: str
    max_length: int
    """Tokens, special ones included."""
    pad_id: int
    structure: Structure | None = None
    """Kept heads and widths, where pruning made them differ from the configuration's."""
    quantization: Quantization | None = None
    threshold: float | None = None
    """The confidence from which the answer of the smaller model in the folder `first` stands; None: there is none."""


def spec_from(value: Mapping[str, Any]) -> Spec:
    """Read a spec from JSON."""
    structure, quantization = value["structure"], value["quantization"]
    return Spec(
        value["task"],
        value["max_length"],
        value["pad_id"],
        Structure(tuple(structure["heads"]), tuple(structure["ffn"])) if structure else None,
        quantization_from(quantization) if quantization else None,
        value.get("threshold"),  # older ones lack it
    )


def quantization_from(value: Mapping[str, Any]) -> Quantization:
    """Read a decision from JSON; what an older one lacks has its default."""
    activations = tuple(Activation(**item) for item in value.get("activations", ()))
    names = {name: tuple(value.get(name, ())) for name in ("keep_float", "bf16")}
    return Quantization(**{**value, **names, "activations": activations})
