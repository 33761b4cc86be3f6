"""Reads and writes `gistlm.json`, and computes reader fingerprints; knows nothing of weights and loads no torch.

A *reader fingerprint* is a SHA-256 that tells whether keys and values made by one model mean the same to another.
Version 1 covers weights, tokenizer and prompt format; version 2 also the settings that change activations (`SETTINGS`).
Its versions are those of gist files, not of `gistlm.json`. Other fingerprints here are hashes of one part of it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from gistlm.errors import InputError, ModelError, ModelNotFoundError
from gistlm.files import sha256, write_atomically
from gistlm.options import Options, Text
from gistlm.prompt import PromptFormat

CONFIG = "gistlm.json"
EMBEDDINGS = "gist_embeddings.safetensors"
FIT_STRENGTHS, PROBES = "fitted", "observers"
"""Tensor names in `EMBEDDINGS` for fit strengths and probe embeddings; older names, kept because fingerprints hash
them."""
GIST_TOKEN = "<GIST>"
"""The original project's gist token, an entry of its vocabularies."""
VERSION = 2
MOST_KEPT = 1 << 16
"""Upper bound on `CheckpointConfig.kept`, against damaged files."""
_MAX_CONFIG_BYTES = 1 << 20

SETTINGS = frozenset({
    "model_type", "hidden_act", "hidden_activation", "activation_function", "dense_act_fn", "feed_forward_proj",
    "is_gated_act", "hidden_size", "n_embd", "d_model", "d_kv", "intermediate_size", "n_inner", "d_ff",
    "num_hidden_layers", "n_layer", "num_layers", "num_decoder_layers", "num_attention_heads", "n_head", "num_heads",
    "num_key_value_heads", "head_dim", "rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "attention_bias",
    "mlp_bias", "rope_parameters", "relative_attention_max_distance", "relative_attention_num_buckets",
    "sliding_window", "layer_types", "use_bidirectional_attention", "use_parallel_residual", "attn_logit_softcapping",
    "final_logit_softcapping", "query_pre_attn_scalar", "scale_attn_weights", "scale_attn_by_inverse_layer_idx",
    "scale_decoder_outputs", "tie_word_embeddings",
})  # fmt: skip
"""Fields of transformers' configurations that change activations; a test sorts every field of the tested families."""

HARMLESS = frozenset({
    # of every configuration
    "_name_or_path", "architectures", "chunk_size_feed_forward", "dtype", "id2label", "is_encoder_decoder", "label2id",
    "output_attentions", "output_hidden_states", "problem_type", "return_dict", "transformers_version",
    # training, generation and heads that gists do not use
    "attention_dropout", "attn_pdrop", "bos_token_id", "classifier_dropout", "decoder_start_token_id", "dropout_rate",
    "embd_pdrop", "eos_token_id", "hidden_dropout", "initializer_factor", "initializer_range", "is_decoder",
    "pad_token_id", "resid_pdrop", "summary_activation", "summary_first_dropout", "summary_proj_to_labels",
    "summary_type", "summary_use_proj", "use_cache", "add_cross_attention",
    # sizes that the weights have, limits, and how the same is computed
    "vocab_size", "max_position_embeddings", "n_positions", "original_max_position_embeddings", "pretraining_tp",
    "reorder_and_upcast_attn",
    # resolved into layer_types
    "_sliding_window_pattern", "max_window_layers", "use_sliding_window",
})  # fmt: skip
"""Fields of transformers' configurations that do not change activations."""
SORTED = frozenset({
    "llama", "mistral", "qwen2", "qwen3", "gemma3_text", "gpt_neox", "phi3", "gpt2", "t5", "mt5", "umt5",
})  # fmt: skip
"""Families whose every field is in `SETTINGS` or `HARMLESS`: newer fields of theirs do not count until sorted."""


class Recipe(StrEnum):
    """How a checkpoint was trained."""

    FROZEN = "frozen"
    """The base stays bit-identical; only gist tokens pass through the adapter."""
    PAPER = "paper"
    """The whole model, or a LoRA merged into it, was fine-tuned under the gist mask."""


class Base(Options):
    """A base model that an adapter fits."""

    base: Text
    """Where it is: a folder, a hub id or a package file; "." if it is in the checkpoint's folder."""
    weights: str
    """Fingerprint of its weights (`loading.fingerprint_weights`)."""
    settings: str = ""
    """Fingerprint of its settings (`settings_fingerprint`); empty in version 1 of `gistlm.json`."""


class Range(Options):
    """Whole numbers from ``least`` to ``most``."""

    least: Annotated[int, Field(ge=1)] = 1
    most: Annotated[int, Field(ge=1)]


class CheckpointConfig(Options):
    """The content of `gistlm.json`, without the prompt format."""

    name: str
    """Name that is shown to people."""
    recipe: Annotated[Recipe, Field(strict=False)]
    bases: Annotated[list[Base], Field(min_length=1)]
    """The base that the adapter was made for, then others that it is known to fit. Their gists are not interchangeable.
    In memory the first is the base in use."""
    anchored: bool = False
    """Whether a prompt token's embedding is added to each gist token's own (`embeddings.anchor_ids`)."""
    kept: Annotated[int, Field(ge=0, le=MOST_KEPT)] = 0
    """Maximum number of kept tokens in a gist, after its learned ones (`kept_tokens`)."""
    k: Range | None = None
    """Allowed gist lengths, learned and kept tokens together; null: from 1 to learned + kept."""

    @property
    def base(self) -> str:
        """Where the first of ``bases`` is."""
        return self.bases[0].base


def write_config(folder: Path, config: CheckpointConfig, prompt_format: PromptFormat) -> None:
    """Write `gistlm.json` atomically."""
    record = {"version": VERSION, **config.model_dump(mode="json"), "prompt_format": prompt_format.to_dict()}
    write_atomically(folder / CONFIG, (json.dumps(record, indent=2, ensure_ascii=False) + "\n").encode())


def read_config(folder: Path) -> tuple[CheckpointConfig, PromptFormat]:
    """Read a folder's `gistlm.json`. Raises `ModelNotFoundError` if there is none, `ModelError` if it is damaged."""
    path = folder / CONFIG
    if not path.is_file():
        raise ModelNotFoundError(f"{folder} is not a gist checkpoint: it has no {CONFIG}")
    try:
        if path.stat().st_size > _MAX_CONFIG_BYTES:
            raise ModelError(f"{path} has {path.stat().st_size:,} bytes; {_MAX_CONFIG_BYTES:,} are allowed")
        record = json.loads(path.read_text(encoding="utf-8"))
        version = record.pop("version")
        if version not in (1, VERSION) or isinstance(version, bool):
            raise ModelError(
                f"{path} has checkpoint version {version!r}; this gistlm reads versions 1 and {VERSION}, so upgrade it"
            )
        prompt_format = PromptFormat.from_dict(record.pop("prompt_format"))
        if version == 1:
            record["bases"] = [{"base": record.pop("base"), "weights": record.pop("base_fingerprint")}]
        config = CheckpointConfig.parse(record)
        json.dumps(record, ensure_ascii=False).encode()  # raises if a string holds a lone surrogate
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, InputError) as error:
        raise ModelError(f"{path} is damaged: {error}") from error
    return config, prompt_format


def settings_fingerprint(configuration: Mapping[str, Any]) -> str:
    """SHA-256 of those values of a configuration that change activations; null ones are skipped.

    Of families that are not `SORTED` every field counts that is not known to be harmless.
    """
    is_sorted = configuration.get("model_type") in SORTED
    found = {
        name: value
        for name, value in configuration.items()
        if value is not None and (name in SETTINGS if is_sorted else name not in HARMLESS)
    }
    return sha256(json.dumps(found, sort_keys=True, default=str).encode())


def reader_fingerprints(
    base: Base, tuned: str, vocabulary: Mapping[str, int], prompt_format: PromptFormat
) -> dict[int, str]:
    """Reader fingerprints by version of the gist files that hold them.

    tuned: under `paper` the fingerprint of what writes the gist, which is the same model; else empty. vocabulary: token
    ids by token. There is no version 2 if the settings of ``base`` are unknown.
    """
    others = [
        tuned.encode(),
        sha256(*(f"{token} {index}".encode() for token, index in sorted(vocabulary.items()))).encode(),
        json.dumps(prompt_format.to_dict(), sort_keys=True).encode(),
    ]
    found = {1: sha256(base.weights.encode(), *others)}
    return found | ({2: sha256(b"2", base.weights.encode(), base.settings.encode(), *others)} if base.settings else {})
