"""Four ways to answer the same inputs behind prompts of the same length; knows nothing of clocks or tables.

full_prompt    plain transformers: prompt and input are encoded for every request
cached_prompt  plain transformers: the prompt's KV cache is kept, the input is encoded
gist           gistlm: opening and gist are kept, the input is encoded
same_tokens    plain transformers over a kept cache as long as opening and gist: the floor for `gist`

All take text and return text, and every answer has exactly as many tokens as were asked for.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from transformers import DynamicCache, GenerationConfig

from gistlm.engines.base import Request, with_sampling
from gistlm.engines.sampling import Sampling
from gistlm.engines.transformers import GistModel
from gistlm.errors import InputError
from gistlm.gist import Gist
from gistlm.gisting.kv_cache import KeyValues, key_values_of
from gistlm.models.checkpoint import Checkpoint
from gistlm.models.transformers_compat import CACHE

FULL_PROMPT, CACHED_PROMPT, GIST, SAME_TOKENS = "full_prompt", "cached_prompt", "gist", "same_tokens"

_TEXT = (
    "the of and to in is that for it as was with be by on not he his but at are this have from or had an they "
    "which one you were all her she there would their we him been has when who will no more if out so up said "
    "what its about than into them can only other time new some could these two may first then do any like my "
    "now over such our man me even most made after also did many off before must well back through years much "
    "where your way down should because long each just state those people too mr how little good world make"
)
WORDS = _TEXT.split()


class FullLengthModel(GistModel):
    """A `GistModel` whose answers never end early, and whose batches have as many tokens as they are given."""

    def __init__(self, checkpoint: Checkpoint, batch_size: int = 32) -> None:
        super().__init__(checkpoint, batch_size, batch_tokens=sys.maxsize)

    def _generation_config(self, max_new_tokens: int) -> GenerationConfig:
        config = super()._generation_config(max_new_tokens)
        config.min_new_tokens = max_new_tokens
        return config


@dataclass(frozen=True)
class Workload:
    """A batch of requests; every prompt is another text of the same length."""

    prompts: list[str]
    inputs: list[str]

    def __len__(self) -> int:
        return len(self.prompts)


class Way(Protocol):
    """One way to answer a workload."""

    cache_bytes: int
    """Kept between requests, for all prompts of the workload."""

    def answer(self, new_tokens: int) -> list[str]:
        """Answers of exactly ``new_tokens`` tokens."""


class FullPrompt:
    """Everything is encoded anew."""

    cache_bytes = 0

    def __init__(self, checkpoint: Checkpoint, workload: Workload) -> None:
        self.checkpoint, self.workload = checkpoint, workload

    def answer(self, new_tokens: int) -> list[str]:
        prompts = self.checkpoint.prompts
        pairs = zip(self.workload.prompts, self.workload.inputs, strict=True)
        ids = [prompts.prompt_ids(prompt) + prompts.rest_ids(text) for prompt, text in pairs]
        return _plain_answers(self.checkpoint, ids, None, new_tokens)


class CachedPrefix:
    """The prompts' first tokens are kept as a KV cache; all of them when ``tokens`` is None."""

    def __init__(self, checkpoint: Checkpoint, workload: Workload, tokens: int | None = None) -> None:
        self.checkpoint, self.workload = checkpoint, workload
        self.prefixes = [checkpoint.prompts.prompt_ids(prompt)[:tokens] for prompt in workload.prompts]
        self.cached = prefill(checkpoint, torch.tensor(self.prefixes, device=checkpoint.reader.device))
        self.cache_bytes = sum(keys.nbytes + values.nbytes for keys, values in self.cached)

    def answer(self, new_tokens: int) -> list[str]:
        pairs = zip(self.prefixes, self.workload.inputs, strict=True)
        ids = [prefix + self.checkpoint.prompts.rest_ids(text) for prefix, text in pairs]
        return _plain_answers(self.checkpoint, ids, self.cached, new_tokens)


class Gists:
    """Opening and gist are kept."""

    def __init__(self, model: GistModel, workload: Workload, gists: list[Gist]) -> None:
        self.model = model
        self.cache_bytes = sum(gist.nbytes for gist in gists)
        self.requests = [Request(text, gist) for text, gist in zip(workload.inputs, gists, strict=True)]

    def answer(self, new_tokens: int) -> list[str]:
        completions = self.model.complete(with_sampling(self.requests, Sampling(max_new_tokens=new_tokens)))
        return [completion.text for completion in completions]


def all_ways(model: GistModel, workload: Workload, k: int) -> dict[str, Way]:
    """The four conditions over one workload, their caches filled."""
    checkpoint = model.checkpoint
    return {
        FULL_PROMPT: FullPrompt(checkpoint, workload),
        CACHED_PROMPT: CachedPrefix(checkpoint, workload),
        GIST: Gists(model, workload, model.compress(workload.prompts, k)),
        SAME_TOKENS: CachedPrefix(checkpoint, workload, checkpoint.placement.opening + k),
    }


def make_workload(checkpoint: Checkpoint, lengths: tuple[int, int], batch: int, seed: int) -> Workload:
    """Random words. lengths: tokens of a prompt and of an input, with what the template puts around them."""
    prompts, (prompt_tokens, input_tokens) = checkpoint.prompts, lengths
    draws = [random.Random(f"{seed} {row}") for row in range(batch)]
    return Workload(
        [fit_text(draw, prompt_tokens, lambda text: len(prompts.prompt_ids(text))) for draw in draws],
        [fit_text(draw, input_tokens, lambda text: len(prompts.rest_ids(text))) for draw in draws],
    )


def fit_text(draw: random.Random, tokens: int, count: Callable[[str], int]) -> str:
    """Random words of which ``count`` says exactly ``tokens``. Raises `InputError` when there is no such text."""
    text = " ".join(draw.choices(WORDS, k=tokens + 1))
    low, high = 1, len(text)
    while low < high:  # the longest beginning that is not too long; count hardly ever falls as the text grows
        middle = (low + high + 1) // 2
        low, high = (middle, high) if count(text[:middle]) <= tokens else (low, middle - 1)
    for end in range(low, max(0, low - 32), -1):
        if count(text[:end]) == tokens:
            return text[:end]
    raise InputError(f"no text has {tokens} tokens in this format; its template alone has about {count(text[:1]) - 1}")


def prefill(checkpoint: Checkpoint, ids: Tensor) -> KeyValues:
    """Plain transformers over ids [batch, tokens]: keys and values, as before the first token of an answer."""
    cache = DynamicCache()
    with torch.no_grad():
        checkpoint.reader(ids, **{CACHE: cache}, use_cache=True, logits_to_keep=1)
    return key_values_of(cache)


def _plain_answers(
    checkpoint: Checkpoint, ids: list[list[int]], cached: KeyValues | None, new_tokens: int
) -> list[str]:
    """Plain `generate` over ids [batch, tokens], of which the first are cached: [batch] texts."""
    tokens = torch.tensor(ids, device=checkpoint.reader.device)
    ending = checkpoint.prompts.output_end_ids[0]
    with torch.no_grad():
        output = checkpoint.reader.generate(
            tokens,
            attention_mask=torch.ones_like(tokens),
            **{CACHE: None if cached is None else DynamicCache(cached)},
            generation_config=GenerationConfig(
                max_new_tokens=new_tokens,
                min_new_tokens=new_tokens,
                do_sample=False,
                eos_token_id=ending,
                pad_token_id=ending,
            ),
        )
    return [checkpoint.prompts.decode(row) for row in output[:, tokens.shape[1] :].tolist()]
