"""What an architecture allows: numbering, sliding windows, and the reason where gisting could not be exact.

Knows configurations and stock models only; nothing of gists, files or text.
"""

from __future__ import annotations

import inspect
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import DynamicCache

from gistlm.errors import UnsupportedModelError
from gistlm.gisting.mask import additive, decoder_mask
from gistlm.gisting.placement import Condition, Part
from gistlm.models.transformers_compat import CACHE

Numbering = Literal["relative", "absolute"]

TESTED: dict[str, Numbering] = {
    "llama": "relative",
    "mistral": "relative",
    "qwen2": "relative",
    "qwen3": "relative",
    "gemma3_text": "relative",
    "gpt_neox": "relative",
    "phi3": "relative",
    "gpt2": "absolute",
}
"""Architectures whose exactness is tested, by model_type; any other is probed when it is loaded."""

ENCODER_DECODERS = ("t5", "mt5", "umt5")
"""Encoder-decoder architectures whose exactness is tested; no other is taken."""

_LAYERS = {"full_attention", "sliding_attention"}
_PROBE_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Architecture:
    """What the rest of the package needs to know of a model."""

    name: str
    numbering: Numbering
    """Relative: the gist sits at fixed positions and the prompt before it, below zero if need be.
    Absolute: the paper's numbering from zero, prompt first."""
    layer_types: frozenset[str]
    window: int | None
    """Tokens a sliding-attention layer looks back, itself included."""
    context: int
    """Maximum number of tokens in a sequence."""
    layers: int
    """Of the decoder, or of the encoder where there is one: those that a gist has keys and values of."""
    encodes: bool = False
    """Whether prompts go through an encoder."""

    def masks(
        self, parts: Tensor, positions: Tensor, queries: int, dtype: torch.dtype, condition: Condition = Condition.GIST
    ) -> Tensor | dict[str, Tensor]:
        """The additive 4D mask of the last ``queries`` columns, as stock models take it.

        parts, positions: [batch, S] as in `mask.decoder_mask`. Returns [batch, 1, queries, S], or a dict of
        them by layer type for models that mix layer types.
        """
        by_type = {
            kind: additive(
                decoder_mask(parts, positions, condition, self.window if kind == "sliding_attention" else None)[
                    :, -queries:
                ],
                dtype,
            )
            for kind in self.layer_types
        }
        return by_type if len(by_type) > 1 else next(iter(by_type.values()))


def inspect_architecture(model: Any) -> Architecture:
    """Describe a stock model; raises `UnsupportedModelError` with the reason if it cannot be exact."""
    if model.config.is_encoder_decoder:
        return _inspect_encoder_decoder(model.config)
    config = model.config.get_text_config(decoder=True)
    name = config.model_type
    _refuse_unless_exact(name, config, model)
    window = getattr(config, "sliding_window", None)
    if getattr(config, "use_sliding_window", True) is False:
        window = None
    layer_types = frozenset(
        getattr(config, "layer_types", None) or ["sliding_attention" if window else "full_attention"]
    )
    context = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None) or 1 << 20
    found = Architecture(name, TESTED.get(name, "relative"), layer_types, window, context, config.num_hidden_layers)
    return found if name in TESTED else _probe(model, found)


def _inspect_encoder_decoder(config: Any) -> Architecture:
    """T5's numbering counts differences only, and its length has no bound but memory."""
    if config.model_type not in ENCODER_DECODERS:
        raise UnsupportedModelError(
            f"the architecture {config.model_type!r} cannot be gisted exactly: of encoder-decoder models only those "
            f"with T5's encoder, whose attention is full and knows distances alone, are handled: "
            f"{', '.join(ENCODER_DECODERS)}"
        )
    full = frozenset({"full_attention"})
    return Architecture(config.model_type, "relative", full, None, 1 << 20, config.num_layers, encodes=True)


def _refuse_unless_exact(name: str, config: Any, model: Any) -> None:
    reason = None
    others = set(getattr(config, "layer_types", None) or []) - _LAYERS
    length_dependent = _rope_types(config) & {"dynamic", "longrope"}
    if others:
        reason = f"its {', '.join(sorted(others))} layers keep a state that cannot be cut at the gist tokens"
    elif length_dependent:
        reason = f"its {length_dependent.pop()} rotary embedding changes with the sequence's length"
    elif name in ("bloom", "mpt") or getattr(config, "alibi", False):
        reason = "its ALiBi biases are numbered by column and take no position_ids"
    elif "local" in (getattr(config, "attention_layers", None) or []):
        reason = "its local attention counts columns, not positions"
    elif {CACHE, "position_ids"} - set(inspect.signature(model.forward).parameters):
        reason = "its forward takes no cache and position_ids"
    if reason:
        raise UnsupportedModelError(f"the architecture {name!r} cannot be gisted exactly: {reason}")


def _rope_types(config: Any) -> set[str]:
    parameters = getattr(config, "rope_parameters", None) or {}
    nested = [value for value in parameters.values() if isinstance(value, dict)] or [parameters]
    return {str(value.get("rope_type", "default")) for value in nested}


@torch.inference_mode()
def _probe(model: Any, guess: Architecture) -> Architecture:
    """Try an architecture that no test covers: its numbering by shifts, its exactness by three passes against one."""
    tolerance = _PROBE_TOLERANCE * (1 if model.dtype == torch.float32 else 50)
    try:
        found = replace(guess, numbering="relative" if _only_differences_count(model, tolerance) else "absolute")
        error = _three_passes_against_one(model, found)
    except Exception as problem:
        raise UnsupportedModelError(
            f"the architecture {guess.name!r} cannot be gisted: a trial run failed with "
            f"{type(problem).__name__}: {problem}"
        ) from problem
    if not error < tolerance:
        raise UnsupportedModelError(
            f"the architecture {guess.name!r} cannot be gisted exactly: in a trial run the cached gist gave other "
            f"logits than the gist mask (relative difference {error:.1e})"
        )
    return found


_TRIAL = (7, 2, 5)
"""Tokens of prompt, gist and rest in a trial run."""


def _trial_ids(model: Any) -> Tensor:
    vocabulary = int(model.config.get_text_config().vocab_size)
    return torch.arange(3, 3 + sum(_TRIAL), device=model.device)[None] % vocabulary


def _only_differences_count(model: Any, tolerance: float) -> bool:
    """Whether positions may be shifted, also below zero, where a table of positions has nothing or wraps around."""
    try:
        return all(_difference(_logits(model, 0), _logits(model, first)) < tolerance for first in (16, -_TRIAL[0]))
    except (IndexError, RuntimeError):
        return False


def _logits(model: Any, first: int) -> Tensor:
    ids = _trial_ids(model)
    positions = torch.arange(first, first + ids.shape[1], device=ids.device)[None]
    logits: Tensor = model(ids, position_ids=positions).logits
    return logits


def _three_passes_against_one(model: Any, architecture: Architecture) -> float:
    """The rest's logits through a cached gist against those under the mask."""
    n, k, r = _TRIAL
    ids = _trial_ids(model)
    parts = torch.tensor([[Part.PROMPT] * n + [Part.GIST] * k + [Part.REST] * r], device=ids.device)
    first = -n if architecture.numbering == "relative" else 0
    positions = torch.arange(first, first + n + k + r, device=ids.device)[None]
    masks = architecture.masks(parts, positions, n + k + r, model.dtype)
    one = model(ids, attention_mask=masks, position_ids=positions).logits[:, n + k :]

    cache = DynamicCache()
    model(ids[:, : n + k], position_ids=positions[:, : n + k], **{CACHE: cache})
    gist = DynamicCache([(keys[:, :, n:], values[:, :, n:]) for keys, values, _ in cache])
    masks = architecture.masks(parts[:, n:], positions[:, n:], r, model.dtype)
    three = model(ids[:, n + k :], attention_mask=masks, position_ids=positions[:, n + k :], **{CACHE: gist}).logits
    return _difference(one, three)


def _difference(one: Tensor, other: Tensor) -> float:
    """Largest difference relative to the spread of the values."""
    return float((one - other).float().abs().max() / one.float().std().clamp_min(1e-6))
