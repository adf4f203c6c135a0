from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from deploykit.compress import vocabulary
from deploykit.errors import CheckpointError, UsageError
from tests.compress.trained_tokenizers import KINDS, as_json, from_json, texts, trained

USED = texts()[:40]
STRANGE = ("unpronounceabilities of the zyzzyva", "naïve café — ☃ 漢字", "a", "", "x" * 150)
"""Words that no review holds, characters that no review holds, and the shortest and longest words."""


def pruned_to(tokenizer: Tokenizer, rows: tuple[str, ...]) -> tuple[dict[str, Any], Tokenizer]:
    """Keep what `rows` use."""
    before = as_json(tokenizer)
    used = {piece for found in tokenizer.encode_batch(list(rows)) for piece in found.tokens}
    always, needs = vocabulary.required(before), vocabulary.needs(before)
    kept = vocabulary.choose(sorted(used), always, needs, len(vocabulary.ids_of(before)))
    made = vocabulary.rewrite(before, kept)
    return made, from_json(made)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_whose_pieces_all_stay_are_the_same_pieces_and_offsets(kind: str):
    before = trained(kind)
    _, after = pruned_to(before, USED)
    assert after.get_vocab_size() < 0.8 * before.get_vocab_size()
    kept = set(after.get_vocab())
    whole = [text for text in (*USED, *texts("test")[:300]) if set(before.encode(text).tokens) <= kept]
    assert len(whole) > len(USED)
    for old, new in zip(before.encode_batch(whole), after.encode_batch(whole), strict=True):
        assert (old.tokens, old.offsets, old.type_ids) == (new.tokens, new.offsets, new.type_ids)
        assert all(after.id_to_token(index) == piece for index, piece in zip(new.ids, old.tokens, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_any_other_text_is_spelled_with_what_is_left_and_nothing_becomes_unknown(kind: str):
    before = trained(kind)
    _, after = pruned_to(before, USED)
    others = [*texts("test")[:200], *STRANGE]
    unknown = vocabulary.unknown_piece(as_json(before)) or "none"
    changed = 0
    for old, new in zip(before.encode_batch(others), after.encode_batch(others), strict=True):
        assert old.tokens.count(unknown) == new.tokens.count(unknown)
        assert spelled(old.tokens) == spelled(new.tokens)
        changed += old.tokens != new.tokens
    assert changed > 20


def spelled(pieces: list[str]) -> str:
    return "".join(piece.removeprefix("##") for piece in pieces)


@pytest.mark.parametrize("kind", KINDS)
def test_ids_are_numbered_without_gaps_and_those_of_special_tokens_follow(kind: str):
    before = trained(kind)
    made, after = pruned_to(before, USED)
    ids = vocabulary.ids_of(made)
    assert sorted(ids.values()) == list(range(len(ids)))
    assert ids == after.get_vocab()
    assert vocabulary.order(as_json(before), set(ids)) == [
        before.token_to_id(piece) for piece in sorted(ids, key=ids.__getitem__)
    ]
    special = [token.content for token in before.get_added_tokens_decoder().values()]
    assert special == [token.content for token in after.get_added_tokens_decoder().values()]
    assert before.encode("good", "film").tokens == after.encode("good", "film").tokens


def test_the_same_file_comes_out_where_everything_stays():
    for kind in KINDS:
        before = as_json(trained(kind))
        assert vocabulary.rewrite(before, set(vocabulary.ids_of(before))) == before


def test_merges_stay_with_their_parts_and_results_and_no_others_do():
    merges = [("a", "b"), ("c", "d"), ("ab", "cd"), ("b", "c"), ("abcd", "a")]
    pieces = ["a", "b", "c", "d", "ab", "cd", "abcd", "bc", "abcda"]
    tokenizer = Tokenizer(models.BPE({piece: index for index, piece in enumerate(pieces)}, merges))
    before = as_json(tokenizer)
    assert vocabulary.needs(before)("abcd") == {"ab", "cd", "abcd"}
    kept = vocabulary.choose(["abcd"], vocabulary.required(before), vocabulary.needs(before), 9)
    made = vocabulary.rewrite(before, kept)
    assert made["model"]["merges"] == [["a", "b"], ["c", "d"], ["ab", "cd"]]
    assert made["model"]["vocab"] == {"a": 0, "b": 1, "c": 2, "d": 3, "ab": 4, "cd": 5, "abcd": 6}
    after = from_json(made)
    assert after.encode("abcd").tokens == ["abcd"]
    assert (tokenizer.encode("abcda").tokens, after.encode("abcda").tokens) == (["abcda"], ["abcd", "a"])
    assert (tokenizer.encode("dbc").tokens, after.encode("dbc").tokens) == (["d", "bc"], ["d", "b", "c"])


def test_a_bpe_piece_without_its_parts_would_be_read_otherwise():
    made, after = pruned_to(trained("roberta"), USED)
    longest = max(made["model"]["merges"], key=lambda merge: len("".join(merge)))
    broken = from_json(
        {**made, "model": {**made["model"], "merges": [m for m in made["model"]["merges"] if m != longest]}}
    )
    assert any(after.encode(text).tokens != broken.encode(text).tokens for text in USED)


def test_merges_written_as_text_stay_text():
    before = as_json(trained("gpt2"))
    before["model"]["merges"] = [" ".join(merge) for merge in before["model"]["merges"]]
    made, _ = pruned_to(from_json(before), USED)
    kept = set(vocabulary.ids_of(made))
    texts_made = vocabulary.rewrite(before, kept)["model"]["merges"]
    assert texts_made == [" ".join(merge) for merge in made["model"]["merges"]]


def test_unigram_scores_stay_and_so_does_the_piece_that_the_unknown_is_scored_by():
    before = as_json(trained("t5"))
    made, _ = pruned_to(trained("t5"), USED)
    scores = dict(map(tuple, before["model"]["vocab"]))
    assert all(scores[piece] == score for piece, score in made["model"]["vocab"])
    assert min(score for _, score in made["model"]["vocab"]) == min(scores.values())
    assert made["model"]["vocab"][made["model"]["unk_id"]][0] == "<unk>"


def test_a_piece_with_a_character_of_no_piece_of_its_own_stays():
    model = models.WordPiece({"[UNK]": 0, "a": 1, "##b": 2, "ab": 3, "abb": 4, "ac": 5}, unk_token="[UNK]")
    tokenizer = Tokenizer(model)
    assert vocabulary.required(as_json(tokenizer)) == {"[UNK]", "a", "##b", "ac"}
    assert pruned_to(tokenizer, ())[1].encode("abb").tokens == ["a", "##b", "##b"]


def test_a_size_is_filled_in_order_of_rank_and_never_exceeded():
    before = as_json(trained("gpt2"))
    always, needs = vocabulary.required(before), vocabulary.needs(before)
    ranked = sorted(vocabulary.ids_of(before), key=vocabulary.ids_of(before).__getitem__)
    kept = vocabulary.choose(ranked, always, needs, 400)
    left_out = next(piece for piece in ranked if piece not in kept)
    assert len(kept) <= 400 < len(kept | needs(left_out))
    assert all(needs(piece) <= kept for piece in kept)
    with pytest.raises(UsageError, match="at least 257"):
        vocabulary.choose(ranked, always, needs, 256)


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (models.WordLevel({"a": 0}), "found WordLevel"),
        (models.BPE({"a": 0}, [], end_of_word_suffix="</w>"), "such marks"),
    ],
)
def test_another_kind_of_tokenizer_is_refused(model: models.Model, said: str):
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    with pytest.raises(CheckpointError, match=said):
        vocabulary.required(as_json(tokenizer))


def test_an_unknown_post_processor_is_refused_since_its_ids_would_be_missed():
    with pytest.raises(CheckpointError, match="found Mystery"):
        vocabulary.renumbered_template({"type": "Mystery"}, lambda index: index)
