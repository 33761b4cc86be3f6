"""What the versions of transformers name differently; knows no model."""

from __future__ import annotations

import inspect

from transformers import GenerationMixin

CACHE = (
    "cache"
    if "cache" in inspect.signature(GenerationMixin.prepare_inputs_for_generation).parameters
    else "past_key_values"
)
"""The keyword by which models and `generate` take a cache, and the field in which outputs hold it; the short name from
transformers 5.24 on."""
