"""A tokenizer's pieces: which must stay, which others those need, and `tokenizer.json` without the rest. Pure.

A text all of whose pieces stay is tokenized as before:
* WordPiece takes the longest piece that fits, again and again: the longest is still there, and nothing is new. (But a
  word that was unknown after some pieces, which no row then shows, may be spelled now.)
* BPE joins the pair of the lowest rank, again and again: with the merges inside a piece kept, each step is the same.
* Unigram takes the likeliest sequence: it is still there, with its scores, and nothing is new.

Any other text falls back on shorter pieces. Single characters (bytes) stay, and so does a piece that has a character
without a piece of its own, so that what could be spelled before can be spelled after. (WordPiece never looks back:
where such characters are, this is all but sure. `round_trip` counts what became unknown.)

    V pieces before   K pieces kept
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from itertools import pairwise
from typing import Any

from deploykit.errors import CheckpointError, UsageError

Json = Mapping[str, Any]
Needs = Callable[[str], Set[str]]
"""A piece to the pieces that must stay with it, itself included."""

_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_UNIGRAM, _WORDPIECE, _BPE = "Unigram", "WordPiece", "BPE"


def ids_of(tokenizer: Json) -> dict[str, int]:
    """Return the id of every piece, added tokens included."""
    return _model_ids(tokenizer["model"]) | {token["content"]: token["id"] for token in tokenizer["added_tokens"]}


def unknown_piece(tokenizer: Json) -> str | None:
    """Name the piece that stands for what cannot be spelled; None where there is none."""
    model = tokenizer["model"]
    if model["type"] == _UNIGRAM:
        found = None if model.get("unk_id") is None else model["vocab"][model["unk_id"]][0]
    else:
        found = model.get("unk_token")
    return None if found is None else str(found)


def required(tokenizer: Json) -> set[str]:
    """Name the pieces that always stay: added tokens, those of the template, single characters, what has no spelling.

    Of Unigram the least likely piece stays too: an unknown character's score is counted from its.

    Raises:
        CheckpointError: the tokenizer is of another kind than WordPiece, BPE or Unigram.
    """
    _require_known(tokenizer)
    model, ids = tokenizer["model"], ids_of(tokenizer)
    names = {index: piece for piece, index in ids.items()}
    found = {token["content"] for token in tokenizer["added_tokens"]}
    found |= {names[index] for index in _template_ids(tokenizer)}
    found |= {piece for piece in _model_ids(model) if _BYTE.fullmatch(piece) or not _has_spelling(piece, model, ids)}
    if (unknown := unknown_piece(tokenizer)) is not None:
        found.add(unknown)
    if model["type"] == _UNIGRAM:
        found.add(min(model["vocab"], key=lambda item: item[1])[0])
    return found


def needs(tokenizer: Json) -> Needs:
    """Return what each piece needs: in BPE, those that it is joined from on the way; else itself alone.

    Special tokens are found before anything is joined.
    """
    if tokenizer["model"]["type"] != _BPE:
        return lambda piece: {piece}
    special = {token["content"] for token in tokenizer["added_tokens"] if token["special"]}
    ranks = {pair: rank for rank, pair in enumerate(_merges(tokenizer["model"]))}
    return lambda piece: {piece} if piece in special else {piece, *_joined(piece, ranks)}


def choose(ranked: Iterable[str], always: Set[str], needed: Needs, size: int) -> set[str]:
    """Keep `always`, then pieces in order of rank with what they need, as long as there are at most `size`.

    Raises:
        UsageError: `always` alone is more.
    """
    kept = {part for piece in always for part in needed(piece)}
    if len(kept) > size:
        raise UsageError(
            "prune-vocabulary.size",
            expected=f"at least {len(kept)}, the special tokens and what any text is spelled with",
            found=str(size),
            next_step="raise it",
        )
    for piece in ranked:
        more = needed(piece) - kept
        if len(kept) + len(more) > size:
            break
        kept |= more
    return kept


def order(tokenizer: Json, kept: Set[str]) -> list[int]:
    """List the old ids (K) in the order of the new ones: the model's pieces, then tokens added on top of them."""
    inside = _model_ids(tokenizer["model"])
    own = [index for piece, index in inside.items() if piece in kept]
    added = [token["id"] for token in tokenizer["added_tokens"] if token["content"] not in inside]
    return sorted(own) + sorted(added)


def rewrite(tokenizer: Json, kept: Set[str]) -> dict[str, Any]:
    """Return `tokenizer.json` with the pieces kept, numbered anew as `order` says; scores and merge order stay."""
    new = {old: index for index, old in enumerate(order(tokenizer, kept))}
    added = [{**token, "id": new[token["id"]]} for token in tokenizer["added_tokens"]]
    return {
        **tokenizer,
        "added_tokens": sorted(added, key=lambda token: token["id"]),
        "post_processor": renumbered_template(tokenizer.get("post_processor"), new.__getitem__),
        "model": _rewritten_model(tokenizer["model"], kept, new),
    }


def renumbered_template(processor: Json | None, number: Callable[[int], int]) -> dict[str, Any] | None:
    """Copy a post-processor with `number` applied to each id in it.

    Raises:
        CheckpointError: its type is unknown, so that its ids would be missed.
    """
    if processor is None or processor["type"] == "ByteLevel":
        return None if processor is None else dict(processor)
    if processor["type"] == "Sequence":
        return {**processor, "processors": [renumbered_template(each, number) for each in processor["processors"]]}
    if processor["type"] == "TemplateProcessing":
        tokens = processor["special_tokens"].items()
        numbered = {name: {**token, "ids": [number(index) for index in token["ids"]]} for name, token in tokens}
        return {**processor, "special_tokens": numbered}
    if processor["type"] in ("BertProcessing", "RobertaProcessing"):
        return {**processor, **{name: [processor[name][0], number(processor[name][1])] for name in ("sep", "cls")}}
    raise _unsupported("a post-processor with known ids", processor["type"])


def _require_known(tokenizer: Json) -> None:
    model = tokenizer["model"]
    if model["type"] not in (_WORDPIECE, _BPE, _UNIGRAM):
        raise _unsupported("WordPiece, BPE or Unigram", model["type"])
    if model["type"] == _BPE and (model.get("continuing_subword_prefix") or model.get("end_of_word_suffix")):
        raise _unsupported("BPE without marks inside and at the end of words", "one with such marks")


def _unsupported(expected: str, found: str) -> CheckpointError:
    return CheckpointError(
        "tokenizer.json", expected=expected, found=found, next_step="leave prune-vocabulary out of the recipe"
    )


def _model_ids(model: Json) -> dict[str, int]:
    if model["type"] == _UNIGRAM:
        return {piece: index for index, (piece, _) in enumerate(model["vocab"])}
    return dict(model["vocab"])


def _template_ids(tokenizer: Json) -> list[int]:
    found: list[int] = []

    def noted(index: int) -> int:
        found.append(index)
        return index

    renumbered_template(tokenizer.get("post_processor"), noted)
    return found


def _has_spelling(piece: str, model: Json, ids: Mapping[str, int]) -> bool:
    """Tell whether a piece is longer than one character and each of its characters is a piece itself."""
    prefix = model["continuing_subword_prefix"] if model["type"] == _WORDPIECE else ""
    inside = bool(prefix) and piece.startswith(prefix) and piece != prefix
    characters = piece.removeprefix(prefix) if inside else piece
    spelled = [f"{prefix}{character}" if inside or place else character for place, character in enumerate(characters)]
    return len(spelled) > 1 and all(character in ids for character in spelled)


def _merges(model: Json) -> list[tuple[str, str]]:
    """Read the merges, pairs in files of today and "a b" in older ones."""
    return [(pair[0], pair[1]) for pair in (_pair(merge) for merge in model["merges"])]


def _pair(merge: str | Sequence[str]) -> Sequence[str]:
    return merge.split(" ") if isinstance(merge, str) else merge


def _joined(piece: str, ranks: Mapping[tuple[str, str], int]) -> set[str]:
    """Join a piece's characters as BPE does, lowest rank first; return every piece on the way."""
    parts, seen = list(piece), set()
    while len(parts) > 1:
        found = [(ranks[pair], place) for place, pair in enumerate(pairwise(parts)) if pair in ranks]
        if not found:
            break
        _, place = min(found)
        parts[place : place + 2] = [parts[place] + parts[place + 1]]
        seen.add(parts[place])
    return seen


def _rewritten_model(model: Json, kept: Set[str], new: Mapping[int, int]) -> dict[str, Any]:
    if model["type"] == _UNIGRAM:
        unknown = model.get("unk_id")
        vocab = [item for item in model["vocab"] if item[0] in kept]
        return {**model, "vocab": vocab, "unk_id": None if unknown is None else new[unknown]}
    pieces = sorted((index, piece) for piece, index in model["vocab"].items() if piece in kept)
    made = {**model, "vocab": {piece: new[index] for index, piece in pieces}}
    if model["type"] == _BPE:
        pairs = ((merge, _pair(merge)) for merge in model["merges"])
        made["merges"] = [merge for merge, (left, right) in pairs if {left, right, left + right} <= kept]
    return made
