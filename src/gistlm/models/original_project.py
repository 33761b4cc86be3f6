"""The original project's checkpoints: a transformers folder whose vocabulary ends in one <GIST> token.

Mu, Li, Goodman 2023, https://github.com/jayelm/gisting: that token is repeated k times for k gist tokens.
Two things must be known to read its LLaMA checkpoints as they were trained. They are published as
differences to the base model's weights, to which `convert` adds the base. And folders without a
tokenizer.json were trained with a tokenizer that dropped the newlines around <GIST>, always began with BOS,
and took each text after a special token for the start of a sentence.
Knows nothing of gists or generation.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from tokenizers import AddedToken
from transformers import PreTrainedModel
from transformers.utils.hub import cached_file

from gistlm.errors import MissingDependencyError, ModelError
from gistlm.files import read_json
from gistlm.models.checkpoint import Checkpoint, describe_base
from gistlm.models.config import GIST_TOKEN, CheckpointConfig, Recipe
from gistlm.models.embeddings import embedding_weight
from gistlm.models.loading import LoadedBase, fingerprint_weights, load_base
from gistlm.prompt import PromptFormat, PromptTokenizer, paper_format

MAX_K = 16
"""Maximum number of gist tokens in one gist; any number would do, since the one token is repeated."""
DIFFERENCE_NORM = 0.1
"""A model none of whose normalisation layers has weights of this mean magnitude holds differences.

The final RMSNorm of a trained LLaMA is above 1, that of a random model is 1. The published checkpoints took
3,000 steps of AdamW at a learning rate of up to 2e-5, which move a weight by 0.06 at the very most.
"""


def load_legacy(folder: Path, device: str | None, dtype: torch.dtype | None) -> Checkpoint:
    """An original checkpoint as one of ours, recipe `paper`; saved again, it is an ordinary gistlm checkpoint.

    Raises `UnsupportedModelError` for an encoder-decoder model, and `ModelError` for a weight difference or
    what else cannot be loaded.
    """
    remedy = "add the base model to it with: gistlm convert --diff DIFFERENCE --base BASE -o OUTPUT"
    has_weights = any(file.suffix == ".safetensors" for file in folder.iterdir())
    if not has_weights and not read_json(folder / "config.json").get("is_encoder_decoder"):
        raise ModelError(
            f"{folder} holds no safetensors; if it is a difference to a base model's weights, {remedy}; "
            f"a whole model is written as safetensors by transformers' save_pretrained"
        )
    loaded = _load(str(folder), device, dtype)
    if _is_difference(loaded.model):
        raise ModelError(f"{folder} holds no model but the difference to a base model's weights; {remedy}")
    return _checkpoint(loaded, str(folder))


def convert(diff: str, base: str, output: str) -> Path:
    """Add the weights of ``base`` to the difference ``diff`` and write an ordinary gistlm checkpoint.

    diff, base: folders or hub ids. Their weights may be pytorch_model*.bin, as the original project's are: torch
    reads these with weights_only=True, which runs no code. output: a folder that does not exist yet; it appears
    whole, in float32, or not at all. Returns its path. Raises `ModelError` when the two do not belong together.
    """
    target = Path(output).expanduser()
    if target.exists():
        raise ModelError(f"{target} exists already; give a folder that does not")
    tuned, tokenizer, _ = _load(diff, "cpu", torch.float32, torch_files=True)
    if not _is_difference(tuned):
        raise ModelError(f"{diff} is no difference but a whole model; load it as it is")
    stock, _, _ = load_base(base, "cpu", torch.float32, torch_files=True)
    if _is_difference(stock):
        raise ModelError(f"the base {base} is itself a difference; give the model that {diff} was made from")
    _add(tuned, stock, diff, base)
    whole = LoadedBase(tuned, tokenizer, fingerprint_weights(dict(tuned.named_parameters())))
    checkpoint = _checkpoint(whole, diff)
    try:
        return _write_whole(checkpoint, target)
    except (OSError, SafetensorError, ValueError) as error:
        raise ModelError(f"cannot write the model to {target}: {error}") from error


def _load(name: str, device: str | None, dtype: torch.dtype | None, *, torch_files: bool = False) -> LoadedBase:
    """The stock model and its tokenizer as it was in training."""
    old = not _has_file(name, "tokenizer.json")
    if old and _has_file(name, "tokenizer.model"):
        for package in ("sentencepiece", "google.protobuf"):
            if not _is_installed(package):
                raise MissingDependencyError(package, f"the tokenizer of {name}", "pip install sentencepiece protobuf")
    model, tokenizer, fingerprint = load_base(name, device, dtype, torch_files=torch_files)
    known = {token.content: (index, token) for index, token in tokenizer.added_tokens_decoder.items()}
    rows = embedding_weight(model).shape[0]
    index, token = known.get(GIST_TOKEN, (None, None))
    if index is None or index != rows - 1:
        raise ModelError(
            f"{name} is no checkpoint of the original project: the last of its {rows:,} token ids "
            f"must be {GIST_TOKEN}, which is {'absent' if index is None else index}"
        )
    # special, or a user's text that contains "<GIST>" would become a gist token
    restored = AddedToken(
        GIST_TOKEN, special=True, normalized=False, lstrip=old or token.lstrip, rstrip=old or token.rstrip
    )
    tokenizer.add_tokens([restored], special_tokens=True)
    if old and tokenizer.bos_token:
        tokenizer.add_bos_token = tokenizer.init_kwargs.get("add_bos_token", True)
    return LoadedBase(model, tokenizer, fingerprint)


def _checkpoint(base: LoadedBase, name: str) -> Checkpoint:
    model, tokenizer, fingerprint = base
    own = describe_base(name, model, fingerprint)
    config = CheckpointConfig(name=Path(name).name or name, recipe=Recipe.PAPER, bases=[own])
    index = torch.tensor([tokenizer.convert_tokens_to_ids(GIST_TOKEN)], device=model.device)
    with torch.no_grad():
        embeddings = model.get_input_embeddings()(index).repeat(MAX_K, 1)
    prompts = PromptTokenizer(tokenizer, _format(tokenizer, model.config.is_encoder_decoder))
    return Checkpoint(config, model, model, embeddings, prompts)


def _format(tokenizer: Any, encodes: bool) -> PromptFormat:
    """The paper's format, without the newlines that the tokenizer dropped beside <GIST>."""
    paper = paper_format(tokenizer, encodes)
    token = tokenizer.added_tokens_decoder[tokenizer.convert_tokens_to_ids(GIST_TOKEN)]
    if token.lstrip:
        paper = paper.replace(prompt=paper.prompt.rstrip())
    if token.rstrip:
        paper = paper.replace(rest=paper.rest.lstrip(), rest_without_input=paper.rest_without_input.lstrip())
    return paper


def _is_difference(model: PreTrainedModel) -> bool:
    if model.config.is_encoder_decoder:
        return False  # those were published whole, and T5's norms may be small
    norms = [weight for name, weight in model.named_parameters() if weight.dim() == 1 and name.endswith("norm.weight")]
    return bool(norms) and max(float(weight.detach().float().abs().mean()) for weight in norms) < DIFFERENCE_NORM


def _add(tuned: PreTrainedModel, stock: PreTrainedModel, diff: str, base: str) -> None:
    """Add ``stock`` to ``tuned`` in place; <GIST>'s own rows are whole already. Raises `ModelError` on a misfit."""
    if tuned.config.model_type != stock.config.model_type:
        raise ModelError(
            f"{diff} is a {tuned.config.model_type} model, the base {base} a {stock.config.model_type} model"
        )
    own, added = dict(tuned.named_parameters()), dict(stock.named_parameters())
    if odd := sorted(own.keys() ^ added.keys()):
        raise ModelError(f"{diff} and the base {base} have not the same layers; only one of them has {odd[0]}")
    vocabulary = {id(module.weight) for module in (tuned.get_input_embeddings(), tuned.get_output_embeddings())}
    for name, weight in own.items():
        rows = weight.shape[0] - (id(weight) in vocabulary)
        if added[name].shape != (rows, *weight.shape[1:]):
            raise ModelError(
                f"{name} is {[*weight.shape]} in {diff}, so it must be {[rows, *weight.shape[1:]]} "
                f"in the base {base}, where it is {[*added[name].shape]}"
            )
    with torch.no_grad():
        for name, weight in own.items():
            weight[: added[name].shape[0]] += added[name]


def _write_whole(checkpoint: Checkpoint, target: Path) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    try:
        checkpoint.save_pretrained(work)
        os.chmod(work, 0o755)
        work.rename(target)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return target


def _has_file(name: str, file: str) -> bool:
    """Whether a folder or hub repository has the file; no when it cannot be reached, which `load_base` explains."""
    try:
        return cached_file(name, file, _raise_exceptions_for_missing_entries=False) is not None
    except (OSError, ValueError):
        return False


def _is_installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:
        return False
