"""A causal language model that is tuned on texts and writes more of their kind.

Each text stands between two ends of text; texts are written by nucleus sampling (Holtzman et al. 2020, "The curious
case of neural text degeneration").

    N texts of a batch   L tokens of the longest   V pieces of the vocabulary
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
)

from deploykit.artifact import Artifact
from deploykit.compress.teacher import on_accelerator
from deploykit.errors import CheckpointError
from deploykit.tasks.task import IGNORED
from deploykit.train.batch import LABELS, Batch, Example, collate
from deploykit.train.loop import Training, precision, train

TUNING_TEXTS = 6400
"""Texts that a model is tuned on, in as many passes as that takes: 200 steps, after which the style was learned."""
LEARNING_RATE = 1e-4
JUDGED_TEXTS = 512
"""Held-out texts that choose the pass."""
TOP_P = 0.95
MOST_TOKENS = 256
"""Of a text with both its ends; longer ones are cut for tuning, and not written."""
WRITTEN_TOGETHER = 128

_BATCH_SIZE = 32
_UNFINISHED = 0.05
"""The share of a batch's texts that may be thrown away, unfinished, for the others' sake."""


@dataclass(frozen=True)
class LanguageModel:
    """A pretrained model with its tokenizer."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase

    @property
    def end(self) -> int:
        """What ends a text, and what one begins after."""
        return int(self.tokenizer.eos_token_id)

    @property
    def longest(self) -> int:
        """How many tokens a text may have, its two ends included."""
        return min(MOST_TOKENS, getattr(self.model.config, "max_position_embeddings", MOST_TOKENS))


def load_language_model(source: Artifact) -> LanguageModel:
    """Load a causal language model.

    Raises:
        CheckpointError: it is another kind of model, or its tokenizer has no end of text.
    """
    config = AutoConfig.from_pretrained(source.path, local_files_only=True)
    architecture = (config.architectures or ["no architecture"])[0]
    if architecture != getattr(MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None), "__name__", None):
        raise _unusable(source, "a causal language model to write rows", architecture)
    model = AutoModelForCausalLM.from_pretrained(source.path, dtype=torch.float32, local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(source.path, local_files_only=True)
    if tokenizer.eos_token_id is None:
        raise _unusable(source, "a tokenizer with an eos_token", "none")
    return LanguageModel(model, tokenizer)


def _unusable(source: Artifact, expected: str, found: str) -> CheckpointError:
    next_step = "name a pretrained generator, for instance gpt2 or distilgpt2"
    return CheckpointError(source.path, expected=expected, found=found, next_step=next_step)


def tune(language: LanguageModel, texts: Sequence[str], held_out: Sequence[str], seed: int, workdir: Path) -> None:
    """Tune a model in place on some texts; of its passes over them the one that foretells the held-out ones best stays.

    Args:
        language: the model.
        texts: at least one; more than `TUNING_TEXTS` are drawn from by the seed.
        held_out: never trained on.
        seed: of the draw and of training.
        workdir: where a tuning that was stopped goes on from.

    Raises:
        TrainingStopped: the loss is not finite.
    """
    drawn = np.random.default_rng(seed).permutation(len(texts))[:TUNING_TEXTS]
    judged = _examples(language, held_out[:JUDGED_TEXTS])
    settings = Training(
        epochs=math.ceil(TUNING_TEXTS / len(drawn)), learning_rate=LEARNING_RATE, batch_size=_BATCH_SIZE, seed=seed
    )
    with on_accelerator(language.model) as model:
        rows = _examples(language, [texts[index] for index in drawn])
        train(model, rows, _loss, lambda: -_mean_loss(model, judged), settings, workdir)


def _examples(language: LanguageModel, texts: Sequence[str]) -> list[Example]:
    """Encode each text between two ends; every token but the first is to be foretold."""
    examples: list[Example] = []
    for ids in language.tokenizer(list(texts), add_special_tokens=False)["input_ids"]:
        whole = np.array([language.end, *ids, language.end][: language.longest], np.int64)
        labels = np.concatenate([whole[1:], [IGNORED]])
        examples.append({"input_ids": whole, "attention_mask": np.ones(len(whole), np.int64), LABELS: labels})
    return examples


def _loss(model: nn.Module, batch: Batch) -> Tensor:
    """Return the mean cross-entropy of a batch's tokens, ()."""
    logits_NLV = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False).logits
    labels_NL = batch[LABELS]
    scored = labels_NL != IGNORED
    return F.cross_entropy(logits_NLV[scored].float(), labels_NL[scored])


@torch.inference_mode()
def _mean_loss(model: PreTrainedModel, examples: Sequence[Example]) -> float:
    batches = [collate(examples[at : at + _BATCH_SIZE], 0) for at in range(0, len(examples), _BATCH_SIZE)]
    losses = [_loss(model, {key: tensor.to(model.device) for key, tensor in batch.items()}).item() for batch in batches]
    return float(np.average(losses, weights=[len(batch[LABELS]) for batch in batches]))


def for_writing(language: LanguageModel) -> None:
    """Halve the weights, in place, where the hardware multiplies bf16 faster; what is sampled is no worse for it."""
    if precision() == "bf16":
        nn.Module.to(language.model, torch.bfloat16)


@torch.inference_mode()
def written(language: LanguageModel, seed: int) -> list[str]:
    """Write a batch of texts, at most `WRITTEN_TOGETHER`, decided by the seed."""
    end = language.end
    torch.manual_seed(seed)
    with on_accelerator(language.model) as model:
        start_NL = torch.full((WRITTEN_TOGETHER, 1), end, device=model.device)
        ids_NL = model.generate(  # type: ignore[operator]  # typed as a tensor
            start_NL,
            attention_mask=torch.ones_like(start_NL),
            do_sample=True,
            top_p=TOP_P,
            top_k=0,
            max_length=language.longest,
            pad_token_id=end,
            stopping_criteria=StoppingCriteriaList([_MostHaveEnded(end)]),
        )
    ended = [ids[: ids.index(end)] for ids in ids_NL[:, 1:].tolist() if end in ids]
    return [str(language.tokenizer.decode(ids)).strip() for ids in ended]


class _MostHaveEnded(StoppingCriteria):
    """Ends a batch when so few texts are unfinished that the rest need not wait for them."""

    def __init__(self, end: int) -> None:
        self._end = end

    def __call__(self, input_ids: Tensor, scores: Tensor, **_: object) -> Tensor:  # noqa: ARG002 - given by name
        """Tell for each text, (N,), whether to stop: all or none."""
        unfinished = (input_ids[:, 1:] != self._end).all(dim=1).float().mean()
        return torch.full((len(input_ids),), bool(unfinished <= _UNFINISHED), device=input_ids.device)
