"""How well gists keep the prompt during a run: held-out rows under gist, full prompt and no prompt.

It is the run's own thermometer; the figures that are published come from `gistlm.evaluation`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from gistlm.base import fingerprint_weights
from gistlm.checkpoint import Checkpoint
from gistlm.compress import KeyValues, encode_opening, write_gists
from gistlm.files import sha256, write_atomically
from gistlm.mask import Condition
from gistlm.training.batches import Examples, collate
from gistlm.training.config import TrainConfig
from gistlm.training.objectives import Batch, cross_entropy, divergence, full_prompt_logits, rest_logits

_BATCH = 8


class Validation(TrainerCallback):
    """Measures the held-out rows at every save and keeps the history in the run's folder."""

    def __init__(self, checkpoint: Checkpoint, examples: Examples, config: TrainConfig) -> None:
        self.checkpoint = checkpoint
        self.examples = examples
        self.ks = [config.fixed_k] if config.fixed_k else sorted({1, min(4, config.max_k), config.max_k})
        self.path = Path(config.output) / "run" / "validation.json"
        self.history: list[dict[str, Any]] = json.loads(self.path.read_text()) if self.path.exists() else []
        self._base = hash_weights(checkpoint)

    def base_unchanged(self) -> bool:
        """Whether every weight of the reader still hashes as it did before training."""
        return hash_weights(self.checkpoint) == self._base

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Trainer's hook."""
        if not len(self.examples):
            return
        measured = {"step": state.global_step, **measure(self.checkpoint, self.examples, self.ks)}
        self.history = [entry for entry in self.history if entry["step"] < state.global_step] + [measured]
        write_atomically(self.path, json.dumps(self.history, indent=1).encode())


@torch.no_grad()
def measure(checkpoint: Checkpoint, examples: Examples, ks: list[int]) -> dict[str, Any]:
    """Mean over output tokens of the negative log-likelihood (nats) and of the KL divergence to the full prompt.

    Returns {"full": {"nll": ...}, "none": {"nll", "kl"}, "k=4": {"nll", "kl", "nll_gap_closed", "kl_gap_closed"}}.
    """
    totals: dict[str, dict[str, float]] = {}
    tokens = 0.0
    opening = encode_opening(checkpoint)
    for batch in _batches(checkpoint, examples):
        targets, weights = batch.targets(0.0)
        last, count = targets.shape[1], float(weights.sum())
        tokens += count
        full, encoded = full_prompt_logits(checkpoint, batch, last)
        _add(totals, "full", count, nll=cross_entropy(full, targets, weights))
        gist = write_gists(checkpoint, encoded, max(ks))
        for k in [0, *ks]:
            batch.k = torch.full_like(batch.k, k)
            shown: KeyValues | None = [(keys[:, :, :k], values[:, :, :k]) for keys, values in gist] if k else None
            condition = Condition.GIST if k else Condition.NEGATIVE
            logits = rest_logits(checkpoint, batch, opening, shown, condition, last)
            kl = divergence(full, logits, weights)
            _add(totals, f"k={k}" if k else "none", count, nll=cross_entropy(logits, targets, weights), kl=kl)
    means = {name: {key: total / tokens for key, total in values.items()} for name, values in totals.items()}
    for name, values in means.items():
        if name.startswith("k="):
            lost, none = means["none"]["nll"] - means["full"]["nll"], means["none"]
            values["nll_gap_closed"] = (none["nll"] - values["nll"]) / lost if lost else 0.0
            values["kl_gap_closed"] = 1 - values["kl"] / none["kl"] if none["kl"] else 0.0
    return {"rows": len(examples), "tokens": int(tokens), **means}


def hash_weights(checkpoint: Checkpoint) -> str:
    """Every byte of the reader's weights, the adapter's left out."""
    base = {name: tensor for name, tensor in checkpoint.reader.named_parameters() if "lora_" not in name}
    whole = (
        tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes() for _, tensor in sorted(base.items())
    )
    return sha256(fingerprint_weights(base).encode(), *whole)


def _batches(checkpoint: Checkpoint, examples: Examples) -> Iterator[Batch]:
    ordered = sorted(examples.examples, key=lambda example: example.tokens)
    for start in range(0, len(ordered), _BATCH):
        rows = ordered[start : start + _BATCH]
        yield collate(rows, [1] * len(rows), checkpoint.reader.device)


def _add(totals: dict[str, dict[str, float]], name: str, count: float, **means: torch.Tensor) -> None:
    values = totals.setdefault(name, {})
    for key, mean in means.items():
        values[key] = values.get(key, 0.0) + float(mean) * count
