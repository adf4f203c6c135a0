"""Checkpoints: exact loading and saving, from artifacts, plain Hugging Face folders and hub names.

transformers loads a checkpoint with missing, extra or misshapen tensors, or with NaN weights,
and says little; here each of these is an error that names the tensor. Pickled weights are never read.

    N rows   L padded length   C labels
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoConfig, AutoTokenizer, PretrainedConfig, PreTrainedModel

from deploykit import artifact, families
from deploykit.artifact import Artifact
from deploykit.environment import cache_dir
from deploykit.errors import CheckpointError, TrainingStopped, UsageError
from deploykit.runtime import batching
from deploykit.runtime.cascade import cascaded
from deploykit.runtime.model_info import FIRST
from deploykit.runtime.tasks import decoder_of
from deploykit.runtime.tokenizer import Encoding, Tokenizer
from deploykit.spec import Quantization as Quantization
from deploykit.spec import Spec as Spec
from deploykit.spec import spec_from
from deploykit.tasks import TASKS, task_named
from deploykit.weights import WEIGHTS, read_tensors

SPEC = "deploykit.json"
TOKENIZER = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
VOCABULARY = "vocabulary.json"
"""What a pruned tokenizer was proven to do; see `compress.prune_vocabulary`."""
FORMAT = 1

_UNSET_LENGTH = 1_000_000
"""A tokenizer configuration without a limit holds 10^30; anything above this means none."""
_PADDED_ROWS = 1024
"""Embeddings are padded to a multiple of 64 or 128; more rows than this above the tokenizer's is another vocabulary."""


@dataclass(frozen=True)
class Checkpoint:
    """A loaded checkpoint: the model in float32, in evaluation mode, with eager attention, on the CPU."""

    path: Path
    model: PreTrainedModel
    tokenizer: Tokenizer
    labels: tuple[str, ...]
    spec: Spec
    first: "Checkpoint | None" = None
    """A cascade's smaller model, which is asked first; `spec.threshold` says when its answer stands."""

    @property
    def last(self) -> "Checkpoint":
        """This checkpoint without a smaller one that is asked first."""
        return replace(self, first=None, spec=replace(self.spec, threshold=None))

    @property
    def parts(self) -> "tuple[Checkpoint, ...]":
        """Every model that may answer, each alone, in the order in which they are asked."""
        return (*(self.first.parts if self.first else ()), self.last)


def open_checkpoint(source: str | Path) -> Artifact:
    """Open a sealed artifact, adopt a plain Hugging Face folder, or fetch a hub name.

    Raises:
        CheckpointError: there is none, or it is empty or of another kind.
    """
    path = Path(source)
    if not path.is_dir():
        path = _fetch(str(source))
    if artifact.is_sealed(path):
        found = artifact.verified(path)
        if found.kind != "checkpoint":
            raise CheckpointError(
                path,
                expected="a checkpoint",
                found=f"an artifact of kind {found.kind}",
                next_step="give the checkpoint it was made from",
            )
        return found
    if not (path / "config.json").is_file():
        raise CheckpointError(
            path,
            expected="a folder with config.json and model.safetensors",
            found="no config.json",
            next_step="save the model with save_pretrained",
        )
    return artifact.adopt(path, "checkpoint")


def load(source: Artifact, task: str | None = None) -> Checkpoint:
    """Load a checkpoint exactly: every tensor present, none left over, shapes equal, values finite.

    Raises:
        CheckpointError: whatever is not so, by name.
    """
    return _loaded(source.path, task)


def _loaded(path: Path, task: str | None) -> Checkpoint:
    config = _config(path)
    spec = _spec(path, config, task)
    tensors = read_tensors(path)
    model, missing, unexpected, misshapen = _filled(config, spec, tensors)
    _require_exact(path, missing, unexpected, misshapen)
    first = None if spec.threshold is None else _loaded(path / FIRST, spec.task)
    return replace(_checkpoint(path, model, spec), first=first)


def load_base(source: Artifact, task: str, labels: Sequence[str], seed: int) -> Checkpoint:
    """Load a backbone exactly and put a new head on it, initialized from `seed`.

    Raises:
        CheckpointError: the backbone is not what its configuration says.
    """
    path = source.path
    config = _config(path)
    config.id2label, config.label2id = dict(enumerate(labels)), {label: index for index, label in enumerate(labels)}
    spec = Spec(task, _max_length(path, config), _pad_id(path, config))
    tensors = read_tensors(path)
    torch.manual_seed(seed)
    model, missing, unexpected, misshapen = _filled(config, spec, tensors)
    _require_exact(path, *(_in_backbone(model, names) for names in (missing, unexpected, misshapen)))
    return _checkpoint(path, model, spec)


def shortened(checkpoint: Checkpoint, max_length: int) -> Checkpoint:
    """Return the same checkpoint for rows cut to `max_length` tokens.

    Raises:
        UsageError: the model takes fewer.
    """
    if max_length > checkpoint.spec.max_length:
        raise UsageError(
            "max_length",
            expected=f"at most {checkpoint.spec.max_length}, what the model takes",
            found=str(max_length),
            next_step="lower it",
        )
    folder = _tokenizer_file(checkpoint.path).parent
    tokenizer = Tokenizer.open(folder, max_length=max_length, pad_id=checkpoint.spec.pad_id)
    return replace(checkpoint, tokenizer=tokenizer, spec=replace(checkpoint.spec, max_length=max_length))


def save(checkpoint: Checkpoint, folder: Path) -> None:
    """Write a checkpoint so that `load` gives it back: configuration, weights, tokenizer, spec."""
    model = checkpoint.model
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})
    save_tokenizer(checkpoint, folder)
    for name in (TOKENIZER_CONFIG, VOCABULARY):
        if (checkpoint.path / name).is_file():
            artifact.write_json(folder / name, artifact.read_json(checkpoint.path / name, CheckpointError))
    artifact.write_json(folder / SPEC, {"format": FORMAT, **asdict(checkpoint.spec)})
    if checkpoint.first is not None:
        (folder / FIRST).mkdir()
        save(checkpoint.first, folder / FIRST)


@contextmanager
def kept_when_stopped(checkpoint: Checkpoint, folder: Path) -> Iterator[None]:
    """Save a checkpoint when its training must stop: the loop has left the last good weights in it."""
    try:
        yield
    except TrainingStopped:
        save(checkpoint, folder)
        raise


def save_tokenizer(checkpoint: Checkpoint, folder: Path) -> None:
    """Write `tokenizer.json` without padding and truncation, which are the caller's business."""
    artifact.write_json(folder / TOKENIZER, tokenizer_json(checkpoint), indent=None)


def tokenizer_json(checkpoint: Checkpoint) -> dict[str, Any]:
    """Read `tokenizer.json` without its padding and truncation."""
    found = artifact.read_json(_tokenizer_file(checkpoint.path), CheckpointError)
    return {**found, "padding": None, "truncation": None}


def input_names(model: PreTrainedModel) -> tuple[str, ...]:
    """Name the tensors that the model takes, in order."""
    names = ("input_ids", "attention_mask")
    return (*names, "token_type_ids") if getattr(model.config, "type_vocab_size", 0) > 1 else names


def collate(encodings: Sequence[Encoding], pad_id: int, names: Sequence[str]) -> dict[str, Tensor]:
    """Pad to the longest row: int64 (N,L) each."""
    return {name: torch.from_numpy(value) for name, value in batching.pad(encodings, pad_id, names).items()}


@torch.inference_mode()
def logits(checkpoint: Checkpoint, encodings: Sequence[Encoding], *, batch_size: int = 32) -> list[NDArray[np.float32]]:
    """Run the model in length-sorted batches: per row (C,), or (L,C) without padding, in the order given."""
    task = decoder_of(checkpoint.spec.task)
    if checkpoint.first is not None and checkpoint.spec.threshold is not None:
        first, last = (partial(logits, each, batch_size=batch_size) for each in (checkpoint.first, checkpoint.last))
        return cascaded(encodings, first, last, task, checkpoint.spec.threshold)
    model, names = checkpoint.model, input_names(checkpoint.model)
    rows: dict[int, NDArray[np.float32]] = {}
    for indices in batching.length_sorted_batches([len(encoding.ids) for encoding in encodings], batch_size):
        batch = [encodings[index] for index in indices]
        inputs = collate(batch, checkpoint.spec.pad_id, names)
        output = model(**{name: tensor.to(model.device) for name, tensor in inputs.items()}).logits
        rows |= dict(zip(indices.tolist(), task.unpad(output.float().cpu().numpy(), batch), strict=True))
    return [rows[index] for index in range(len(encodings))]


def num_parameters(model: PreTrainedModel) -> int:
    """Count the parameters, shared ones once."""
    return sum(parameter.numel() for parameter in model.parameters())


def _fetch(name: str) -> Path:
    """Download a hub name's configuration, tokenizer and safetensors."""
    if name.startswith((".", "/", "~")) or name.count("/") > 1 or not name:
        raise CheckpointError(name, expected="a checkpoint folder", found="no such folder", next_step="check the path")
    try:
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "*.txt", "*.model"]))
    except Exception as cause:
        found = f"{type(cause).__name__}: {cause}".splitlines()[0]
        raise CheckpointError(
            name,
            expected="a folder or the name of a model on the hub",
            found=found,
            next_step="check the path, the name or the connection",
        ) from cause


def _config(path: Path) -> PretrainedConfig:
    artifact.read_json(path / "config.json", CheckpointError)
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(path, trust_remote_code=False, local_files_only=True)
    except (ValueError, TypeError, KeyError, OSError) as cause:
        raise CheckpointError(
            path / "config.json",
            expected="a configuration that transformers knows",
            found=str(cause).splitlines()[0],
            next_step="use a checkpoint of a supported family",
        ) from cause
    families.family_of(config, path / "config.json")
    return config


def _spec(path: Path, config: PretrainedConfig, task: str | None) -> Spec:
    """Read `deploykit.json`, or infer it from a plain folder."""
    if not (path / SPEC).is_file():
        return Spec(task or _task_of(path, config), _max_length(path, config), _pad_id(path, config))
    value = artifact.read_json(path / SPEC, CheckpointError)
    if task is not None and task != value["task"]:
        raise CheckpointError(
            path, expected=f"a checkpoint for {task}", found=f"one for {value['task']}", next_step="name the right task"
        )
    return spec_from(value)


def _task_of(path: Path, config: PretrainedConfig) -> str:
    architecture = (config.architectures or ["nothing"])[0]
    for name, task in TASKS.items():
        if architecture.endswith(task.auto_class.removeprefix("AutoModel")):
            return name
    raise CheckpointError(
        path / "config.json",
        expected="a model with a task head",
        found=f"architecture {architecture}",
        next_step="fine-tune it first with `deploykit finetune`",
    )


def _max_length(path: Path, config: PretrainedConfig) -> int:
    """Return how many tokens the model takes: the lower of the position table and the tokenizer's limit."""
    positions = int(config.max_position_embeddings)
    if config.model_type == "roberta":
        positions -= config.pad_token_id + 1
    said = _tokenizer_config(path).get("model_max_length") or _UNSET_LENGTH
    return int(min(positions, said))


def _pad_id(path: Path, config: PretrainedConfig) -> int:
    """Return the padding token's id and check that tokenizer and model agree on it."""
    tokenizer = artifact.read_json(_tokenizer_file(path), CheckpointError)
    token = _tokenizer_config(path).get("pad_token") or "[PAD]"
    token = token["content"] if isinstance(token, dict) else token
    ids = {added["content"]: int(added["id"]) for added in tokenizer.get("added_tokens", [])}
    configured = config.pad_token_id
    found = ids.get(token, configured)
    if configured is not None and found != configured:
        raise CheckpointError(
            path,
            expected=f"a tokenizer whose padding is {configured}",
            found=f"{token} at {found}",
            next_step="use the tokenizer that the model was trained with",
        )
    return 0 if found is None else int(found)


def _tokenizer_config(path: Path) -> dict[str, Any]:
    file = path / TOKENIZER_CONFIG
    return dict(artifact.read_json(file, CheckpointError)) if file.is_file() else {}


def _tokenizer_file(path: Path) -> Path:
    """Return `tokenizer.json`, converted once into the cache where a folder has only a vocabulary."""
    if (path / TOKENIZER).is_file():
        return path / TOKENIZER
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False, local_files_only=True)
        text = tokenizer.backend_tokenizer.to_str()
    except (ValueError, OSError, AttributeError, TypeError) as cause:
        raise CheckpointError(
            path,
            expected="tokenizer.json or a vocabulary",
            found=str(cause).splitlines()[0],
            next_step="save the tokenizer with save_pretrained",
        ) from cause
    folder = cache_dir() / "tokenizers" / artifact.digest_of(text)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / TOKENIZER).write_text(text, encoding="utf-8")
    return folder / TOKENIZER


def _filled(
    config: PretrainedConfig, spec: Spec, tensors: dict[str, Tensor]
) -> tuple[PreTrainedModel, set[str], set[str], set[str]]:
    """Build the model and fill it; return it with the missing, unexpected and misshapen tensors' names."""
    auto = getattr(transformers, task_named(spec.task).auto_class)
    config._attn_implementation = "eager"
    quiet: Any = transformers.logging  # has no types
    quiet.disable_progress_bar()  # it draws on anything, terminal or not
    quiet.set_verbosity_error()  # what is missing or left over is ours to tell
    if spec.structure is None:
        # the Auto classes insist on a path where the classes that they pick take the tensors alone
        model, info = auto._model_mapping[type(config)].from_pretrained(
            None,
            config=config,
            state_dict=tensors,
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
        misshapen = {item if isinstance(item, str) else item[0] for item in info["mismatched_keys"]}
        return model, set(info["missing_keys"]), set(info["unexpected_keys"]), misshapen
    model = auto.from_config(config, dtype=torch.float32)
    families.resize(model, spec.structure)
    own = model.state_dict()
    misshapen = {name for name in own.keys() & tensors.keys() if own[name].shape != tensors[name].shape}
    model.load_state_dict({name: tensor for name, tensor in tensors.items() if name not in misshapen}, strict=False)
    return model, own.keys() - tensors.keys(), tensors.keys() - own.keys(), misshapen


def _require_exact(path: Path, missing: set[str], unexpected: set[str], misshapen: set[str]) -> None:
    for problem, names in (("missing", missing), ("unexpected", unexpected), ("of another shape", misshapen)):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise CheckpointError(
                path,
                expected="exactly the tensors of config.json",
                found=f"{problem}: {min(names)}{more}",
                next_step="restore the checkpoint that belongs to this configuration",
            )


def _in_backbone(model: PreTrainedModel, names: set[str]) -> set[str]:
    """Keep the tensors of embeddings and layers: a base may lack the heads and the pooler, or have others."""
    family = families.FAMILIES[model.config.model_type]
    inside = (f"{family.embeddings}.", f"{family.layers}.")
    return {name for name in names if name.removeprefix(f"{family.backbone}.").startswith(inside)}


def _checkpoint(path: Path, model: PreTrainedModel, spec: Spec) -> Checkpoint:
    model.train(mode=False)
    tokenizer = Tokenizer.open(_tokenizer_file(path).parent, max_length=spec.max_length, pad_id=spec.pad_id)
    spare = model.config.vocab_size - tokenizer.vocab_size
    if not 0 <= spare < _PADDED_ROWS:
        raise CheckpointError(
            path,
            expected=f"a tokenizer of about {model.config.vocab_size} tokens",
            found=f"one of {tokenizer.vocab_size}",
            next_step="use the tokenizer that the model was trained with",
        )
    names: Any = model.config.id2label  # int to str, once transformers has read it
    labels = tuple(names[index] for index in range(len(names)))
    return Checkpoint(path, model, tokenizer, labels, spec)
