"""Measures held-out rows during a run, with the gist, with the full prompt and with no prompt.

It only shows how a run is going; figures to publish come from `gistlm.evaluation`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback

from gistlm.compress import place
from gistlm.files import sha256, write_atomically
from gistlm.gisting.placement import Condition
from gistlm.models.checkpoint import Checkpoint
from gistlm.training.batches import Batch, Examples, collate
from gistlm.training.config import TrainConfig
from gistlm.training.distributed import is_sharded, outside_a_step, whole
from gistlm.training.objectives import cross_entropy, divergence, passes_of, sum_over_processes

_BATCH = 8


class Validation(TrainerCallback):
    """Measures the held-out rows at every save; the main process writes the history into the run's folder."""

    def __init__(self, checkpoint: Checkpoint, examples: Examples, config: TrainConfig) -> None:
        self.checkpoint = checkpoint
        self.examples = examples
        self.ks = sorted(set(config.k or [1, min(4, config.max_k), config.max_k]))
        self.path = Path(config.output) / "run" / "validation.json"
        self.history: list[dict[str, Any]] = json.loads(self.path.read_text()) if self.path.exists() else []
        self._base = hash_weights(checkpoint)

    def base_unchanged(self) -> bool:
        """Whether the reader's weights are the same, byte for byte, as before training."""
        return hash_weights(self.checkpoint) == self._base

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Called by Trainer at every save."""
        if not len(self.examples):
            return
        model, training = kwargs["model"], kwargs["model"].training
        model.eval()  # no dropout
        all_rows = is_sharded()  # then the processes run every pass together
        rows = self.examples if all_rows else self.examples.of_process(args.process_index, args.world_size)
        with outside_a_step(model):
            model.give_weights_to_checkpoint()
            measured = {"step": state.global_step, **measure(self.checkpoint, rows, self.ks, all_rows)}
        model.train(training)
        self.history = [entry for entry in self.history if entry["step"] < state.global_step] + [measured]
        if state.is_world_process_zero:
            write_atomically(self.path, json.dumps(self.history, indent=1).encode())


def measure(checkpoint: Checkpoint, examples: Examples, ks: list[int], all_rows: bool = False) -> dict[str, Any]:
    """Means of `measure_rows` over output tokens.

    all_rows: whether each of several processes has all rows; else each has a part of them, and their sums are added.
    Returns {"full": {"nll": ...}, "none": {"nll", "kl"}, "k=4": {"nll", "kl", "nll_gap_closed", "kl_gap_closed"}}.
    """
    names = ["none", *(f"k={k}" for k in ks)]
    keys = [("", "tokens"), ("full", "nll"), *((name, metric) for name in names for metric in ("nll", "kl"))]
    table = measure_rows(checkpoint, examples, ks)
    sums = [float(table[key].sum()) if key in table else 0.0 for key in keys]  # a process may have no rows
    every = torch.tensor([len(examples), *sums], dtype=torch.float64, device=checkpoint.reader.device)
    rows, tokens, *totals = (every if all_rows else sum_over_processes(every)).tolist()
    means: dict[str, dict[str, float]] = {}
    for (name, metric), total in zip(keys[1:], totals, strict=True):
        means.setdefault(name, {})[metric] = total / tokens
    full, none = means["full"], means["none"]
    for name, values in means.items():
        if name.startswith("k="):
            lost = none["nll"] - full["nll"]
            values["nll_gap_closed"] = (none["nll"] - values["nll"]) / lost if lost else 0.0
            values["kl_gap_closed"] = 1 - values["kl"] / none["kl"] if none["kl"] else 0.0
    return {"rows": int(rows), "tokens": int(tokens), **means}


@torch.no_grad()
def measure_rows(checkpoint: Checkpoint, examples: Examples, ks: list[int]) -> dict[tuple[str, str], Tensor]:
    """Negative log-likelihood and KL in nats, summed over each row's output tokens: float64 [rows], sorted by length.

    The keys are ("", "tokens"), ("full", "nll"), ("none", "nll"), ("none", "kl"), ("k=4", "nll"), ("k=4", "kl"), ...
    """
    sums: dict[tuple[str, str], list[Tensor]] = {}
    passes = passes_of(checkpoint)
    for batch in _batches(checkpoint, examples):
        targets, is_output = batch.targets()

        def add(name: str, metric: str, values: Tensor, is_output: Tensor = is_output) -> None:
            row = is_output.nonzero()[:, 0]
            zero = torch.zeros(len(is_output), dtype=torch.float64, device=values.device)
            sums.setdefault((name, metric), []).append(zero.index_add(0, row, values.double()).cpu())

        add("", "tokens", is_output[is_output])
        full, encoded = passes.full_prompt(batch, targets.shape[1])
        encoded_as = _kept_alone(checkpoint, batch)
        add("full", "nll", cross_entropy(full, targets, is_output))
        for k in [0, *ks]:
            batch.k = torch.full_like(batch.k, k)
            alone = _kept_alone(checkpoint, batch)
            if k and not torch.equal(alone, encoded_as):  # their prompts have other positions
                encoded_as = alone
                _, encoded = passes.full_prompt(batch, targets.shape[1])
            gist = passes.write(encoded, batch)[0] if k else None
            condition = Condition.GIST if k else Condition.NEGATIVE
            logits = passes.run_rest(batch, gist, condition, targets.shape[1])
            name = f"k={k}" if k else "none"
            add(name, "nll", cross_entropy(logits, targets, is_output))
            add(name, "kl", divergence(full, logits, is_output))
    return {key: torch.cat(parts) for key, parts in sums.items()}


def hash_weights(checkpoint: Checkpoint) -> str:
    """Hash of the reader's weights, without the adapter's. Under FSDP all processes must call."""
    named = sorted((name, tensor) for name, tensor in checkpoint.reader.named_parameters() if "lora_" not in name)
    return sha256(*(part.encode() for name, tensor in named for part in (name, _hash(whole(tensor)))))


def _hash(tensor: Tensor) -> str:
    data = tensor.cpu().contiguous().view(torch.uint8).numpy().tobytes()
    return sha256(f"{tensor.dtype} {[*tensor.shape]}".encode(), data)


def _kept_alone(checkpoint: Checkpoint, batch: Batch) -> Tensor:
    """bool [batch]: which rows' gists have no learned token."""
    return place(checkpoint, batch.prompt_parts, batch.k).learned == 0


def _batches(checkpoint: Checkpoint, examples: Examples) -> Iterator[Batch]:
    ordered = sorted(examples.examples, key=lambda example: example.tokens)
    for start in range(0, len(ordered), _BATCH):
        rows = ordered[start : start + _BATCH]
        yield collate(rows, [1] * len(rows), checkpoint.reader.device)
