"""A causal language model that is tuned on texts and writes more of their kind.

Each text stands between two ends of text; texts are written by top-k sampling (Fan et al. 2018, "Hierarchical neural
story generation", section 5.4). The loop is our own: transformers' draws a random number for every piece of the
vocabulary and carries texts along that have ended.

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
)

from deploykit.artifact import Artifact
from deploykit.compress.teacher import on_accelerator
from deploykit.errors import CheckpointError
from deploykit.tasks.task import IGNORED
from deploykit.train.batch import LABELS, Batch, Example, collate
from deploykit.train.loop import Evaluation, Training, precision, train

TUNING_TEXTS = 6400
"""Texts that a model is tuned on, in as many passes as that takes: 200 steps, after which the style was learned."""
LEARNING_RATE = 1e-4
JUDGED_TEXTS = 512
"""Held-out texts that choose the pass."""
TOP_K = 100
MOST_TOKENS = 256
"""Of a text with both its ends; longer ones are cut for tuning, and not written."""
WRITTEN_TOGETHER = 256

_BATCH_SIZE = 32
_LEFT_UNFINISHED = 0.05
"""The share of a batch's texts that is thrown away: the last ones are long, and take as many steps as all others."""


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
        train(model, rows, _loss, lambda: Evaluation(-_mean_loss(model, judged)), settings, workdir)


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
    """Write a batch of texts, at most `WRITTEN_TOGETHER`, decided by the seed.

    A text that has ended leaves the batch.
    """
    texts: list[list[int]] = [[] for _ in range(WRITTEN_TOGETHER)]
    unfinished, ended, cache = list(texts), [], None
    with on_accelerator(language.model) as model:
        random = torch.Generator(model.device).manual_seed(seed)
        next_N = torch.full((WRITTEN_TOGETHER,), language.end, device=model.device)
        while len(unfinished) > _LEFT_UNFINISHED * WRITTEN_TOGETHER and len(unfinished[0]) < language.longest - 2:
            seen = model(input_ids=next_N[:, None], past_key_values=cache, use_cache=True)
            next_N, cache = _drawn(seen.logits[:, -1].float(), random), seen.past_key_values
            goes_on_N = next_N != language.end
            ended += [text for text, goes_on in zip(unfinished, goes_on_N.tolist(), strict=True) if not goes_on]
            unfinished = [text for text, goes_on in zip(unfinished, goes_on_N.tolist(), strict=True) if goes_on]
            next_N = next_N[goes_on_N]
            cache.batch_select_indices(goes_on_N.nonzero()[:, 0])
            for text, token in zip(unfinished, next_N.tolist(), strict=True):
                text.append(token)
    return [str(language.tokenizer.decode(text)).strip() for text in ended]


def _drawn(logits_NV: Tensor, random: torch.Generator) -> Tensor:
    """Draw each text's next token, (N,), among the `TOP_K` likeliest."""
    logits_NK, tokens_NK = logits_NV.topk(min(TOP_K, logits_NV.shape[-1]))
    return tokens_NK.gather(1, torch.multinomial(logits_NK.softmax(-1), 1, generator=random))[:, 0]
