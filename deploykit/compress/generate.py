"""More rows for small sets, written by a language model in the style of the rows that are there.

As in "Generate, Annotate, and Learn" (He et al. 2022, TACL 10, section 3): a pretrained causal language model is tuned
on the text of the training rows without their labels, then writes new rows (nucleus sampling, Holtzman et al. 2020).
They have no label: the teacher says what they are. Tuning sees the training split only, so what it writes is no
knowledge of the validation or test rows. Rows are kept in the cache by what they were made from, and shared by recipes.

    N rows of a batch   L tokens of the longest   V pieces of the vocabulary
"""

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
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

from deploykit import artifact, environment, processes
from deploykit.artifact import Artifact
from deploykit.checkpoint import Checkpoint
from deploykit.compress.teacher import on_accelerator
from deploykit.data import Row
from deploykit.errors import CheckpointError, DataError, UsageError
from deploykit.runtime.tasks import decoder_of
from deploykit.tasks import task_named
from deploykit.tasks.task import IGNORED, Task
from deploykit.train.batch import LABELS, Batch, Example, collate
from deploykit.train.loop import Training, precision, train

TUNING_ROWS = 6400
"""Rows that the language model is tuned on, in as many passes as that takes; from there on it knew the style."""
LEARNING_RATE = 1e-4
TOP_P = 0.95
MOST_TOKENS = 256
"""Of a row; longer ones are cut for tuning, and not written."""

JUDGED_ROWS = 512
"""Validation rows that choose the pass."""

_BATCH_SIZE = 32
_WRITTEN_TOGETHER = 128
_UNFINISHED = 0.05
"""The share of a batch's rows that may be thrown away, unfinished, for the others' sake."""
_TRIES = 3
"""Rows written at most for each that was asked for; a copy of another row counts for nothing."""
_FORMAT = 1


def generated_rows(generator: Artifact, teacher: Checkpoint, data: Artifact, count: int, seed: int) -> Path:
    """Return a file of rows without labels (`.jsonl`) in the style of a data set's training rows.

    Args:
        generator: a pretrained causal language model.
        teacher: names the task, which says what a row is.
        data: its training rows are learned; its validation rows only choose the best pass over these.
        count: of rows, at least 1; fewer are written where the model repeats itself.
        seed: of tuning and writing.

    Raises:
        CheckpointError: the generator is no causal language model.
        TrainingStopped: its loss is not finite.
        UsageError: it wrote nothing that could be used.
    """
    task = task_named(teacher.spec.task)
    texts = {name: [task.text_of(row) for row in task.read(data.path, name).rows] for name in ("train", "validation")}
    key = artifact.digest_of([_FORMAT, generator.digest, texts, count, seed, torch.__version__, precision()])
    folder = environment.cache_dir() / "generated" / key
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "rows.jsonl"
    with FileLock(folder / ".lock") if processes.is_first() else nullcontext():
        if processes.from_first(str(file.is_file())) == str(True):
            return file
        model, tokenizer = _opened(generator)
        splits = [_examples(tokenizer, each, _longest(model)) for each in texts.values()]
        _tune(model, splits, seed, folder / ".tuning")
        if processes.is_first():
            known, rows = set(texts["train"]), list[Row]()
            for text in _written(model, tokenizer, count, seed):
                if len(rows) < count and text not in known and (row := _row(task, text)) is not None:
                    known.add(text)
                    rows.append(row)
            _write(rows, file, generator)
        processes.wait()
    return file


def _opened(generator: Artifact) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a language model; its own end of text both begins and ends a row."""
    config = AutoConfig.from_pretrained(generator.path, local_files_only=True)
    architecture = (config.architectures or ["no architecture"])[0]
    if architecture != getattr(MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None), "__name__", None):
        raise CheckpointError(
            generator.path,
            expected="a causal language model to write rows",
            found=architecture,
            next_step="name a pretrained one, for instance gpt2 or distilgpt2",
        )
    model = AutoModelForCausalLM.from_pretrained(generator.path, dtype=torch.float32, local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(generator.path, local_files_only=True)
    return model, tokenizer


def _longest(model: PreTrainedModel) -> int:
    """Return how many tokens a row may have, its two ends included."""
    return min(MOST_TOKENS, getattr(model.config, "max_position_embeddings", MOST_TOKENS))


def _examples(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], longest: int) -> list[Example]:
    """Encode each text between two ends of text; every token but the first is to be foretold."""
    examples: list[Example] = []
    for ids in tokenizer(list(texts), add_special_tokens=False)["input_ids"]:
        whole = np.array([tokenizer.eos_token_id, *ids, tokenizer.eos_token_id][:longest], np.int64)
        labels = np.concatenate([whole[1:], [IGNORED]])
        examples.append({"input_ids": whole, "attention_mask": np.ones(len(whole), np.int64), LABELS: labels})
    return examples


def _tune(model: PreTrainedModel, splits: Sequence[Sequence[Example]], seed: int, workdir: Path) -> None:
    """Tune in place on the first split; of its passes the one that foretells the second best is kept."""
    train_rows, held_out = splits
    order = np.random.default_rng(seed).permutation(len(train_rows))[:TUNING_ROWS]
    settings = Training(
        epochs=math.ceil(TUNING_ROWS / len(order)), learning_rate=LEARNING_RATE, batch_size=_BATCH_SIZE, seed=seed
    )
    with on_accelerator(model):
        train(
            model,
            [train_rows[index] for index in order],
            _loss,
            lambda: -_mean_loss(model, held_out[:JUDGED_ROWS]),
            settings,
            workdir,
        )


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


@torch.inference_mode()
def _written(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, count: int, seed: int) -> Iterator[str]:
    """Write texts, at most three for each that is wanted."""
    if precision() == "bf16":
        nn.Module.to(model, torch.bfloat16)
    with on_accelerator(model):
        start_NL = torch.full((_WRITTEN_TOGETHER, 1), tokenizer.eos_token_id, device=model.device)
        for batch in range(math.ceil(_TRIES * count / _WRITTEN_TOGETHER)):
            torch.manual_seed(int(np.random.SeedSequence([seed, batch]).generate_state(1)[0]))
            ended = _MostHaveEnded(tokenizer.eos_token_id)
            written_NL = model.generate(  # type: ignore[operator]  # typed as a tensor
                start_NL,
                attention_mask=torch.ones_like(start_NL),
                do_sample=True,
                top_p=TOP_P,
                top_k=0,
                max_length=_longest(model),
                pad_token_id=tokenizer.eos_token_id,
                stopping_criteria=StoppingCriteriaList([ended]),
            )
            for ids in written_NL[:, 1:].tolist():
                if tokenizer.eos_token_id in ids:
                    yield str(tokenizer.decode(ids[: ids.index(tokenizer.eos_token_id)])).strip()


class _MostHaveEnded(StoppingCriteria):
    """Ends a batch when so few rows are unfinished that the rest need not wait for them."""

    def __init__(self, end: int) -> None:
        self._end = end

    def __call__(self, input_ids: Tensor, scores: Tensor, **_: object) -> Tensor:  # noqa: ARG002 - given by name
        """Tell for each row, (N,), whether to stop: all or none."""
        unfinished = (input_ids[:, 1:] != self._end).all(dim=1).float().mean()
        return torch.full((len(input_ids),), bool(unfinished <= _UNFINISHED), device=input_ids.device)


def _row(task: Task, text: str) -> Row | None:
    """Return the row that a text says; None where the task cannot use it."""
    row = task.row_of(text)
    try:
        decoder_of(task.name).check(row, "a generated row")
    except DataError:
        return None
    return row


def _write(rows: Sequence[Row], file: Path, generator: Artifact) -> None:
    if not rows:
        raise UsageError(
            "distil.generate",
            expected="rows from the language model",
            found=f"none that is new and can be used ({generator.path})",
            next_step="name another generator or leave generate out",
        )
    partial = file.with_suffix(".partial")
    partial.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    partial.replace(file)
