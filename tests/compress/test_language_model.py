from pathlib import Path
from typing import Any

import pytest
import torch

from deploykit.checkpoint import open_checkpoint
from deploykit.compress import language_model
from deploykit.compress.language_model import LanguageModel, load_language_model, tune, written
from deploykit.errors import CheckpointError
from tests.models import make_language_model

TEXTS = ["the film was good", "a plot", "anna saw paris"]


def loaded(folder: Path) -> LanguageModel:
    return load_language_model(open_checkpoint(make_language_model(folder)))


def test_a_tuned_model_writes_the_texts_that_it_saw(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(language_model, "LEARNING_RATE", 1e-2)
    monkeypatch.setattr(language_model, "TUNING_TEXTS", 300)
    language = loaded(tmp_path / "model")
    assert sum(text in TEXTS for text in written(language, 0)) < 10
    tune(language, TEXTS, TEXTS, 0, tmp_path / "work")
    texts = written(language, 0)
    assert sum(text in TEXTS for text in texts) > 0.9 * language_model.WRITTEN_TOGETHER
    assert set(texts) >= set(TEXTS)
    assert texts == written(language, 0) != written(language, 1)


def test_of_the_passes_the_one_that_foretells_the_held_out_texts_best_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(language_model, "LEARNING_RATE", 3e-2)
    monkeypatch.setattr(language_model, "TUNING_TEXTS", 120)
    held_out, seen, mean_loss = ["a story in berlin", "peter was sad"], list[float](), language_model._mean_loss

    def watched(*given: Any) -> float:
        seen.append(mean_loss(*given))
        return seen[-1]

    monkeypatch.setattr(language_model, "_mean_loss", watched)
    language = loaded(tmp_path / "model")
    tune(language, TEXTS, held_out, 0, tmp_path / "work")
    kept = mean_loss(language.model, language_model._examples(language, held_out))
    assert kept == pytest.approx(min(seen), abs=1e-3)
    assert min(seen) < seen[-1] - 0.1, "it went on to learn the few texts by heart"


def test_a_text_stands_between_two_ends_and_a_long_one_is_cut(tmp_path: Path):
    language = loaded(tmp_path / "model")
    short, long = language_model._examples(language, ["a plot", "good " * 100])
    assert short["input_ids"].tolist()[0] == short["input_ids"].tolist()[-1] == language.end
    assert short["labels"].tolist() == [*short["input_ids"].tolist()[1:], -100]
    assert len(long["input_ids"]) == language.longest == 64
    assert language.end not in long["labels"].tolist()
    alone = []
    for example in (short, long):
        inputs, labels = (torch.from_numpy(example[name]) for name in ("input_ids", "labels"))
        logits = language.model(input_ids=inputs[None]).logits[0, :-1]
        alone.append(torch.nn.functional.cross_entropy(logits, labels[:-1], reduction="sum").item())
    num_foretold = len(short["input_ids"]) - 1 + len(long["input_ids"]) - 1
    assert language_model._mean_loss(language.model, [short, long]) == pytest.approx(
        sum(alone) / num_foretold, rel=1e-5
    )


def test_a_batch_ends_when_few_texts_are_unfinished_and_a_long_one_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    language = loaded(tmp_path / "model")
    good = 7
    drawn = iter([[good] * 40, [language.end] * 30 + [good] * 10, [language.end] * 9 + [good]])
    monkeypatch.setattr(language_model, "WRITTEN_TOGETHER", 40)
    monkeypatch.setattr(language_model, "_drawn", lambda *_: torch.tensor(next(drawn)))
    texts = written(language, 0)
    word = language.tokenizer.decode([good])
    assert texts == [word] * 30 + [f"{word} {word}"] * 9, "one in forty is left"
    monkeypatch.setattr(language_model, "_drawn", lambda logits, _: torch.full((len(logits),), good))
    assert written(language, 0) == []


def test_what_is_drawn_is_among_the_likeliest_and_as_likely_as_they_are(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(language_model, "TOP_K", 2)
    logits = torch.log(torch.tensor([0.1, 0.6, 0.0001, 0.3])).repeat(20_000, 1)
    found = language_model._drawn(logits, torch.Generator().manual_seed(0)).bincount(minlength=4) / 20_000
    assert found.tolist() == pytest.approx([0, 2 / 3, 0, 1 / 3], abs=0.02)


def test_a_text_is_foretold_with_the_cache_as_it_is_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    language, draw, seen = loaded(tmp_path / "model"), language_model._drawn, list[torch.Tensor]()

    def watched(logits: torch.Tensor, random: torch.Generator) -> torch.Tensor:
        seen.append(logits)
        return draw(logits, random)

    monkeypatch.setattr(language_model, "WRITTEN_TOGETHER", 30)
    monkeypatch.setattr(language_model, "_drawn", watched)
    shortest = min(written(language, 3), key=lambda text: len(text.split()))
    tokens = language.tokenizer(shortest, add_special_tokens=False)["input_ids"]
    logits = language.model(input_ids=torch.tensor([[language.end, *tokens]])).logits[0]
    for place, expected in enumerate(logits):
        assert torch.isclose(seen[place], expected, atol=1e-4).all(dim=1).any(), f"token {place}"


def test_a_model_that_is_no_language_model_is_refused(bert: Path, tmp_path: Path):
    with pytest.raises(CheckpointError, match="expected a causal language model to write rows, found BertFor"):
        load_language_model(open_checkpoint(bert))
    endless = make_language_model(tmp_path / "endless")
    (endless / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    with pytest.raises(CheckpointError, match="expected a tokenizer with an eos_token, found none"):
        load_language_model(open_checkpoint(endless))
