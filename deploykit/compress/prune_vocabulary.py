"""Prune the vocabulary: pieces that the data does not use go, from the tokenizer and from the embeddings.

`tokenizer.json` is rewritten (see `vocabulary`), and `vocabulary.json` holds the proof: every piece that is left has
the row that it had, and the rows of each split are the same pieces as before, or else the fallback that is listed.

    V pieces before   K pieces kept   H hidden size
"""

import copy
from collections import Counter
from collections.abc import Mapping, Sequence, Set
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from deploykit import artifact, checkpoint
from deploykit.artifact import Artifact, Kind
from deploykit.checkpoint import Checkpoint
from deploykit.compress import embeddings, vocabulary, waterfall
from deploykit.compress.round_trip import RoundTrip, Token, compare
from deploykit.compress.source import load_float
from deploykit.data import split_names
from deploykit.errors import CheckpointError, DeploykitError, UsageError
from deploykit.runtime.tokenizer import Encoding, Tokenizer
from deploykit.stage import settings_of
from deploykit.train.labelled import read_labelled

_PROVEN = ("train", "validation", "test")
_SHOWN = 3
"""How many examples a warning gives; `vocabulary.json` holds them all."""


@dataclass(frozen=True)
class PruneVocabulary:
    """Keep the pieces that the training rows use, and what any other text is spelled with."""

    min_count: int | None = None
    """Keep the pieces that the training rows hold at least this often; 1 where `size` is not given."""
    size: int | None = None
    """Keep at most this many instead: those that the training rows hold most often, then the tokenizer's first ones,
    which are the most frequent where it was made."""

    verb: ClassVar[str] = "prune-vocabulary"
    reads: ClassVar[tuple[Kind, ...]] = ("checkpoint", "dataset")
    makes: ClassVar[Kind] = "checkpoint"
    resumes: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ValueError: one is out of range, or both are given.
        """
        if self.min_count is not None and self.size is not None:
            raise ValueError("min_count and size exclude each other")
        for name in ("min_count", "size"):
            number = getattr(self, name)
            if number is not None and number < 1:
                raise ValueError(f"{name} must be at least 1, not {number}")

    def __call__(self, *sources: Artifact, scratch: Path) -> Mapping[str, Any]:
        """Write the checkpoint with the smaller vocabulary, and `vocabulary.json`.

        Raises:
            UsageError: nothing would go by `size`, it is too small, or the checkpoint is quantized.
            CheckpointError: the tokenizer is of a kind that is not known.
        """
        source, data = sources
        before = load_float(source, self.verb)
        names = [name for name in _PROVEN if name in ("train", "validation", *split_names(data.path))]
        rows = {name: read_labelled(before, data, name) for name in names}
        kept = self._kept(before, rows["train"].encodings)
        made = pruned(before, kept, scratch)
        require_same_rows(before, made)
        again = {name: read_labelled(made, data, name) for name in names}
        proof = {name: read_twice((before, rows[name].encodings), (made, again[name].encodings)) for name in names}
        artifact.write_json(scratch / checkpoint.VOCABULARY, _record(before, made, proof))
        row = waterfall.measure(made, again["validation"], self.verb, settings_of(self))
        told = tuple(sentence for name, trip in proof.items() for sentence in sentences(name, trip))
        rows_before = waterfall.begun((source, before), rows["validation"])
        return waterfall.add(made, rows_before, replace(row, warnings=told), scratch)

    def _kept(self, before: Checkpoint, encodings: Sequence[Encoding]) -> set[str]:
        """Choose the pieces that stay; where the rows use them all, `compress` drops the step."""
        tokenizer = checkpoint.tokenizer_json(before)
        ids, counts = vocabulary.ids_of(tokenizer), Counter(index for row in encodings for index in row.ids)
        ranked = sorted(ids, key=lambda piece: (-counts[ids[piece]], ids[piece]))
        if self.size is None:
            ranked = [piece for piece in ranked if counts[ids[piece]] >= (self.min_count or 1)]
        always = vocabulary.required(tokenizer) | _named(before, ids)
        kept = vocabulary.choose(ranked, always, vocabulary.needs(tokenizer), self.size or len(ids))
        if len(kept) == len(ids) and self.size is not None:
            raise UsageError(
                self.verb,
                expected="a piece to remove",
                found=f"all {len(ids)} kept",
                next_step="give a smaller size, or leave the stage out",
            )
        return kept


def pruned(before: Checkpoint, kept: Set[str], folder: Path) -> Checkpoint:
    """Copy a checkpoint with the pieces kept; its tokenizer's files are written into `folder`, the copy's path."""
    tokenizer = checkpoint.tokenizer_json(before)
    order = vocabulary.order(tokenizer, kept)
    new = {old: index for index, old in enumerate(order)}
    artifact.write_json(folder / checkpoint.TOKENIZER, vocabulary.rewrite(tokenizer, kept))
    _write_tokenizer_config(before.path, new, folder)
    model = copy.deepcopy(before.model)
    embeddings.slice_rows(model, order)
    spec = replace(before.spec, pad_id=new[before.spec.pad_id])
    opened = Tokenizer.open(folder, max_length=spec.max_length, pad_id=spec.pad_id)
    return replace(before, path=folder, model=model, tokenizer=opened, spec=spec)


def require_same_rows(before: Checkpoint, made: Checkpoint) -> None:
    """Check, by what the two tokenizers themselves say, that every piece left has the embedding that it had.

    Raises:
        DeploykitError: one has another, by a single bit, or none.
    """
    old, new = before.tokenizer.pieces(), made.tokenizer.pieces()
    table_VH, table_KH = (embeddings.word_embeddings(each.model).weight for each in (before, made))
    if sorted(new.values()) != list(range(len(table_KH))) or not new.keys() <= old.keys():
        raise _broken(f"{len(table_KH)} rows, one for each piece", f"{len(new)} pieces")
    pieces = sorted(new)
    rows = table_VH[[old[piece] for piece in pieces]], table_KH[[new[piece] for piece in pieces]]
    other = (rows[0] != rows[1]).any(dim=1)
    if other.any():
        raise _broken("each piece to have the row that it had", f"another for {pieces[int(other.int().argmax())]!r}")


def read_twice(before: tuple[Checkpoint, Sequence[Encoding]], made: tuple[Checkpoint, Sequence[Encoding]]) -> RoundTrip:
    """Compare the same rows as two checkpoints read them, pieces as strings."""
    unknown = vocabulary.unknown_piece(checkpoint.tokenizer_json(before[0]))
    return compare(_tokens(*before), _tokens(*made), unknown)


def sentences(split: str, trip: RoundTrip) -> list[str]:
    """Say which rows of a split are read otherwise, with examples; nothing where all are the same."""
    if trip.same == trip.rows:
        return []
    shown = ", ".join(f"{' '.join(each.pieces)} -> {' '.join(each.become)}" for each in trip.fallback[:_SHOWN])
    other = f"{trip.rows - trip.same} of {trip.rows} rows of {split} are spelled with other pieces"
    said = [f"prune-vocabulary: {other}, in {len(trip.fallback)} ways ({shown}); see {checkpoint.VOCABULARY}"]
    if trip.new_unknown:
        rows = ", ".join(f"{each.row}: {' '.join(each.pieces)}" for each in trip.new_unknown[:_SHOWN])
        said.append(
            f"prune-vocabulary: {len(trip.new_unknown)} of {trip.rows} rows of {split} hold an unknown piece that they "
            f"did not (row {rows}); {trip.unknown_before} unknown pieces became {trip.unknown_after}"
        )
    return said


def _named(before: Checkpoint, ids: Mapping[str, int]) -> set[str]:
    """Name the pieces that the configuration and the padding speak of."""
    spoken = {index for each in embeddings.token_ids(before.model.config).values() for index in each}
    return {piece for piece, index in ids.items() if index in {before.spec.pad_id, *spoken}}


def _tokens(source: Checkpoint, encodings: Sequence[Encoding]) -> list[list[Token]]:
    names = {index: piece for piece, index in source.tokenizer.pieces().items()}
    rows = (zip(row.ids, row.type_ids, row.offsets, strict=True) for row in encodings)
    return [[(names[index], type_id, offset) for index, type_id, offset in row] for row in rows]


def _record(before: Checkpoint, made: Checkpoint, proof: Mapping[str, RoundTrip]) -> dict[str, Any]:
    return {
        "pieces_before": before.tokenizer.vocab_size,
        "pieces_after": made.tokenizer.vocab_size,
        "splits": {name: asdict(trip) for name, trip in proof.items()},
    }


def _write_tokenizer_config(path: Path, new: Mapping[int, int], folder: Path) -> None:
    """Copy `tokenizer_config.json`, where there is one, with the added tokens' ids numbered anew."""
    if not (path / checkpoint.TOKENIZER_CONFIG).is_file():
        return
    config = artifact.read_json(path / checkpoint.TOKENIZER_CONFIG, CheckpointError)
    if "added_tokens_decoder" in config:
        tokens = config["added_tokens_decoder"].items()
        config["added_tokens_decoder"] = {str(new[int(old)]): token for old, token in tokens if int(old) in new}
    artifact.write_json(folder / checkpoint.TOKENIZER_CONFIG, config)


def _broken(expected: str, found: str) -> DeploykitError:
    return DeploykitError("prune-vocabulary", expected=expected, found=found, next_step="report this bug")
