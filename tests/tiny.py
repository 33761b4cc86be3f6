"""Tiny random models, a tokenizer and checkpoints, made in code and the same every time; nothing is downloaded."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from gistlm.base import fingerprint_weights
from gistlm.checkpoint import (
    Checkpoint,
    CheckpointConfig,
    Recipe,
    adapter_weights,
    add_lora,
    initial_embeddings,
)
from gistlm.prompt import PromptFormat, PromptTokenizer, chat_format

CONTEXT = 512
WINDOW = 16

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_MERGES = "th he in er an on re en at ou or is it st es ar Ġt Ġa Ġs Ġthe Ġan Ġand Ġin ing Ġo Ġof"

_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
_SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": CONTEXT,
    "initializer_range": 0.15,
    "tie_word_embeddings": False,
}
_GPT2_SIZES: dict[str, Any] = {
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_positions": CONTEXT,
    "initializer_range": 0.15,
}
_MIXED = ["sliding_attention", "full_attention", "sliding_attention", "full_attention"]

TESTED: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", _SIZES),
    "qwen2": ("Qwen2Config", _SIZES),
    "qwen3": ("Qwen3Config", _SIZES),
    "mistral": ("MistralConfig", {**_SIZES, "sliding_window": WINDOW}),
    "gemma3_text": (
        "Gemma3TextConfig",
        {
            **_SIZES,
            "num_hidden_layers": 4,
            "sliding_window": WINDOW,
            "layer_types": _MIXED,
            "query_pre_attn_scalar": 8,
        },
    ),
    "gpt_neox": ("GPTNeoXConfig", {**_SIZES, "rotary_pct": 0.5}),
    "phi3": ("Phi3Config", {**_SIZES, "sliding_window": None}),
    "gpt2": ("GPT2Config", _GPT2_SIZES),
}
"""Every architecture that `gistlm.architecture.TESTED` promises: its config class and options."""
