"""Tokenizers of the three kinds, trained on the shipped reviews."""

import json
from collections.abc import Mapping
from functools import cache
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from deploykit import data
from deploykit.demo import FOLDER

KINDS = ("bert", "roberta", "gpt2", "t5")
PIECES = 1600


@cache
def texts(split: str = "train") -> tuple[str, ...]:
    """Some reviews of a split."""
    return tuple(row["text"] for row in data.read_split(FOLDER / "review_sentiment", split).rows[:1500])


@cache
def trained(kind: str) -> Tokenizer:
    """A tokenizer built as the model type's own is, of about 1,600 pieces. Read only."""
    return {"bert": _bert, "roberta": _roberta, "gpt2": _gpt2, "t5": _t5}[kind]()


def as_json(tokenizer: Tokenizer) -> dict[str, Any]:
    return dict(json.loads(tokenizer.to_str()))


def from_json(value: Mapping[str, Any]) -> Tokenizer:
    return Tokenizer.from_str(json.dumps(value))


def _bert() -> Tokenizer:
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.train_from_iterator(texts(), trainers.WordPieceTrainer(vocab_size=PIECES, special_tokens=special))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return tokenizer


def _byte_level(special: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=PIECES, special_tokens=special, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(texts(), trainer)
    return tokenizer


def _roberta() -> Tokenizer:
    tokenizer = _byte_level(["<s>", "<pad>", "</s>", "<unk>"])
    tokenizer.add_special_tokens(["<mask>"])  # on top of the model's own, as in a vocabulary that was extended
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    return tokenizer


def _gpt2() -> Tokenizer:
    tokenizer = _byte_level(["<|endoftext|>"])
    tokenizer.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False)])
    return tokenizer


def _t5() -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    special = ["<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(vocab_size=PIECES, special_tokens=special, unk_token="<unk>")
    tokenizer.train_from_iterator(texts(), trainer)
    tokenizer.add_special_tokens([f"<extra_id_{index}>" for index in range(3)])
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return tokenizer
