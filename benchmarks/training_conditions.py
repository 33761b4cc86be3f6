"""What `training_speed.py` compares: each condition's model, its batches and its step. Knows nothing of clocks."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from conditions import fit_text
from measure import machine, synchronise
from torch import Tensor

from gistlm.data.rows import Row
from gistlm.data.sources import load_sources
from gistlm.errors import DataError, InputError
from gistlm.gisting.placement import Part
from gistlm.models.config import Recipe
from gistlm.prompt import PromptTokenizer
from gistlm.training import loop
from gistlm.training.batches import Batch, Collator, Draws, Examples
from gistlm.training.config import TrainConfig
from gistlm.training.loop import keep_freed_memory

Fields = dict[str, Tensor]
"""Of one `gistlm.training.batches.Batch`."""
CONDITIONS: dict[str, dict[str, Any]] = {
    "frozen": {"recipe": Recipe.FROZEN},
    "paper": {"recipe": Recipe.PAPER, "lora_rank": None},
    "paper_lora": {"recipe": Recipe.PAPER},
    "plain": {"recipe": Recipe.PAPER, "lora_rank": None, "condition": "positive"},
    "plain_lora": {"recipe": Recipe.PAPER, "condition": "positive"},
}
KEPT = "frozen_kept"
"""The same as frozen, one gist token learned and the others kept."""
OBSERVED = "frozen_observed"
"""The same with eight learned probe queries, as the shipped checkpoint has, which are taught where the rest looks."""
AGAIN = "_again"
"""Ends the name of a later pass over the same rows: what the teacher said in the first is kept (teacher_cache)."""
CLIP = 1.0
"""Largest norm of the gradients, as in training."""


@dataclass(frozen=True)
class Settings:
    """What is measured."""

    data: str | None
    """Rows, as `gistlm train` reads them; None for random words."""
    base: str
    """The stock model."""
    batch_size: int
    """Rows a step."""
    max_tokens: int
    """Longer rows are left out."""
    max_rest_tokens: int | None
    """Rows whose input and output are longer are left out."""
    min_prompt_tokens: int
    """Rows whose prompt is shorter are left out."""
    max_k: int
    """Most gist tokens; each row's k is 1, 2, 4, ... up to this."""
    lora_rank: int
    """Of the frozen recipe's adapter and of both LoRA conditions."""
    steps: int
    """Batches that are counted; one more comes first."""
    seed: int
    """Of the rows' order, of k, of initial weights and of random words."""
    lengths: list[int] | None = None
    """Tokens of the prompt, input and output of every row of random words, with what the template puts around them."""

    def __post_init__(self) -> None:
        if (self.data is None) == (self.lengths is None):
            raise InputError("give either --data FILE or --lengths PROMPT INPUT OUTPUT")
        tokens = sum(self.lengths or [])
        if tokens > self.max_tokens:
            raise InputError(f"rows of {tokens} tokens are longer than --max-tokens {self.max_tokens}; raise it")
        if self.lengths and self.max_rest_tokens and sum(self.lengths[1:]) > self.max_rest_tokens:
            raise InputError(f"--max-rest-tokens {self.max_rest_tokens} is too low for --lengths; leave it out")
        for name, least in (("steps", 1), ("lora_rank", 1), ("min_prompt_tokens", 0)):
            if getattr(self, name) < least:
                raise InputError(f"{name} must be {least} or more, got {getattr(self, name)}")

    def config(self, dtype: str | None) -> TrainConfig:
        """The recipe that all conditions start from; it is checked, and never run as a whole."""
        options = {
            "base": self.base, "output": "unused", "data": [{"path": self.data or "unused"}], "max_k": self.max_k,
            "lora_rank": self.lora_rank, "steps": self.steps + 1, "batch_size": self.batch_size,
            "max_tokens": self.max_tokens, "max_rest_tokens": self.max_rest_tokens, "seed": self.seed, "dtype": dtype,
        }  # fmt: skip
        return TrainConfig.parse(options)


def all_conditions(max_k: int, folder: str) -> dict[str, dict[str, Any]]:
    """All that can be measured. Gists that keep tokens have two or more."""
    conditions = dict(CONDITIONS)
    if max_k > 1:
        conditions[KEPT] = {"recipe": Recipe.FROZEN, "kept": max_k - 1}
        conditions[OBSERVED] = conditions[KEPT] | {"probes": 8, "probe_weight": 0.3}
    for name in [name for name in conditions if name.startswith("frozen")]:
        conditions[name + AGAIN] = conditions[name] | {"teacher_cache": f"{folder}/{name}"}
    return conditions


@dataclass(frozen=True)
class Facts:
    """What a condition tells of itself."""

    trained_parameters: int
    """Numbers that the optimiser changes."""
    parameters: int
    """Of the model."""
    tokens: list[int]
    """Of every batch: prompts, inputs and outputs; neither padding nor gist tokens."""
    prompt_tokens: list[int]
    """Of every batch, the prompts' alone."""
    machine: dict[str, object]
    """What the condition runs on."""


def prepare(
    settings: Settings, dtype: str | None, condition: dict[str, Any], threads: int
) -> tuple[Facts, Callable[[], None]]:
    """A condition with its model, in the process that calls: facts, and a call that trains on the next batch."""
    torch.set_num_threads(threads)
    keep_freed_memory()
    config = settings.config(dtype)
    objective = create(config, condition)
    prompts = objective.checkpoint.prompts
    rows = random_rows(settings, prompts) if settings.data is None else load_sources(config.data, config.seed)
    batches = make_batches(config, rows, objective, settings.min_prompt_tokens)
    # before the clock runs, so that most memory is there: on a virtual machine new pages can cost more than a step
    batches[0] = max(batches, key=lambda batch: batch["prompts"].numel() + batch["rests"].numel())
    ask(objective, batches)
    reader = objective.checkpoint.reader
    facts = Facts(
        trained_parameters=sum(tensor.numel() for tensor in objective.trainable().values()),
        parameters=sum(tensor.numel() for tensor in reader.parameters()),
        tokens=[Batch(**batch).tokens for batch in batches],
        prompt_tokens=[int((batch["prompt_parts"] != Part.PAD).sum()) for batch in batches],
        machine=machine(reader.dtype, reader.device),
    )
    return facts, stepper(objective, batches)


def ask(objective: loop.Objective, batches: list[Fields]) -> None:
    """Let a condition's teacher say all that it has to, if it is kept."""
    if objective.teacher is not None:
        with torch.no_grad():
            for batch in batches:
                objective(**batch)


def create(config: TrainConfig, condition: dict[str, Any]) -> loop.Objective:
    """A condition's model and loss, with its own copy of the base."""
    changed = config.replace(**condition)
    return loop.Objective(loop.create_checkpoint(changed), changed).train()


def random_rows(settings: Settings, prompts: PromptTokenizer) -> list[Row]:
    """Rows of random words, all of the same lengths, a batch for every step."""
    assert settings.lengths is not None
    counts = prompts.prompt_ids, prompts.rest_ids, prompts.output_ids
    draws = [random.Random(f"{settings.seed} {row}") for row in range(settings.batch_size * (settings.steps + 1))]
    return [
        Row(*(fit_text(draw, tokens, lambda text, ids=ids: len(ids(text)))
              for tokens, ids in zip(settings.lengths, counts, strict=True)))
        for draw in draws
    ]  # fmt: skip


def make_batches(
    config: TrainConfig, rows: list[Row], objective: loop.Objective, min_prompt_tokens: int = 0
) -> list[Fields]:
    """The batches that a run of this recipe would see of these rows, on the model's device."""
    checkpoint = objective.checkpoint
    examples = Examples(rows, checkpoint.prompts, config.max_tokens, config.max_rest_tokens)
    examples.examples = [example for example in examples.examples if len(example.prompt) >= min_prompt_tokens]
    size = config.batch_size
    if len(examples) < size:
        raise DataError(f"only {len(examples)} of {len(rows)} rows are of these lengths, and a batch has {size}")
    collate = Collator(checkpoint.placement, config.k, config.seed)
    draws = list(Draws(examples.lengths(), size, config.steps, config.seed))
    batches = [
        collate([examples[draw] for draw in draws[start : start + size]]) for start in range(0, len(draws), size)
    ]
    return [{name: tensor.to(checkpoint.reader.device) for name, tensor in batch.items()} for batch in batches]


def stepper(objective: loop.Objective, batches: list[Fields]) -> Callable[[], None]:
    """A call that trains on the next batch. Plain fine-tuning has no gist tokens, not even hidden ones."""
    if objective.options.condition == "positive":
        batches = [{**batch, "k": torch.zeros_like(batch["k"])} for batch in batches]
    parameters = list(objective.trainable().values())
    optimizer = torch.optim.AdamW(parameters, lr=1e-6, weight_decay=0.0)
    waiting = iter(batches)

    def step() -> None:
        loss = objective(**next(waiting))["loss"]
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, CLIP)
        optimizer.step()
        optimizer.zero_grad()
        synchronise()

    return step
