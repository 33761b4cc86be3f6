"""The checkpoint that a run starts from; knows nothing of steps or losses."""

from __future__ import annotations

import logging

import torch

from gistlm.errors import InputError
from gistlm.models.adapter import LoraModules, adapter_weights
from gistlm.models.catalog import load_checkpoint
from gistlm.models.checkpoint import Checkpoint, CheckpointOptions
from gistlm.models.config import FIT_STRENGTHS, PROBES
from gistlm.models.embeddings import random_words
from gistlm.models.loading import check_device
from gistlm.training.config import TrainConfig
from gistlm.training.distributed import is_sharded

logger = logging.getLogger(__name__)


def create_checkpoint(config: TrainConfig) -> Checkpoint:
    """The checkpoint to train: what the recipe trains is in float32 and requires gradients.

    It is on the recipe's device; under FSDP in the CPU's memory, because a process's device may not have room for all
    weights, and FSDP moves its shard there.
    """
    dtype = None if config.dtype is None else getattr(torch, config.dtype)
    device = check_device(config.device).type
    place = "cpu" if is_sharded() else config.device
    if config.start is None:
        made = Checkpoint.create(config.base, _made_of(config), place, dtype)
    else:
        made = _start_from(config, load_checkpoint(config.start, config.base, place, dtype))
    made.config = made.config.replace(name=config.name or made.config.name)
    if made.prompts.format.date:
        logger.info("the chat template writes a date: %s, fixed in the prompt format", made.prompts.format.date)
    if device == "cpu":
        _use_plain_attention(made)
    made.reader.requires_grad_(config.lora_rank is None)
    for name, tensor in made.writer.named_parameters():
        if "lora_" in name:
            tensor.requires_grad_(True)
    made.gist_embeddings.data = made.gist_embeddings.data.float()
    made.gist_embeddings.requires_grad_(True)
    made.fit_strengths.requires_grad_(bool(config.kept))
    if config.probes > len(made.probe_embeddings):
        more = random_words(made.reader, config.probes, config.seed)[len(made.probe_embeddings) :]
        made.probe_embeddings.data = torch.cat([made.probe_embeddings.data, more.float()])
    made.probe_embeddings.requires_grad_(bool(config.probes))
    return made


def _made_of(config: TrainConfig) -> CheckpointOptions:
    return CheckpointOptions(
        recipe=config.recipe,
        max_k=config.max_k,
        kept=config.kept,
        lora_rank=config.lora_rank,
        lora_modules=LoraModules(config.lora_modules),
        anchored=config.has_anchors,
        seed=config.seed,
    )


def _use_plain_attention(checkpoint: Checkpoint) -> None:
    """Use eager attention: on a CPU, the backward pass of SDPA takes many times as long."""
    checkpoint.reader.set_attn_implementation("eager")
    if checkpoint.writer is not checkpoint.reader:
        checkpoint.writer.get_base_model().set_attn_implementation("eager")


def _start_from(config: TrainConfig, found: Checkpoint) -> Checkpoint:
    """A copy of ``found`` to train on with the recipe. Raises `InputError` if its options are not the recipe's."""
    ranks = {name: tensor.shape[0] for name, tensor in adapter_weights(found.writer).items() if "lora_A" in name}
    beyond_attention = any("mlp" in name.lower() for name in ranks)
    wanted = {
        "recipe": (config.recipe, found.config.recipe),
        "anchored": (config.has_anchors, found.config.anchored),
        "lora_rank": (config.lora_rank, next(iter(ranks.values()), None)),
        "lora_modules": (config.lora_modules, LoraModules.ALL if beyond_attention else LoraModules.ATTENTION),
    }
    for name, (given, own) in wanted.items():
        if given != own:
            raise InputError(f"start: {config.start} has {name}={own}, the recipe {name}={given}; make them equal")
    learned, own, probes = config.max_k - config.kept, found.placement.learned, len(found.probe_embeddings)
    if learned > own:
        raise InputError(f"start: {config.start} has {own} learned gist tokens, the recipe {learned}; lower max_k")
    if config.kept and probes > config.probes:
        raise InputError(
            f"start: {config.start} has {probes} learned probe queries, the recipe {config.probes}; "
            f"give probes: {probes} or more"
        )
    found.gist_embeddings.data = found.gist_embeddings.data[:learned].clone()  # the first are themselves a gist
    return Checkpoint(
        found.config.replace(kept=config.kept, k=None),
        found.reader,
        found.writer,
        found.gist_embeddings,
        found.prompts,
        {FIT_STRENGTHS: found.fit_strengths, PROBES: found.probe_embeddings}
        if config.kept and found.config.kept
        else None,
    )
