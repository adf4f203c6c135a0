import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertConfig, RobertaConfig

from deploykit import artifact, stage
from deploykit import checkpoint as checkpoints
from deploykit.checkpoint import Checkpoint
from deploykit.compress import compress, waterfall
from deploykit.compress.compress import PruneVocabulary, Quantize
from deploykit.compress.embeddings import word_embeddings
from deploykit.compress.prune_vocabulary import pruned, read_twice, require_same_rows, sentences
from deploykit.compress.round_trip import Fallback, NewUnknown, RoundTrip
from deploykit.data import open_dataset
from deploykit.errors import DeploykitError, UsageError
from deploykit.export.export import Export
from deploykit.runtime.model import Model
from tests.compress.trained_tokenizers import texts, trained
from tests.models import CLASS_LABELS

LINES = {"train": texts()[:60], "validation": texts("validation")[:40], "test": (*texts()[:5], texts()[1000])}
SIZES: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}


def make_model(folder: Path, kind: str) -> Path:
    """A tiny random model with a trained tokenizer, and more rows than the tokenizer has pieces."""
    tokenizer = trained(kind)
    sizes: dict[str, Any] = {
        **SIZES,
        "vocab_size": tokenizer.get_vocab_size() + 7,
        "id2label": dict(enumerate(CLASS_LABELS)),
    }
    ids: dict[str, Any] = {"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
    config = BertConfig(**sizes) if kind == "bert" else RobertaConfig(**sizes, **ids, max_position_embeddings=130)
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(0, 0.2)
    model.save_pretrained(folder)
    tokenizer.save(str(folder / "tokenizer.json"))
    added = {
        str(index): {"content": t.content, "special": True} for index, t in tokenizer.get_added_tokens_decoder().items()
    }
    settings = {
        "model_max_length": 120,
        "pad_token": "[PAD]" if kind == "bert" else "<pad>",
        "added_tokens_decoder": added,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("lines")
    for name, rows in LINES.items():
        said = [json.dumps({"text": text, "label": CLASS_LABELS[index % 2]}) for index, text in enumerate(rows)]
        (folder / f"{name}.jsonl").write_text("\n".join(said) + "\n")
    return folder


@pytest.fixture(scope="module", params=["bert", "roberta"])
def pair(request: pytest.FixtureRequest, lines: Path, tmp_path_factory: pytest.TempPathFactory):
    """A checkpoint's artifact, and the one with the smaller vocabulary."""
    folder = tmp_path_factory.mktemp(request.param)
    before = checkpoints.open_checkpoint(make_model(folder / "model", request.param))
    return before, stage.run(PruneVocabulary(), before, open_dataset(lines), out=folder / "out")


def loaded(pair) -> tuple[Checkpoint, Checkpoint]:
    return checkpoints.load(pair[0]), checkpoints.load(pair[1])


def encode(source: Checkpoint, rows: tuple[str, ...]):
    return source.tokenizer.encode(list(rows))


def test_rows_of_the_same_pieces_have_bitwise_the_same_logits(pair):
    before, made = loaded(pair)
    assert made.model.config.vocab_size == made.tokenizer.vocab_size < 0.8 * before.tokenizer.vocab_size
    old, new = encode(before, LINES["train"]), encode(made, LINES["train"])
    assert [row.ids for row in old] != [row.ids for row in new]
    assert read_twice((before, old), (made, new)).same == len(LINES["train"])
    for left, right in zip(checkpoints.logits(before, old), checkpoints.logits(made, new), strict=True):
        assert np.array_equal(left, right)


def test_the_record_tells_each_split_as_the_two_tokenizers_read_it(pair):
    before, made = loaded(pair)
    record = artifact.read_json(pair[1].path / "vocabulary.json")
    assert record["pieces_before"] == before.tokenizer.vocab_size
    assert record["pieces_after"] == made.tokenizer.vocab_size
    assert list(record["splits"]) == ["train", "validation", "test"]
    for name, rows in LINES.items():
        trip = record["splits"][name]
        names = [{index: piece for piece, index in each.tokenizer.pieces().items()} for each in (before, made)]
        read = [
            [[name[i] for i in row.ids] for row in encode(each, rows)]
            for each, name in zip((before, made), names, strict=True)
        ]
        assert trip["rows"] == len(rows)
        assert trip["same"] == sum(old == new for old, new in zip(*read, strict=True))
        assert trip["unknown_before"] == trip["unknown_after"]
        assert trip["new_unknown"] == []
    assert record["splits"]["train"]["same"] == len(LINES["train"])
    assert record["splits"]["validation"]["same"] < len(LINES["validation"])
    assert record["splits"]["test"]["same"] == 5


def test_the_warnings_and_the_waterfall_travel_to_the_end_of_the_line(pair, lines: Path, tmp_path: Path):
    made = compress.compress(pair[1], open_dataset(lines), (Quantize(),), tmp_path / "int8")
    (warning, *_) = made.facts["warnings"]
    assert "rows of validation are spelled with other pieces" in warning
    assert not any("of train" in said for said in made.facts["warnings"])
    original, row, quantized = waterfall.read(made.path)
    assert [each["stage"] for each in (original, row, quantized)] == ["original", "prune-vocabulary", "quantize"]
    assert original["parameters"] - row["parameters"] == 32 * (
        checkpoints.load(pair[0]).model.config.vocab_size - checkpoints.load(made).tokenizer.vocab_size
    )
    record = artifact.read_json(pair[1].path / "vocabulary.json")
    assert artifact.read_json(made.path / "vocabulary.json") == record


def test_the_exported_model_reads_the_same_pieces_and_answers_the_same(pair, tmp_path: Path):
    made = checkpoints.load(pair[1])
    model = Model.open(stage.run(Export(), pair[1], out=tmp_path / "onnx").path)
    rows = [{"text": text} for text in LINES["validation"]]
    assert [row.ids for row in model.encode(rows)] == [row.ids for row in encode(made, LINES["validation"])]
    expected = checkpoints.logits(made, encode(made, LINES["validation"]))
    assert max(np.abs(a - b).max() for a, b in zip(model.logits(model.encode(rows)), expected, strict=True)) < 1e-5


def test_transformers_reads_the_written_tokenizer_as_we_do(pair):
    made = checkpoints.load(pair[1])
    theirs = AutoTokenizer.from_pretrained(pair[1].path)
    for text in LINES["validation"][:10]:
        assert theirs(text)["input_ids"] == encode(made, (text,))[0].ids
    config = artifact.read_json(pair[1].path / "tokenizer_config.json")
    assert {token["content"]: int(index) for index, token in config["added_tokens_decoder"].items()} == {
        token["content"]: made.tokenizer.pieces()[token["content"]] for token in config["added_tokens_decoder"].values()
    }


def test_two_swapped_ids_or_one_flipped_bit_are_seen(pair, tmp_path: Path):
    before, _ = loaded(pair)
    kept = set(checkpoints.load(pair[1]).tokenizer.pieces())
    made = pruned(before, kept, tmp_path)
    require_same_rows(before, made)
    value = artifact.read_json(tmp_path / "tokenizer.json")
    pieces = value["model"]["vocab"]
    first, second = sorted(pieces, key=len)[-2:]
    pieces[first], pieces[second] = pieces[second], pieces[first]
    artifact.write_json(tmp_path / "tokenizer.json", value)
    swapped = checkpoints.shortened(made, made.spec.max_length)
    with pytest.raises(DeploykitError, match="each piece to have the row that it had"):
        require_same_rows(before, swapped)
    with torch.no_grad():
        word_embeddings(made.model).weight[-1, 0].add_(1e-6)
    with pytest.raises(DeploykitError, match="each piece to have the row that it had"):
        require_same_rows(before, made)


def test_a_tokenizer_that_is_a_piece_short_is_seen(pair, tmp_path: Path):
    before, _ = loaded(pair)
    kept = set(checkpoints.load(pair[1]).tokenizer.pieces())
    made = pruned(before, kept, tmp_path / ".." / tmp_path.name)
    other = pruned(before, kept | {next(iter(set(before.tokenizer.pieces()) - kept))}, tmp_path)
    with pytest.raises(DeploykitError, match="one for each piece"):
        require_same_rows(before, replace(made, tokenizer=other.tokenizer))


def test_what_changed_and_what_became_unknown_is_said_with_examples():
    fallback = tuple(Fallback((piece,), (piece[0], f"##{piece[1:]}"), 1) for piece in ("film", "plot", "good", "paris"))
    trip = RoundTrip(60, 56, 300, 304, 1, 2, (NewUnknown(3, ("snow", "##man")),), fallback)
    changed, unknown = sentences("test", trip)
    assert "4 of 60 rows of test are spelled with other pieces, in 4 ways (film -> f ##ilm, plot" in changed
    assert "paris" not in changed
    assert "1 of 60 rows of test hold an unknown piece that they did not (row 3: snow ##man)" in unknown
    assert unknown.endswith("1 unknown pieces became 2")
    assert sentences("test", replace(trip, same=60, fallback=(), new_unknown=())) == []


@pytest.mark.parametrize(
    ("settings", "said"),
    [({"size": 10}, "at least"), ({"size": 5000}, "a piece to remove"), ({"size": 1607}, "a piece to remove")],
)
def test_a_size_out_of_reach_is_refused_and_leaves_nothing_behind(settings, said: str, lines: Path, tmp_path: Path):
    source = checkpoints.open_checkpoint(make_model(tmp_path / "model", "bert"))
    with pytest.raises(UsageError, match=said):
        stage.run(PruneVocabulary(**settings), source, open_dataset(lines), out=tmp_path / "out")
    assert [each.name for each in tmp_path.iterdir()] == ["model"]


def test_a_size_is_kept_and_a_higher_count_keeps_less(lines: Path, tmp_path: Path):
    source, data = checkpoints.open_checkpoint(make_model(tmp_path / "model", "bert")), open_dataset(lines)
    found = [
        checkpoints.load(stage.run(each, source, data, out=tmp_path / str(index))).tokenizer.vocab_size
        for index, each in enumerate((PruneVocabulary(size=900), PruneVocabulary(), PruneVocabulary(min_count=2)))
    ]
    assert found[0] == 900
    assert found[1] > found[2]


@pytest.mark.parametrize("settings", [{"size": 0}, {"min_count": 0}, {"size": 9, "min_count": 1}])
def test_settings_without_sense_are_refused(settings):
    with pytest.raises(ValueError, match=r"must be at least 1|exclude"):
        PruneVocabulary(**settings)
