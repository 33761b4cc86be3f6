"""Tiny random models in the original project's shape, and its mask and strings by the paper's words."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tiny import tiny_model, tiny_tokenizer
from tokenizers import AddedToken, Tokenizer, processors
from torch import Tensor
from transformers import LlamaTokenizer, PreTrainedModel, PreTrainedTokenizerFast

GIST = "<GIST>"
CASES = [
    ("Translate the text into French.", "good morning", "bonjour"),
    ("Name a colour that is warm.", "", "red"),
    ('Answer "yes" or "no",\nand say why.', "is it warm?\nsay so", "no"),
]
WITH_SPECIAL = ("Mind <GIST> and <s> and </s>.", "what is <GIST>?")


def byte_level() -> Any:
    """Byte-level BPE whose post-processor adds BOS, with no attribute that says so."""
    backend = Tokenizer.from_str(tiny_tokenizer(None, ("<s>",)).backend_tokenizer.to_str())
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", backend.token_to_id("<s>"))]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="<|im_end|>")


def sentencepiece_like() -> Any:
    """LLaMA's kind: words begin with a sign for the space, unknown characters fall back to bytes."""
    letters = "▁abcdefghijklmnopqrstuvwxyzIO:"
    merges = [("▁", "t"), ("t", "h"), ("i", "n"), ("u", "t"), ("▁", "I"), ("o", "n"), ("▁", "O")]
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *letters, *map("".join, merges)]
    vocab = {piece: index for index, piece in enumerate(pieces)}
    return LlamaTokenizer(vocab=vocab, merges=merges, legacy=True, add_bos_token=True)


def sentencepiece_like_that_strips() -> Any:
    """The same, with a gist token that drops the white space around it, as in the original LLaMA checkpoints."""
    tokenizer = sentencepiece_like()
    strips = AddedToken(GIST, special=True, normalized=False, lstrip=True, rstrip=True)
    tokenizer.add_special_tokens({"additional_special_tokens": [strips]})
    return tokenizer


TOKENIZERS: list[Callable[[], Any]] = [byte_level, sentencepiece_like, sentencepiece_like_that_strips]


def save_base(folder: Path, make: Callable[[], Any] = sentencepiece_like, **options: Any) -> PreTrainedModel:
    """A stock model before gist training: its vocabulary has no <GIST>."""
    tokenizer = make()
    rows = len(tokenizer) - (GIST in tokenizer.get_vocab())
    base = tiny_model("llama", vocab_size=rows, eos_token_id=tokenizer.eos_token_id, **options)
    base.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return base


def save_tuned(folder: Path, base: PreTrainedModel, make: Callable[[], Any] = sentencepiece_like) -> PreTrainedModel:
    """The base with a row for <GIST> and every weight moved a little, in the original project's shape."""
    tokenizer = make()
    tokenizer.add_special_tokens({"additional_special_tokens": [GIST]}, replace_extra_special_tokens=False)
    assert tokenizer.convert_tokens_to_ids(GIST) == len(tokenizer) - 1
    base.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    with torch.no_grad():
        for weight in base.parameters():
            weight += 0.01 * torch.randn_like(weight)
    base.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return base


def save_legacy(folder: Path, make: Callable[[], Any] = sentencepiece_like) -> Path:
    save_tuned(folder, save_base(folder / "unused", make), make)
    shutil.rmtree(folder / "unused")
    return folder


def save_difference(folder: Path) -> tuple[Path, Path, dict[str, Tensor]]:
    """(difference, base, the tuned weights), in subfolders."""
    base = save_base(folder / "base")
    before = {name: weight.clone() for name, weight in base.state_dict().items()}
    tuned = save_tuned(folder / "diff", base).state_dict()
    wanted = {name: weight.clone() for name, weight in tuned.items()}
    for name, weight in tuned.items():
        weight[: len(before[name])] -= before[name]
    base.save_pretrained(folder / "diff")
    return folder / "diff", folder / "base", wanted


def whole_text(instruction: str, text: str, gists: int) -> str:
    middle = f"Input: {text}\n" if text else ""
    return f"Instruction: {instruction}\n{GIST * gists}\n{middle}Output:"


def paper_mask(ids: list[int], gist: int) -> Tensor:
    """[S, S] by the paper's words: causal, and after the gist tokens nothing before them is seen."""
    first, last = ids.index(gist), len(ids) - 1 - ids[::-1].index(gist)
    rows = [
        [key <= query and not (query > last and key < first) for key in range(len(ids))] for query in range(len(ids))
    ]
    return torch.tensor(rows)


def one_pass(model: PreTrainedModel, ids: list[int], visible: Tensor) -> Tensor:
    """[S, vocabulary] log-probabilities of one pass over a whole sequence under a mask [S, S]."""
    mask = torch.where(visible, 0.0, torch.finfo(torch.float32).min)[None, None]
    with torch.no_grad():
        return model(torch.tensor([ids]), attention_mask=mask).logits[0].log_softmax(-1)


def scores(logs: Tensor, ids: list[int], last: int) -> Tensor:
    """[last] log-probabilities of the last ids."""
    return logs[-last - 1 : -1].gather(-1, torch.tensor(ids[-last:])[:, None])[:, 0]


def output_ids(tokenizer: Any, output: str) -> list[int]:
    return [*tokenizer(output, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]


def whole_ids(make: Callable[[], Any], instruction: str, text: str, gists: int) -> list[int]:
    """The prompt's ids as the tokenizer makes them from one string."""
    tokenizer = make()
    if GIST not in tokenizer.get_vocab():
        tokenizer.add_special_tokens({"additional_special_tokens": [GIST]})
    return list(tokenizer(whole_text(instruction, text, gists))["input_ids"])
