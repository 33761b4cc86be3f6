"""Tiny random models, a tokenizer and checkpoints, made in code and the same every time; nothing is downloaded."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, PreTrainedModel, PreTrainedTokenizerFast

from gistlm.models.adapter import LoraModules, adapter_weights, add_lora
from gistlm.models.checkpoint import Checkpoint, CheckpointOptions, describe_base
from gistlm.models.config import CheckpointConfig, Recipe
from gistlm.models.embeddings import initial_embeddings
from gistlm.models.loading import fingerprint_weights
from gistlm.prompt import PromptFormat, PromptTokenizer, default_format

if TYPE_CHECKING:
    from gistlm.engines.base import Request
    from gistlm.engines.layout import Prepared
    from gistlm.engines.transformers import GistModel

CONTEXT = 512
WINDOW = 16

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_MERGES = "t h|h e|i n|e r|a n|o n|r e|e n|a t|o u|o r|i s|Ġ t|Ġ a|Ġ s|Ġt he|Ġa n|Ġan d|Ġ in|in g|Ġ o|Ġo f"

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
"""Every architecture that `gistlm.models.architecture.TESTED` promises: its config class and options."""

_EXPERTS = {"num_local_experts": 4, "num_experts": 4, "num_experts_per_tok": 2}
_OPT_SIZES = {
    "hidden_size": 32,
    "word_embed_proj_dim": 32,
    "ffn_dim": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": CONTEXT,
    "init_std": 0.15,
}
PROBED: dict[str, tuple[str, dict[str, Any]]] = {
    "olmo2": ("Olmo2Config", _SIZES),
    "stablelm": ("StableLmConfig", _SIZES),
    "mixtral": ("MixtralConfig", {**_SIZES, **_EXPERTS}),
    "cohere2": ("Cohere2Config", {**_SIZES, "num_hidden_layers": 4, "sliding_window": WINDOW, "layer_types": _MIXED}),
    "gpt_oss": ("GptOssConfig", {**_SIZES, **_EXPERTS, "sliding_window": WINDOW}),
    "ministral3": ("Ministral3Config", {**_SIZES, "sliding_window": None}),
    "gpt_bigcode": ("GPTBigCodeConfig", _GPT2_SIZES),
    "opt": ("OPTConfig", _OPT_SIZES),
    "gptj": ("GPTJConfig", {**_GPT2_SIZES, "rotary_dim": 4}),
    "codegen": ("CodeGenConfig", {**_GPT2_SIZES, "rotary_dim": 4}),
}
"""Architectures that no table lists and that the probe must describe rightly."""

_T5GEMMA_STACK: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "vocab_size": 300,
}

REFUSED: dict[str, tuple[str, dict[str, Any]]] = {
    "bloom": ("BloomConfig", {"hidden_size": 32, "n_layer": 2, "n_head": 4}),
    "mpt": ("MptConfig", {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": CONTEXT}),
    "mamba": ("MambaConfig", {"hidden_size": 32, "num_hidden_layers": 2}),
    "longt5": ("LongT5Config", {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}),
    "t5gemma": ("T5GemmaConfig", {"encoder": _T5GEMMA_STACK, "decoder": _T5GEMMA_STACK}),
    "bart": (
        "BartConfig",
        {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32},
    ),
    "llama_dynamic": ("LlamaConfig", {**_SIZES, "rope_parameters": {**_ROPE, "rope_type": "dynamic", "factor": 2.0}}),
    "phi3_longrope": (
        "Phi3Config",
        {
            **_SIZES,
            "original_max_position_embeddings": 64,
            "rope_parameters": {
                **_ROPE,
                "rope_type": "longrope",
                "short_factor": [1.0] * 4,
                "long_factor": [2.0] * 4,
            },
        },
    ),
    "lfm2": ("Lfm2Config", {**_SIZES, "layer_types": ["conv", "full_attention"]}),
    "jamba": (
        "JambaConfig",
        {**_SIZES, **_EXPERTS, "num_hidden_layers": 4, "attn_layer_period": 2, "attn_layer_offset": 1},
    ),
    "llama4_text": (
        "Llama4TextConfig",
        {**_SIZES, **_EXPERTS, "intermediate_size_mlp": 64, "num_hidden_layers": 4, "attention_chunk_size": 16},
    ),
    "gpt_neo": (
        "GPTNeoConfig",
        {
            "hidden_size": 32,
            "num_layers": 2,
            "num_heads": 4,
            "attention_types": [[["global", "local"], 1]],
            "window_size": WINDOW,
            "max_position_embeddings": CONTEXT,
        },
    ),
    "openai": ("OpenAIGPTConfig", _GPT2_SIZES),
}
"""Architectures that cannot be gisted exactly."""


_T5_SIZES: dict[str, Any] = {
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 64,
    "num_layers": 3,
    "num_decoder_layers": 2,
    "num_heads": 4,
    "relative_attention_num_buckets": 16,
    "relative_attention_max_distance": 40,
    "decoder_start_token_id": 5,
    "dropout_rate": 0.0,
}
ENCODER_DECODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "t5": ("T5Config", _T5_SIZES),
    "mt5": ("MT5Config", _T5_SIZES),
    "umt5": ("UMT5Config", _T5_SIZES),
}


def tiny_model(kind: str, seed: int = 0, **options: Any) -> PreTrainedModel:
    """A random float32 model in eval mode; ``options`` replace fields of its config."""
    config_class, fixed = (TESTED | PROBED | REFUSED | ENCODER_DECODERS)[kind]
    tokens = {"vocab_size": len(tiny_tokenizer()), "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 2}
    config = getattr(transformers, config_class)(**{**tokens, **fixed, **options})
    auto = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model: PreTrainedModel = auto.from_config(config).float().eval()
        if kind in ENCODER_DECODERS:  # T5's own start is too tame for a wrong mask to show
            for name, weight in model.named_parameters():
                if "layer_norm" not in name:
                    weight.data = torch.randn_like(weight) * (1.5 if "relative_attention_bias" in name else 0.15)
    return model


@cache
def tiny_tokenizer(template: str | None = CHATML, more_special: tuple[str, ...] = ()) -> PreTrainedTokenizerFast:
    """A byte-level BPE of a few merges, with special tokens and a chat template."""
    special = [*SPECIAL_TOKENS, *more_special]
    merges = [(first, second) for first, second in (pair.split() for pair in _MERGES.split("|"))]
    pieces = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet()), *("".join(pair) for pair in merges)]
    backend = Tokenizer(models.BPE({piece: index for index, piece in enumerate(pieces)}, merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=special[0],
        eos_token=special[2],
        pad_token=special[0],
        additional_special_tokens=special,
    )
    tokenizer.chat_template = template
    return tokenizer


def tiny_checkpoint(
    kind: str = "llama",
    recipe: Recipe | str = Recipe.FROZEN,
    opening_visible: bool = True,
    max_k: int = 16,
    lora_rank: int = 4,
    anchored: bool = False,
    lora_modules: LoraModules = LoraModules.ALL,
    kept: int = 0,
) -> Checkpoint:
    """A checkpoint in memory. A frozen one's LoRA is random, as after training: it changes what gist tokens do."""
    reader = tiny_model(kind)
    own = default_format(tiny_tokenizer(), kind in ENCODER_DECODERS)
    prompt_format = PromptFormat(**{**own.to_dict(), "opening_visible": opening_visible})
    frozen = recipe == Recipe.FROZEN
    writer = shake(add_lora(reader, lora_rank, share=True, modules=lora_modules)) if frozen else reader
    return Checkpoint(
        CheckpointConfig(
            name=f"tiny-{kind}",
            recipe=Recipe(recipe),
            bases=[describe_base(f"tiny-{kind}", reader, fingerprint_weights(dict(reader.named_parameters())))],
            anchored=anchored,
            kept=kept,
        ),
        reader,
        writer,
        initial_embeddings(reader, max_k - kept, 1, anchored=False),
        PromptTokenizer(tiny_tokenizer(), prompt_format),
    )


def shake(writer: torch.nn.Module, seed: int = 2) -> torch.nn.Module:
    """Give a fresh LoRA's tensors noise: half of them are zero, so that it would do nothing."""
    generator = torch.Generator().manual_seed(seed)
    for _, tensor in sorted(adapter_weights(writer).items()):
        noise = torch.randn(tensor.shape, generator=generator)
        tensor.data = (0.1 * noise).to(tensor.dtype)
    return writer


def save_tiny(folder: str | Path, kind: str = "llama", **options: Any) -> Path:
    """Write a tiny stock model and its tokenizer as a transformers folder: a base to train on or to load."""
    folder = Path(folder)
    tiny_model(kind, **options).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def save_tiny_checkpoint(folder: str | Path, kind: str = "llama", recipe: Recipe | str = Recipe.FROZEN) -> Path:
    """Write a gist checkpoint that `GistModel.from_pretrained` loads; a frozen one's base goes to FOLDER/base."""
    folder = Path(folder)
    base = save_tiny(folder / "base", kind)
    made = Checkpoint.create(
        str(base), CheckpointOptions(Recipe(recipe), max_k=16, lora_rank=4 if recipe == Recipe.FROZEN else None)
    )
    if recipe == Recipe.FROZEN:
        shake(made.writer)
    return made.save_pretrained(folder)


def random_text(generator: torch.Generator, length: int) -> str:
    """Lower-case words with spaces between them, ``length`` characters in all."""
    letters = torch.randint(0, 32, (length,), generator=generator).tolist()
    text = "".join("abcdefghijklmnopqrstuvwxyz      "[letter] for letter in letters)
    return "x" + text[1:-1] + "y" if length > 1 else "x"


def prepared_batch(model: GistModel, requests: list[Request], room: int = 0) -> Prepared:
    """Requests as one batch, with ``room`` for tokens to come."""
    return model._layout.prepare([model._row(request, room=room) for request in requests])
