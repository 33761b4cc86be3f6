"""The cached path against one pass under the mask, over hundreds of random mixed batches of eight architectures.

The one pass is written here anew: the stock model, a mask filled block by block, positions as the design words
them, and the adapter added to gist columns by hooks. It shares no code with compress, mask or the engine.
"""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from peft.tuners.lora import LoraLayer
from tiny import TESTED, WINDOW, prepared_batch, random_text, save_tiny, shake, tiny_checkpoint, tiny_model
from torch import Tensor

from gistlm.compress import encode_prompts, place, write_gists
from gistlm.data.sources import Row
from gistlm.engines.base import Completion, Request, with_sampling
from gistlm.engines.sampling import Sampling
from gistlm.engines.transformers import GistModel
from gistlm.errors import InputError
from gistlm.gist import Gist
from gistlm.gisting.kv_cache import left_pad
from gistlm.gisting.placement import Condition, Part
from gistlm.models.adapter import LoraModules
from gistlm.models.checkpoint import Checkpoint, CheckpointOptions
from gistlm.models.config import Recipe
from gistlm.models.loading import load_base
from gistlm.models.transformers_compat import CACHE
from gistlm.training.batches import collate, tokenize
from gistlm.training.config import TrainConfig
from gistlm.training.loop import train
from gistlm.training.objectives import passes_of

KINDS = list(TESTED)
LAYOUTS = [("frozen", True), ("frozen", False), ("paper", True), ("paper", False)]
"""Recipe, and whether the opening stays visible."""
KEPT = 13
"""Of 16 tokens of a gist, in checkpoints that keep some of the prompt's; no model with a window does."""
CASES = [(kind, *layout, 0) for kind in KINDS for layout in LAYOUTS] + [
    (kind, *layout, KEPT) for kind in KINDS if kind not in ("mistral", "gemma3_text") for layout in LAYOUTS[::3]
]
BATCHES = 12
"""Batches of each case: 44 x 12 = 528 in all."""
TOLERANCE = 1e-4
NEW_TOKENS = 3


@dataclass
class OneRow:
    """What one pass is given of a request."""

    opening: list[int]
    prompt: list[int]
    k: int
    """Learned gist tokens that the rest sees."""
    rest: list[int]
    first: int
    """Position of the prompt's first token."""
    rest_first: int
    """Position of the rest's first token."""
    kept: int = 0
    """Tokens of the prompt that the rest sees, those of each layer and head most looked at."""
    template: int = 0
    """The prompt's first tokens, which are not its own."""
    unseen: int = 0
    """Learned gist tokens that only the probe queries see."""

    @property
    def width(self) -> int:
        return len(self.opening) + len(self.prompt) + self.k + len(self.rest)

    def positions(self) -> list[int]:
        gist = self.first + len(self.prompt)
        return [
            *range(len(self.opening)),
            *range(self.first, gist),
            *range(gist, gist + self.k),
            *range(self.rest_first, self.rest_first + len(self.rest)),
        ]

    def visible(self, window: int | None) -> Tensor:
        """bool [width, width], filled block by block. Without a gist the rest sees the prompt, if there is one."""
        o, p, g, r = torch.arange(self.width).split([len(self.opening), len(self.prompt), self.k, len(self.rest)])
        seen = torch.zeros(self.width, self.width, dtype=torch.bool)
        for queries, keys in ((o, o), (p, p), (g, p), (g, g), (r, o), (r, g), (r, r)):
            seen[queries[:, None], keys] = True
        if not self.k and not self.kept:
            seen[r[:, None], p] = True
        at = torch.tensor(self.positions())
        seen &= torch.ones_like(seen).tril()
        return seen & (at[:, None] - at < window) if window else seen


class OnePass:
    """The stock model, run once over opening, prompt, gist and rest."""

    def __init__(self, checkpoint: Checkpoint, kind: str) -> None:
        self.model = tiny_model(kind)
        self.gist_embeddings = checkpoint.gist_embeddings.detach()
        self.template = len(checkpoint.prompts.opening_ids) if checkpoint.config.anchored else None
        """Where the prompt's own tokens begin, if gist tokens start from them."""
        self.windows: dict[str, int | None] = {
            "mistral": {"all": WINDOW},
            "gemma3_text": {"full_attention": None, "sliding_attention": WINDOW},
        }.get(kind, {"all": None})
        self.empty_rest = checkpoint.prompts.rest_ids("")
        self.probes = checkpoint.probe_embeddings.detach()
        self.gist_columns = torch.zeros(0)
        """[batch, S, 1]: 1 where the column is a gist token"""
        if checkpoint.writer is not checkpoint.reader:
            self._add_adapter(checkpoint.writer)
        self.model.set_attn_implementation("eager")  # it gives its attention away
        self.by_layer: list[Tensor] = []
        """Masks [batch, heads, S, S] of every layer, where tokens are kept"""
        for layer in self.model.modules():
            if hasattr(layer, "layer_idx") and type(layer).__name__.endswith("Attention"):
                layer.register_forward_pre_hook(self._own_mask, with_kwargs=True)

    def _own_mask(self, layer: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        if self.by_layer:
            kwargs["attention_mask"] = self.by_layer[layer.layer_idx]
        return args, kwargs

    @torch.no_grad()
    def most_attended(self, row: OneRow) -> list[list[list[int]]]:
        """By layer and head, the places of kept tokens: where the probe queries attend most. They are read as gist
        tokens behind the gist: the prompt's last 8 tokens, and learned ones or else the template of an empty input.
        Heads that share keys agree.
        """
        again = row.prompt[row.template :][-8:] + ([] if len(self.probes) else self.empty_rest)
        n, learned = len(row.prompt), row.k + row.unseen
        width = n + learned + len(again) + len(self.probes)
        embeddings = torch.cat([self._embed(OneRow([], row.prompt, learned, again, 0, 0)), self.probes])[None]
        self.gist_columns = (torch.arange(width) >= n).float()[None, :, None]
        positions = torch.arange(row.first, row.first + width)[None]
        out = self.model(inputs_embeds=embeddings, position_ids=positions, output_attentions=True, use_cache=True)
        first = len(row.opening)
        places = []
        for attention, (keys, *_) in zip(out.attentions, out[CACHE], strict=True):
            among = attention[0, :, n + learned :, :n]
            shares = (among / among.sum(-1, keepdim=True)).sum(1)[:, first:]  # the opening is visible anyway
            group = shares.view(keys.shape[1], -1, n - first).sum(1)
            best = group.argsort(descending=True)[:, : row.kept] + first
            places.append(best.repeat_interleave(len(shares) // len(best), 0).tolist())
        return places

    def _masks_by_layer(self, seen: Tensor, rows: list[OneRow], spans: list[slice]) -> list[Tensor]:
        """From bool [batch, S, S] of learned tokens, [batch, heads, S, S] of every layer."""
        kept = [self.most_attended(row) if row.kept else [] for row in rows]
        layers = []
        for layer in range(self.model.config.num_hidden_layers):
            mask = seen[:, None].repeat(1, self.model.config.num_attention_heads, 1, 1)
            for index, (row, span) in enumerate(zip(rows, spans, strict=True)):
                for head, places in enumerate(kept[index][layer] if row.kept else []):
                    prompt = span.start + len(row.opening)
                    rest = torch.arange(span.stop - len(row.rest), span.stop)
                    mask[index, head][rest[:, None], prompt + torch.tensor(places)] = True
            layers.append(torch.where(mask, 0.0, -1e30))
        return layers

    def _add_adapter(self, writer: torch.nn.Module) -> None:
        """Add the LoRA's B A x to the output of every linear layer, on gist columns only."""
        stock = dict(self.model.named_modules())
        for name, layer in writer.named_modules():
            if isinstance(layer, LoraLayer):
                down, up = layer.lora_A["default"].weight.detach(), layer.lora_B["default"].weight.detach()
                delta = (up @ down) * layer.scaling["default"]
                stock[name.removeprefix("base_model.model.")].register_forward_hook(self._adding(delta))

    def _adding(self, delta: Tensor) -> Any:
        return lambda _, inputs, output: output + self.gist_columns * (inputs[0] @ delta.T)

    @torch.no_grad()
    def logits(self, rows: list[OneRow], side: str) -> list[Tensor]:
        """Logits [rest, vocabulary] at every token of each row's rest; rows are padded on the given side."""
        width = max(row.width for row in rows)
        starts = [width - row.width if side == "left" else 0 for row in rows]
        spans = [slice(start, start + row.width) for start, row in zip(starts, rows, strict=True)]
        embeddings = torch.zeros(len(rows), width, self.gist_embeddings.shape[1])
        positions = torch.zeros(len(rows), width, dtype=torch.long)
        self.gist_columns = torch.zeros(len(rows), width, 1)
        masks = {name: torch.eye(width).bool().repeat(len(rows), 1, 1) for name in self.windows}
        for index, (row, span) in enumerate(zip(rows, spans, strict=True)):
            embeddings[index, span] = self._embed(row)
            positions[index, span] = torch.tensor(row.positions())
            gist = span.start + len(row.opening) + len(row.prompt)
            self.gist_columns[index, gist : gist + row.k] = 1
            for name, window in self.windows.items():
                masks[name][index, span, span] = row.visible(window)
        additive = {name: torch.where(seen, 0.0, -1e30)[:, None] for name, seen in masks.items()}
        columns, by_layer = self.gist_columns, []
        if any(row.kept for row in rows):
            by_layer = self._masks_by_layer(masks["all"], rows, spans)
        self.gist_columns, self.by_layer = columns, by_layer
        out = self.model(
            inputs_embeds=embeddings, attention_mask=additive.get("all", additive), position_ids=positions
        ).logits
        self.by_layer = []
        return [out[index, span][-len(row.rest) :] for index, (row, span) in enumerate(zip(rows, spans, strict=True))]

    def _embed(self, row: OneRow) -> Tensor:
        tokens = self.model.get_input_embeddings()(torch.tensor([row.opening + row.prompt + row.rest]))[0]
        before = len(row.opening) + len(row.prompt)
        gist = self.gist_embeddings[: row.k].clone()
        if self.template is not None:
            rarest = sorted(set(row.prompt[self.template :]), reverse=True)[: row.k]
            for index, anchor in enumerate(rarest):
                gist[index] += self.model.get_input_embeddings()(torch.tensor(anchor))
        return torch.cat([tokens[:before], gist, tokens[before:]])

    def greedy(self, rows: list[OneRow], endings: list[int], side: str) -> tuple[list[Tensor], list[list[int]]]:
        """The rest's logits, and up to NEW_TOKENS tokens, each from a whole pass of its own."""
        logits = first = self.logits(rows, side)
        answers: list[list[int]] = [[] for _ in rows]
        rows = copy.deepcopy(rows)
        for step in range(NEW_TOKENS):
            if step:
                logits = self.logits(rows, side)
            for row, answer, row_logits in zip(rows, answers, logits, strict=True):
                token = int(row_logits[-1].argmax())
                row.rest.append(token)
                if not answer or answer[-1] not in endings:
                    answer.append(token)
        return first, answers


@cache
def loaded(kind: str, recipe: str, opening_visible: bool, kept: int = 0) -> tuple[GistModel, OnePass]:
    checkpoint = tiny_checkpoint(
        kind,
        recipe,
        opening_visible,
        anchored=(recipe == "frozen") == opening_visible,
        lora_modules=LoraModules.ALL if opening_visible else LoraModules.ATTENTION,
        kept=kept,
    )
    if kept and opening_visible:
        checkpoint.probe_embeddings.data = torch.randn(3, checkpoint.gist_embeddings.shape[1])
    checkpoint.fit_strengths.data.zero_()  # no mask says what fitting does: tests/gisting/test_kept_tokens.py
    # decoded to numbers, so that two answers are the same text only when they are the same tokens
    checkpoint.prompts.decode = lambda ids: " ".join(map(str, ids))  # type: ignore[method-assign]
    return GistModel(checkpoint, batch_size=16), OnePass(checkpoint, kind)


def random_requests(model: GistModel, kind: str, generator: torch.Generator) -> tuple[list[Request], list[OneRow]]:
    """1 to 16 rows: most with a gist of 1 to 16 tokens, some with a full prompt, some with nothing."""

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=generator))

    size = draw(1, 16)
    prompts = [random_text(generator, draw(1, draw(1, 200))) for _ in range(size)]
    inputs = [random_text(generator, draw(1, 30)) for _ in range(size)]
    larger = draw(1, 16)
    made = [*model.compress(prompts[: size // 2 + 1], larger), model.compress(prompts[-1], draw(1, 16))]
    requests, rows = [], []
    for index, (prompt, text) in enumerate(zip(prompts, inputs, strict=True)):
        chance = draw(1, 10)
        if chance > 3:
            known: Gist = made[index] if index <= size // 2 else made[-1]
            if index > size // 2:
                prompt = prompts[-1]
            gist = known if not known.nested or chance > 6 else known.shorten(draw(1, known.k))
            requests.append(Request(text, gists=gist))
        else:
            requests.append(Request(text, prompt=prompt) if chance > 1 else Request(text, bare_opening=True))
        rows.append(as_one_row(model.checkpoint, kind, requests[-1], prompt))
    return requests, rows


def as_one_row(checkpoint: Checkpoint, kind: str, request: Request, prompt: str) -> OneRow:
    """The request in the design's words: opening from 0, gist after it, prompt before the gist, rest after it.

    GPT-2 numbers prompt, gist and rest from 0. A full prompt is plain text from 0, and so is an input behind the bare
    opening.
    A gist that keeps its whole prompt is that prompt, and one of kept tokens alone is read where they were.
    """
    ids, rest = checkpoint.prompts.prompt_ids(prompt), checkpoint.prompts.rest_ids(request.input)
    opening = checkpoint.prompts.opening_ids if checkpoint.prompts.format.opening_visible else []
    if request.prompt is not None:
        return OneRow([], ids, 0, rest, 0, len(ids))
    if request.gist is None:
        return OneRow(opening, [], 0, rest, len(opening), len(opening))
    learned, kept = request.gist.learned, request.gist.provenance.kept
    template, own = len(checkpoint.prompts.opening_ids), len(ids) - len(opening)
    if not learned and kept == own:
        return OneRow([], ids, 0, rest, 0, len(ids))
    if not learned:
        assert own - kept <= min(kept / 4, 4)
        return OneRow(opening, ids, 0, rest, 0, len(ids), kept, template, unseen=len(checkpoint.gist_embeddings))
    assert kept == max(0, request.gist.k - len(checkpoint.gist_embeddings))
    first = 0 if kind == "gpt2" else len(opening) - len(ids)
    return OneRow(opening, ids, learned, rest, first, first + len(ids) + learned, kept, template)


def cached_logits(model: GistModel, requests: list[Request]) -> list[Tensor]:
    """Logits [tokens - 1, vocabulary] of each request's fresh tokens, all but the last, through the cache."""
    prepared = prepared_batch(model, requests)
    every = model._layout.output_logits(prepared, prepared.tokens.shape[1] - 1)
    lengths = prepared.fresh_lengths.tolist()
    return [row[len(row) - (length - 1) :] for row, length in zip(every, lengths, strict=True)]


def completions(model: GistModel, requests: list[Request]) -> list[Completion]:
    return model.complete(with_sampling(requests, Sampling(max_new_tokens=NEW_TOKENS)))


@pytest.mark.parametrize(("kind", "recipe", "opening_visible", "kept"), CASES)
def test_the_cached_path_equals_one_pass_under_the_mask(
    kind: str, recipe: str, opening_visible: bool, kept: int
) -> None:
    model, one_pass = loaded(kind, recipe, opening_visible, kept)
    generator = torch.Generator().manual_seed(len(kind) + 100 * LAYOUTS.index((recipe, opening_visible)))
    for batch in range(BATCHES):
        requests, rows = random_requests(model, kind, generator)
        expected, answers = one_pass.greedy(rows, model._ending_ids, side=("left", "right")[batch % 2])
        for row, found, wanted in zip(rows, cached_logits(model, requests), expected, strict=True):
            last = len(row.rest) - 1
            torch.testing.assert_close(found[len(found) - last :], wanted[:last], atol=TOLERANCE, rtol=0)
        for completion, answer in zip(completions(model, requests), answers, strict=True):
            assert completion.text == " ".join(map(str, answer))
            assert completion.new_tokens == len(answer)


@pytest.mark.parametrize("kind", KINDS)
def test_one_pass_gives_the_same_logits_padded_on_either_side(kind: str) -> None:
    model, one_pass = loaded(kind, "frozen", True)
    _, rows = random_requests(model, kind, torch.Generator().manual_seed(5))
    for left, right in zip(one_pass.logits(rows, "left"), one_pass.logits(rows, "right"), strict=True):
        torch.testing.assert_close(left, right, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_score_is_the_one_pass_log_probability_of_each_output_token(kind: str) -> None:
    model, one_pass = loaded(kind, "frozen", True)
    prompts, outputs = ["be brief and kind", "x"], ["an answer", "other words here"]
    gists = model.compress(prompts, 3)
    scores = model.score(["hello", "hi there"], outputs, gists)
    for text, prompt, gist, output, score in zip(["hello", "hi there"], prompts, gists, outputs, scores, strict=True):
        row = as_one_row(model.checkpoint, kind, Request(text, gists=gist), prompt)
        ids = model.checkpoint.prompts.output_ids(output)
        row.rest = row.rest + ids
        logits = one_pass.logits([row], "left")[0][-len(ids) - 1 : -1]
        expected = logits.log_softmax(-1).gather(1, torch.tensor(ids)[:, None])[:, 0]
        torch.testing.assert_close(score, expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize(("kind", "recipe", "opening_visible", "kept"), CASES)
def test_a_shortened_gist_is_the_gist_of_that_size(kind: str, recipe: str, opening_visible: bool, kept: int) -> None:
    model, _ = loaded(kind, recipe, opening_visible, kept)
    prompts = [random_text(torch.Generator().manual_seed(length), length) for length in (1, 40, 150)]
    longest = model.compress(prompts, 16)
    for j in (1, 2, 7, 15, 16):
        for long, short in zip(longest, model.compress(prompts, j), strict=True):
            if long.provenance.kept and j < long.k:
                with pytest.raises(InputError, match=f"is chosen as a whole; compress .* k={j}"):
                    long.shorten(j)
                continue
            cut = long.shorten(min(j, long.k))
            assert (cut.k, cut.provenance) == (short.k, short.provenance)
            for one, other in zip((*cut.keys, *cut.values), (*short.keys, *short.values), strict=True):
                torch.testing.assert_close(one, other, atol=1e-5, rtol=0)
            answers = completions(model, [Request("go on", gists=cut), Request("go on", gists=short)])
            assert answers[0] == answers[1]


@pytest.mark.parametrize(("kind", "recipe", "opening_visible", "kept"), CASES)
def test_prompt_and_gist_in_one_pass_or_in_two_are_the_same_gist(
    kind: str, recipe: str, opening_visible: bool, kept: int
) -> None:
    """Training runs the prompt first and the gist tokens over its cache."""
    model, _ = loaded(kind, recipe, opening_visible, kept)
    prompts = [random_text(torch.Generator().manual_seed(length), length) for length in (1, 40, 150)]
    ids = [model.checkpoint.prompts.prompt_ids(prompt) for prompt in prompts]
    learned = 6 if not kept else 3
    gists = model.compress(prompts, 6)
    with torch.no_grad():
        tokens, parts = left_pad(ids, Part.PROMPT, model.checkpoint.reader.device)
        encoded = encode_prompts(model.checkpoint, tokens, parts, place(model.checkpoint, parts, 6))
        written, _ = write_gists(model.checkpoint, encoded, learned)
    for row, gist in enumerate(gists):
        own = slice(0 if gist.learned else learned, None)
        for (keys, values), key, value in zip(written, gist.keys, gist.values, strict=True):
            torch.testing.assert_close(keys[row, :, own][:, : gist.k], key, atol=1e-5, rtol=0)
            torch.testing.assert_close(values[row, :, own][:, : gist.k], value, atol=1e-5, rtol=0)


@pytest.mark.parametrize("opening_visible", [True, False])
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_the_two_forms_that_training_may_use_give_the_same_logits(kind: str, opening_visible: bool) -> None:
    checkpoint = loaded(kind, "paper", opening_visible)[0].checkpoint
    generator = torch.Generator().manual_seed(3)
    rows = [Row(random_text(generator, n), random_text(generator, 9), random_text(generator, 7)) for n in (1, 30, 90)]
    batch = collate([tokenize(row, checkpoint.prompts) for row in rows], [1, 5, 8])
    last = int(batch.output_lengths.min())
    passes = passes_of(checkpoint)
    full, encoded = passes.full_prompt(batch, last)
    cached = {
        Condition.GIST: passes.run_rest(batch, passes.write(encoded, batch)[0], Condition.GIST, last),
        Condition.POSITIVE: full,
        Condition.NEGATIVE: passes.run_rest(batch, None, Condition.NEGATIVE, last),
    }
    for condition, logits in cached.items():
        whole = passes.masked_pass(batch, condition, last)
        torch.testing.assert_close(logits, whole, atol=TOLERANCE, rtol=0)
    assert not torch.allclose(cached[Condition.GIST], full, atol=0.01)
    assert not torch.allclose(cached[Condition.GIST], cached[Condition.NEGATIVE], atol=0.01)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@torch.no_grad()
def test_training_reads_the_gists_that_are_compressed(kind: str) -> None:
    """Kept tokens too, a prompt that is kept whole and one that nearly is, in one batch with others."""
    model, _ = loaded(kind, "frozen", True, KEPT)
    generator = torch.Generator().manual_seed(4)
    sizes, lengths = [8, 8, 2, 14], (4, 9, 30, 90)
    rows = [Row(random_text(generator, n), random_text(generator, 9), random_text(generator, 7)) for n in lengths]
    batch = collate([tokenize(row, model.checkpoint.prompts) for row in rows], sizes)
    passes = passes_of(model.checkpoint)
    _, encoded = passes.full_prompt(batch, 3)
    logits = passes.run_rest(batch, passes.write(encoded, batch)[0], Condition.GIST, int(batch.output_lengths.max()))
    gists = [model.compress(row.prompt, k) for row, k in zip(rows, sizes, strict=True)]
    assert [gist.provenance.kept for gist in gists] == [4, 8, 0, 11]
    scores = model.score([row.input for row in rows], [row.output for row in rows], gists)
    for row, score, found in zip(rows, scores, logits, strict=True):
        ids = torch.tensor(model.checkpoint.prompts.output_ids(row.output))
        expected = found[-len(ids) :].log_softmax(-1).gather(1, ids[:, None])[:, 0]
        torch.testing.assert_close(score, expected, atol=TOLERANCE, rtol=0)


# The frozen promise


def same_bits(model: GistModel, stock: Any, texts: list[str]) -> bool:
    """Whether requests without a gist get the stock model's logits to the last bit, alone and in a batch."""
    for text in texts:
        ids = model.checkpoint.prompts.request_ids(None, text)
        prepared = prepared_batch(model, [Request(text)])
        assert prepared.tokens.tolist() == [ids]
        with torch.no_grad():
            plain = stock(torch.tensor([ids])).logits
            own = model.checkpoint.reader(torch.tensor([ids])).logits
            masked = stock(
                prepared.tokens,
                attention_mask=model.checkpoint.architecture.masks(
                    prepared.parts, prepared.positions, len(ids), model.dtype
                ),
                position_ids=prepared.positions,
            ).logits
        through_engine = model._layout.output_logits(prepared, len(ids) - 1)
        if not (torch.equal(own, plain) and torch.equal(through_engine, masked[:, :-1])):
            return False
        torch.testing.assert_close(masked, plain, atol=1e-5 if model.dtype == torch.float32 else 0.1, rtol=0)
    return True


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_without_a_gist_a_frozen_model_gives_the_stock_models_bits(kind: str, dtype: torch.dtype) -> None:
    checkpoint = tiny_checkpoint(kind, "frozen")
    checkpoint.writer.to(dtype)
    checkpoint.reader.to(dtype)
    model, stock = GistModel(checkpoint), tiny_model(kind).to(dtype)
    texts = ["hello", "a longer question than that one?", ""]
    assert same_bits(model, stock, texts)
    gist = model.compress("the prompt of someone else", 5)
    assert same_bits(model, stock, texts)
    model.generate(texts, [gist, None, gist], max_new_tokens=2)
    assert same_bits(model, stock, texts)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_without_a_gist_a_frozen_model_generates_from_the_stock_models_bits(kind: str, dtype: torch.dtype) -> None:
    checkpoint = tiny_checkpoint(kind, "frozen")
    checkpoint.writer.to(dtype)
    checkpoint.reader.to(dtype)
    model = GistModel(checkpoint)
    model.compress("the prompt of someone else", 5)
    prepared = prepared_batch(model, [Request("hello")], 4)
    asked = {"output_logits": True, "return_dict_in_generate": True}
    ours = model._generate(prepared, [Sampling(max_new_tokens=4)], **asked)
    own = {"max_new_tokens": 4, "do_sample": False, "eos_token_id": model._ending_ids, "pad_token_id": 0}
    theirs = tiny_model(kind).to(dtype).generate(prepared.tokens, **own, **asked)
    assert torch.equal(ours.sequences, theirs.sequences)
    for one, other in zip(ours.logits, theirs.logits, strict=True):
        assert torch.equal(one, other)


def test_a_tuned_model_with_its_lora_still_apart_writes_the_gists_of_its_saved_self(tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base", "llama")
    made = Checkpoint.create(str(base), CheckpointOptions(Recipe.PAPER, max_k=4, lora_rank=4), device="cpu")
    shake(made.writer)
    apart = GistModel(made).compress(["some prompt", "x"], 4)
    merged = GistModel.from_pretrained(made.save_pretrained(tmp_path / "saved"), device="cpu")
    for one, other in zip(apart, merged.compress(["some prompt", "x"], 4), strict=True):
        assert one.provenance.adapter == other.provenance.adapter
        for mine, theirs in zip((*one.keys, *one.values), (*other.keys, *other.values), strict=True):
            torch.testing.assert_close(mine, theirs, atol=1e-5, rtol=0)


def test_frozen_training_leaves_every_byte_of_the_base_and_changes_the_adapter(tmp_path: Path) -> None:
    base = save_tiny(tmp_path / "base", "llama")
    rows = [{"prompt": f"rule {i}: say {i}", "input": f"ask {i}", "output": f"it is {i}"} for i in range(12)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = {"base": str(base), "data": [{"path": str(tmp_path / "rows.jsonl")}], "output": str(tmp_path / "out")}
    few = {"steps": 5, "batch_size": 2, "max_k": 4, "lora_rank": 4, "validation_rows": 2, "device": "cpu"}
    untrained = Checkpoint.create(str(base), CheckpointOptions(Recipe.FROZEN, max_k=4, lora_rank=4), device="cpu")
    before = {path.name: path.read_bytes() for path in base.iterdir()}

    model = GistModel.from_pretrained(train(TrainConfig.parse({**options, **few})), device="cpu")

    assert {path.name: path.read_bytes() for path in base.iterdir()} == before
    stock = tiny_model("llama").state_dict()
    trained = model.checkpoint.reader.state_dict()
    assert trained.keys() == stock.keys()
    assert all(torch.equal(trained[name], stock[name]) for name in stock)
    assert json.loads((tmp_path / "out" / "training.json").read_text())["base_unchanged"] is True
    assert model.checkpoint.adapter_fingerprint != untrained.adapter_fingerprint
    ups = {name: tensor for name, tensor in model.checkpoint.writer.named_parameters() if "v_proj.lora_B" in name}
    assert len(ups) == 2 and all(bool(tensor.abs().max() > 0) for tensor in ups.values())
    assert same_bits(model, tiny_model("llama"), ["hello", "hi"])


@pytest.mark.parametrize("kind", ["llama", "gemma3_text", "phi3"])
def test_loading_in_another_dtype_leaves_rotary_frequencies_in_float32(kind: str, tmp_path: Path) -> None:
    loaded_base = load_base(str(save_tiny(tmp_path / kind, kind)), "cpu", torch.bfloat16)
    assert {tensor.dtype for tensor in loaded_base.model.parameters()} == {torch.bfloat16}
    frequencies = {name: tensor for name, tensor in loaded_base.model.named_buffers() if "inv_freq" in name}
    assert frequencies and {tensor.dtype for tensor in frequencies.values()} == {torch.float32}
