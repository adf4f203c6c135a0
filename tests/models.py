"""Small fakes that the whole suite shares: tiny random checkpoints and tiny labelled sets."""

import json
import random
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    BertConfig,
    DistilBertConfig,
    GPT2Config,
    GPT2LMHeadModel,
    PretrainedConfig,
    PreTrainedTokenizerFast,
    RobertaConfig,
)

POSITIVE = ["good", "great", "fine", "superb", "lovely", "happy"]
NEGATIVE = ["bad", "awful", "poor", "horrid", "ugly", "sad"]
NEUTRAL = ["the", "film", "was", "and", "a", "story", "with", "plot", "in", "paris", "berlin", "anna", "peter", "saw"]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
VOCABULARY = SPECIAL + POSITIVE + NEGATIVE + NEUTRAL + ["##s", "##er", "##in", "p", "b", "."]
ENTITY_LABELS = ["O", "B-location", "I-location", "B-person", "I-person"]
CLASS_LABELS = ["negative", "positive"]


def tiny_config(family: str, labels: list[str], *, layers: int = 2) -> PretrainedConfig:
    """A configuration of a family with hidden size 32, 4 heads and a feed-forward width of 64."""
    sizes: dict[str, Any] = {
        "vocab_size": len(VOCABULARY),
        "id2label": dict(enumerate(labels)),
        "label2id": {label: i for i, label in enumerate(labels)},
    }
    if family == "distilbert":
        return DistilBertConfig(dim=32, n_layers=layers, n_heads=4, hidden_dim=64, max_position_embeddings=64, **sizes)
    sizes |= {"hidden_size": 32, "num_hidden_layers": layers, "num_attention_heads": 4, "intermediate_size": 64}
    if family == "roberta":  # positions are counted from the padding index + 1
        return RobertaConfig(max_position_embeddings=66, pad_token_id=0, **sizes)
    return BertConfig(max_position_embeddings=64, pad_token_id=0, **sizes)


def tiny_tokenizer() -> Tokenizer:
    """A lower-casing WordPiece tokenizer over `VOCABULARY`."""
    tokenizer = Tokenizer(models.WordPiece({word: i for i, word in enumerate(VOCABULARY)}, unk_token="[UNK]"))
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0",
        pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    return tokenizer


def make_checkpoint(
    folder: Path, *, family: str = "bert", task: str = "text-classification", layers: int = 2, seed: int = 0
) -> Path:
    """Write a plain Hugging Face folder with random weights large enough for outputs to differ between rows."""
    labels = CLASS_LABELS if task == "text-classification" else ENTITY_LABELS
    auto = AutoModelForSequenceClassification if task == "text-classification" else AutoModelForTokenClassification
    torch.manual_seed(seed)
    model = auto.from_config(tiny_config(family, labels, layers=layers))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(0, 0.2)
    model.save_pretrained(folder)
    write_tokenizer(folder)
    return folder


def make_language_model(folder: Path, *, seed: int = 0) -> Path:
    """Write a tiny GPT-2 with random weights over `VOCABULARY`, whose [SEP] ends a text."""
    torch.manual_seed(seed)
    end = VOCABULARY.index("[SEP]")
    config = GPT2Config(
        vocab_size=len(VOCABULARY), n_embd=32, n_layer=2, n_head=4, n_positions=64, bos_token_id=end, eos_token_id=end
    )
    GPT2LMHeadModel(config).save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=tiny_tokenizer(), eos_token="[SEP]").save_pretrained(folder)
    return folder


def write_tokenizer(folder: Path) -> None:
    """Write `tokenizer.json` and `tokenizer_config.json` of the tiny tokenizer."""
    tiny_tokenizer().save(str(folder / "tokenizer.json"))
    config = {"model_max_length": 64, "pad_token": "[PAD]", "tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def of_other_pieces(folder: Path) -> None:
    """Give a folder's model another vocabulary of as many pieces: some words in two, case kept, pieces elsewhere."""
    split = {"film": "fi", "story": "st", "paris": "pa", "great": "gr"}
    rest = {"##s": "##lm", "##er": "##ory", "##in": "##ris", "p": "##eat"}
    pieces = [split.get(piece, rest.get(piece, piece)) for piece in VOCABULARY[len(SPECIAL) :]]
    tokenizer = tiny_tokenizer()
    ids = {piece: at for at, piece in enumerate([*SPECIAL, *reversed(pieces)])}
    tokenizer.model = models.WordPiece(ids, unk_token="[UNK]")
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False)
    tokenizer.save(str(folder / "tokenizer.json"))


def classification_row(rng: random.Random) -> dict[str, str]:
    """A sentence whose label is the polarity of its only polar word."""
    label = rng.choice(CLASS_LABELS)
    words = [*rng.choices(NEUTRAL, k=rng.randint(2, 9)), rng.choice(POSITIVE if label == "positive" else NEGATIVE)]
    rng.shuffle(words)
    return {"text": " ".join(words), "label": label}


def entity_row(rng: random.Random) -> dict[str, list[str]]:
    """A sentence in which paris and berlin are locations, anna and peter persons."""
    tags = {"paris": "B-location", "berlin": "B-location", "anna": "B-person", "peter": "B-person"}
    tokens = rng.choices(NEUTRAL, k=rng.randint(3, 10))
    return {"tokens": tokens, "ner_tags": [tags.get(token, "O") for token in tokens]}


def make_dataset(folder: Path, *, task: str = "text-classification", rows: int = 48, seed: int = 0) -> Path:
    """Write a data folder with train, validation and test."""
    make_row = classification_row if task == "text-classification" else entity_row
    labels = CLASS_LABELS if task == "text-classification" else ENTITY_LABELS
    rng = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for split in ("train", "validation", "test"):
        lines = [json.dumps(make_row(rng)) for _ in range(rows)]
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "labels.json").write_text(json.dumps({"labels": labels}))
    return folder
