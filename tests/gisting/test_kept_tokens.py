"""What a gist takes over from its prompt. That the kept tokens are the right ones, `test_exactness` says."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tiny import random_text, save_tiny_checkpoint, tiny_checkpoint
from transformers.models.llama import modeling_llama

from gistlm.compress import compress
from gistlm.data.rows import Row
from gistlm.engines.base import Request, with_sampling
from gistlm.engines.sampling import Sampling
from gistlm.engines.transformers import GistModel
from gistlm.errors import ModelError, UnsupportedModelError
from gistlm.gist import Gist
from gistlm.gisting.kept_tokens import KeepingPass, Probe, ProbedPass, attention_divergence, check_probeable, fit
from gistlm.gisting.placement import READ_AGAIN, Part
from gistlm.models.checkpoint import Checkpoint
from gistlm.models.transformers_compat import CACHE
from gistlm.training.batches import collate, tokenize
from gistlm.training.objectives import passes_of

KEEPING = tiny_checkpoint(max_k=64, kept=60, anchored=True)
LEARNED = 4
OPENING = len(KEEPING.prompts.opening_ids)


def own_cache(checkpoint: Checkpoint, prompt: str, first: int) -> Any:
    """By layer, the plain model's keys and values [kv_heads, own tokens, head_dim], numbered from ``first``."""
    ids = torch.tensor([checkpoint.prompts.prompt_ids(prompt)])
    positions = torch.arange(first, first + ids.shape[1])[None]
    with torch.no_grad():
        cache = checkpoint.reader(ids, position_ids=positions, use_cache=True)[CACHE]
    return [(keys[0, :, OPENING:], values[0, :, OPENING:]) for keys, values, _ in cache]


def place(column: torch.Tensor, among: torch.Tensor) -> int:
    """Where [head_dim] stands among [tokens, head_dim]."""
    distances = (among - column).abs().amax(dim=1)
    assert float(distances.min()) < 1e-5
    return int(distances.argmin())


def places(gist: Gist, cache: Any) -> list[list[list[int]]]:
    """By layer and head, the prompt's tokens whose keys the gist keeps, all of whose values it keeps too."""
    found = []
    for (keys, values), own_keys, own_values in zip(cache, gist.keys, gist.values, strict=True):
        learned = gist.k - gist.provenance.kept
        layer = []
        for head in range(len(keys)):
            layer.append([place(column, keys[head]) for column in own_keys[head, learned:]])
            torch.testing.assert_close(own_values[head, learned:], values[head, layer[-1]], atol=1e-5, rtol=0)
        found.append(layer)
    return found


@given(st.integers(30, 90), st.integers(LEARNED + 1, 20))
def test_kept_tokens_are_the_prompts_own_and_every_head_chooses_for_itself(length: int, k: int) -> None:
    prompt = random_text(torch.Generator().manual_seed(length), length)
    gist = GistModel(KEEPING).compress(prompt, k)
    assert (gist.k, gist.provenance.kept, gist.end) == (k, k - LEARNED, gist.provenance.start + LEARNED)
    first = OPENING - len(KEEPING.prompts.prompt_ids(prompt))
    chosen = places(gist, own_cache(KEEPING, prompt, first))
    assert all(len(set(head)) == k - LEARNED for layer in chosen for head in layer)
    if k == 20:
        assert len({tuple(sorted(head)) for layer in chosen for head in layer}) > 1


@pytest.mark.parametrize("opening_visible", [True, False])
@pytest.mark.parametrize("kind", ["llama", "gpt2", "gpt_neox"])
def test_a_prompt_of_at_most_k_tokens_is_kept_whole_and_answered_as_in_full(kind: str, opening_visible: bool) -> None:
    model = GistModel(tiny_checkpoint(kind, opening_visible=opening_visible, max_k=40, kept=38))
    prompts = ["short", "some words of 5 letters or so", "x"]
    gists = model.compress(prompts, 39)
    hidden = 0 if opening_visible else len(model.checkpoint.prompts.opening_ids)
    for prompt, gist in zip(prompts, gists, strict=True):
        own = len(model.checkpoint.prompts.prompt_ids(prompt)) - len(model.checkpoint.prompts.opening_ids)
        assert not gist.learned and gist.k == own + hidden
    texts = ["hello", "a question?", ""]
    sampling = Sampling(max_new_tokens=5)
    full = [Request(text, prompt=prompt) for text, prompt in zip(texts, prompts, strict=True)]
    kept = [Request(text, gist) for text, gist in zip(texts, gists, strict=True)]
    for one, other in zip(
        model.complete(with_sampling(full, sampling)), model.complete(with_sampling(kept, sampling)), strict=True
    ):
        assert one.text == other.text


def test_where_more_than_few_tokens_are_left_out_one_is_learned() -> None:
    model = GistModel(tiny_checkpoint(max_k=40, kept=39))
    for prompt in ("abcdefgh ij", "abcdefgh ijklmnop qrstuvw"):
        own = len(model.checkpoint.prompts.prompt_ids(prompt)) - OPENING
        for k in range(1, own + 3):
            gist = model.compress(prompt, k)
            few = own - k <= min(k / 4, 4)
            assert (gist.k, gist.learned) == (min(k, own), 0 if few else 1)


def test_of_a_short_prompt_every_head_keeps_its_own_tokens_where_they_were() -> None:
    model = GistModel(tiny_checkpoint(max_k=40, kept=39))
    prompt = "abcdefgh ijklmnop qrst uvw"
    own = len(model.checkpoint.prompts.prompt_ids(prompt)) - OPENING
    gist = model.compress(prompt, own - 4)
    chosen = places(gist, own_cache(model.checkpoint, prompt, 0))
    assert gist.provenance.kept == own - 4 == gist.k
    assert all(len(set(head)) == own - 4 for layer in chosen for head in layer)


def test_gists_do_not_depend_on_their_batch() -> None:
    generator = torch.Generator().manual_seed(1)
    prompts = [random_text(generator, length) for length in (3, 18, 70, 41)]
    together = compress(KEEPING, prompts, 24)
    for prompt, gist in zip(prompts, together, strict=True):
        (alone,) = compress(KEEPING, [prompt], 24)
        assert alone.provenance == gist.provenance
        for one, other in zip((*alone.keys, *alone.values), (*gist.keys, *gist.values), strict=True):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=0)


def test_choosing_leaves_the_model_as_it_was() -> None:
    configs = [KEEPING.reader.config, KEEPING.writer_decoder.config]
    before = [config._attn_implementation for config in configs]
    compress(KEEPING, ["some words of 5 letters"], 9)
    assert [config._attn_implementation for config in configs] == before
    prompt = torch.ones(1, 3, dtype=torch.bool)
    keeping = ProbedPass(prompt, prompt, torch.ones(1, 2, dtype=torch.bool))
    with pytest.raises(ZeroDivisionError), keeping(KEEPING.writer_decoder):
        _ = 1 / 0
    assert [config._attn_implementation for config in configs] == before


def test_the_order_of_kept_tokens_follows_the_attention_of_the_probe_queries() -> None:
    """One head, one probe query that points along the keys' only dimension: larger keys get more."""
    prompt, probes = torch.tensor([[False, True, True, True]]), torch.tensor([[False, True]])
    keys = torch.tensor([9.0, 1.0, 3.0, 2.0, 0.0, 0.0]).view(1, 1, 6, 1)
    queries = torch.tensor([0.0, 0.0, 0.0, 0.0, -1.0, 1.0]).view(1, 1, 6, 1)
    for own, kept in ((prompt, [3.0, 2.0, 1.0]), (torch.tensor([[False, False, True, True]]), [3.0, 2.0])):
        keeping = KeepingPass(prompt, own, probes, 0, torch.tensor([len(kept)]), torch.zeros(2, 2))
        keeping.see(queries, keys, keys, None)
        shares = torch.tensor([1.0, 3.0, 2.0]).softmax(0) * own[0, 1:]
        torch.testing.assert_close(keeping.mass[0][0, 0, 1:], shares)
        assert keeping.gists[0][0].flatten().tolist() == keeping.gists[0][1].flatten().tolist() == kept


@given(st.integers(0, 1000), st.integers(1, 6), st.integers(1, 4), st.integers(0, 6))
def test_the_fitted_token_scores_and_answers_as_what_is_not_kept_of_the_prompt(
    seed: int, own: int, padding: int, kept: int
) -> None:
    """Against weighted least squares with a row for every query of every probe, solved head by head."""
    generator = torch.Generator().manual_seed(seed)
    size, kv_heads, group, opening, width = 6, 2, 3, 2, 5
    kept = min(kept, own)
    n = padding + opening + own
    query, key = (torch.randn(1, heads, n + 1 + width, size, generator=generator) for heads in (6, 2))
    value = torch.randn(1, kv_heads, n + 1 + width, 4, generator=generator)
    is_prompt, is_own = torch.arange(n)[None] >= padding, torch.arange(n)[None] >= padding + opening
    probes = torch.tensor([[False, True, True, True, True]])
    keeping = KeepingPass(is_prompt, is_own, probes, 1, torch.tensor([kept]), torch.ones(2, 2))
    keeping.see(query, key, value, 0.3)
    ((keys, values),) = keeping.gists
    assert keys.shape == (1, kv_heads, 1 + kept, size)
    for head in range(kv_heads):
        rows = query[0, head * group : (head + 1) * group, -4:].reshape(-1, size) * 0.3
        scores = rows @ key[0, head, padding:n].T
        best = scores.softmax(-1)[:, opening:].sum(0).argsort(descending=True)
        torch.testing.assert_close(keys[0, head, 1:], key[0, head, padding + opening + best[:kept]])
        left = opening + (best[kept:] if kept < own else best)
        weights = scores.softmax(-1)[:, left].sum(-1)
        weights = weights / weights.sum()
        mass = scores[:, left].exp().sum(-1).log()
        output = scores[:, left].softmax(-1) @ value[0, head, padding + left]
        torch.testing.assert_close(values[0, head, 0], (weights[:, None] * output).sum(0), atol=1e-4, rtol=0)
        ridge = 0.05 * (weights[:, None] * rows * rows).sum()
        matrix = torch.cat([rows * weights.sqrt()[:, None], ridge.sqrt() * torch.eye(size)])
        aim = torch.cat([mass * weights.sqrt(), ridge.sqrt() * key[0, head, n]])
        expected = torch.linalg.lstsq(matrix, aim[:, None]).solution[:, 0]
        torch.testing.assert_close(keys[0, head, 0], expected, atol=1e-3, rtol=0)


def test_only_the_first_learned_token_is_fitted_and_by_the_shares_of_its_layer() -> None:
    prompt = random_text(torch.Generator().manual_seed(3), 50)
    made = {}
    for fitted in (0.0, 1.0):
        checkpoint = tiny_checkpoint(max_k=64, kept=60, anchored=True)
        checkpoint.fit_strengths.data[:] = 0
        checkpoint.fit_strengths.data[1] = fitted
        made[fitted] = compress(checkpoint, [prompt], 9)[0]
    (keys, other_keys), (values, other_values) = (
        [torch.stack(getattr(gist, side)) for gist in made.values()] for side in ("keys", "values")
    )
    for one, other in ((keys, other_keys), (values, other_values)):
        changed = (one - other).abs().amax(dim=(1, 3)) > 1e-6
        assert changed.nonzero().tolist() == [[1, 0]]
    cache = own_cache(KEEPING, prompt, OPENING - len(KEEPING.prompts.prompt_ids(prompt)))
    own = cache[1][1]
    assert bool((other_values[1, :, 0] <= own.amax(dim=1) + 1e-5).all())
    assert bool((other_values[1, :, 0] >= own.amin(dim=1) - 1e-5).all())


def test_the_first_of_several_learned_tokens_are_a_gist_where_nothing_is_kept() -> None:
    """They are fitted by probe queries that see all learned tokens, whatever k."""
    prompts = [random_text(torch.Generator().manual_seed(length), length) for length in (40, 70)]
    for longest in compress(KEEPING, prompts, LEARNED):
        assert longest.nested and not longest.provenance.kept
    for j in range(1, LEARNED + 1):
        for longest, short in zip(compress(KEEPING, prompts, LEARNED), compress(KEEPING, prompts, j), strict=True):
            cut = longest.shorten(j)
            assert cut.provenance == short.provenance
            for one, other in zip((*cut.keys, *cut.values), (*short.keys, *short.values), strict=True):
                torch.testing.assert_close(one, other, atol=1e-5, rtol=0)


def test_training_fits_a_row_s_gist_as_compression_does_whatever_its_batch() -> None:
    generator = torch.Generator().manual_seed(4)
    rows = [Row(random_text(generator, n), "what?", random_text(generator, 7)) for n in (4, 9, 30, 90)]
    sizes = [8, 8, 2, 14]
    batch = collate([tokenize(row, KEEPING.prompts) for row in rows], sizes)
    passes = passes_of(KEEPING)
    with torch.no_grad():
        _, encoded = passes.full_prompt(batch, 3)
        written, _ = passes.write(encoded, batch)
    for row, (text, k) in enumerate(zip(rows, sizes, strict=True)):
        (gist,) = compress(KEEPING, [text.prompt], k)
        first = 0 if gist.learned else LEARNED
        for (keys, values), key, value in zip(written, gist.keys, gist.values, strict=True):
            for made, own in ((keys, key), (values, value)):
                torch.testing.assert_close(made[row, :, first : first + gist.k], own, atol=1e-5, rtol=0)


def test_fitting_can_be_learned_by_the_probe_queries_too() -> None:
    made = {name: torch.randn(2, 1, size, 4, requires_grad=True) for name, size in (("key", 1), ("value", 1), ("q", 3))}
    keys, own = torch.randn(2, 1, 5, 4), torch.ones(2, 1, 5, dtype=torch.bool)
    shares = torch.full((2,), 0.5, requires_grad=True)
    probe = Probe.from_queries(made["q"], keys, own[:, 0], torch.ones(2, 3, dtype=torch.bool))
    sides = fit((made["key"], made["value"]), shares, probe, keys, own)
    (sides[0].square().sum() + sides[1].square().sum()).backward()
    assert all(tensor.grad is not None and bool(tensor.grad.any()) for tensor in (*made.values(), shares))


def test_a_model_that_is_set_to_plain_products_attends_by_them_while_it_is_probed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    checkpoint = tiny_checkpoint(max_k=14, kept=10)
    batch = collate([tokenize(Row("a prompt of some more words", "what?", "an answer"), checkpoint.prompts)], [12])
    passes, plain = passes_of(checkpoint), Mock(wraps=modeling_llama.eager_attention_forward)
    monkeypatch.setattr(modeling_llama, "eager_attention_forward", plain)
    written = {}
    for attention in ("sdpa", "eager"):
        checkpoint.reader.set_attn_implementation(attention)
        checkpoint.writer.get_base_model().set_attn_implementation(attention)
        with torch.no_grad():
            _, encoded = passes.full_prompt(batch, 3)
            plain.reset_mock()
            written[attention] = passes.write(encoded, batch)[0]
        assert plain.called == (attention == "eager")
    for one, other in zip(*written.values(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=0)


@pytest.mark.parametrize("probed", [True, False])
def test_what_takes_no_gradients_attends_by_torchs_own_function_and_says_the_same(
    monkeypatch: pytest.MonkeyPatch, probed: bool
) -> None:
    checkpoint = tiny_checkpoint(max_k=14, kept=10)
    rows = [Row("a prompt of some more words", "what?", "an answer"), Row("short", "and what is it?", "no")]
    batch = collate([tokenize(row, checkpoint.prompts) for row in rows], [12, 2])
    passes, plain = passes_of(checkpoint), Mock(wraps=modeling_llama.eager_attention_forward)
    monkeypatch.setattr(modeling_llama, "eager_attention_forward", plain)
    checkpoint.reader.set_attn_implementation("eager")
    config = checkpoint.reader.get_decoder().config
    with torch.no_grad():
        logits, encoded = passes.full_prompt(batch, 3, probed)
        alone = passes.encode(batch)
        assert not plain.called and config._attn_implementation == "eager"
        config.attn_logit_softcapping = 1e9  # plain products alone know it
        same_logits, same = passes.full_prompt(batch, 3, probed)
        assert plain.called and config._attn_implementation == "eager"
    torch.testing.assert_close(logits, same_logits, atol=1e-5, rtol=0)
    for tensors in (encoded, alone):
        for one, other in zip(tensors.key_values, same.key_values, strict=True):
            shown = (batch.prompt_parts != Part.PAD)[:, None, :, None]
            torch.testing.assert_close(one[0] * shown, other[0] * shown, atol=1e-5, rtol=0)
            torch.testing.assert_close(one[1] * shown, other[1] * shown, atol=1e-5, rtol=0)
    for probe, other in zip(encoded.rest_mass or [], same.rest_mass or [], strict=True):
        torch.testing.assert_close(probe, other, atol=1e-5, rtol=0)


def test_probe_queries_that_attend_as_the_rest_does_have_no_divergence() -> None:
    rest = [torch.tensor([[[0.1, 0.2, 0.1, 0.0]]])] * 2
    probes = [torch.tensor([[[0.2, 0.4, 0.2, 0.0]]])] * 2
    assert float(attention_divergence(rest, probes)) == pytest.approx(0, abs=1e-6)
    probes[1] = torch.tensor([[[0.4, 0.2, 0.2, 0.0]]])
    expected = 0.25 * math.log(0.25 / 0.5) + 0.5 * math.log(0.5 / 0.25)
    assert float(attention_divergence(rest, probes)) == pytest.approx(expected / 2, abs=1e-6)


@pytest.mark.parametrize("opening_visible", [True, False])
def test_attention_mass_of_the_rest_is_the_same_in_any_batch(opening_visible: bool) -> None:
    """The full prompt's pass has no padding between a prompt and its rest; what is seen is put back in place."""
    checkpoint = tiny_checkpoint(max_k=14, kept=10, opening_visible=opening_visible)
    generator = torch.Generator().manual_seed(4)
    rows = [Row(random_text(generator, n), random_text(generator, m), "an answer") for n, m in ((4, 160), (90, 5))]
    examples = [tokenize(row, checkpoint.prompts) for row in rows]
    passes = passes_of(checkpoint)
    with torch.no_grad():
        _, both = passes.full_prompt(collate(examples, [2, 2]), 3, probed=True)
        alone = [passes.full_prompt(collate([example], [2]), 3, probed=True)[1] for example in examples]
    for row, one in enumerate(alone):
        n = one.tokens.shape[1]
        for sides, wanted in zip(both.key_values, one.key_values, strict=True):
            for side, own in zip(sides, wanted, strict=True):
                torch.testing.assert_close(side[row, :, -n:], own[0], atol=1e-5, rtol=0)
        for seen, wanted in zip(both.rest_mass, one.rest_mass, strict=True):
            torch.testing.assert_close(seen[row, :, -n:], wanted[0], atol=1e-5, rtol=0)
            assert not seen[row, :, :-n].any()


def test_probe_queries_are_a_prompts_last_tokens_and_learned_ones_or_the_template_of_an_empty_input() -> None:
    assert READ_AGAIN == 8
    ids: list[list[int]] = []
    embed = KEEPING.reader.get_input_embeddings()
    prompt = random_text(torch.Generator().manual_seed(2), 60)
    hook = embed.register_forward_hook(lambda _, inputs, __: ids.append(inputs[0][0].tolist()))
    compress(KEEPING, [prompt], 9)
    hook.remove()
    last = KEEPING.prompts.prompt_ids(prompt)[-8:]
    assert last in ids
    taught = tiny_checkpoint(max_k=64, kept=60, anchored=True)
    taught.probe_embeddings.data = embed(torch.tensor(KEEPING.prompts.rest_ids(""))).detach()
    one, other = compress(KEEPING, [prompt], 9)[0], compress(taught, [prompt], 9)[0]
    for tensor, same in zip((*one.keys, *one.values), (*other.keys, *other.values), strict=True):
        torch.testing.assert_close(tensor, same)
    taught.probe_embeddings.data = taught.probe_embeddings.data[:1]
    assert not torch.equal(compress(taught, [prompt], 9)[0].keys[1], other.keys[1])


def test_a_model_whose_attention_cannot_be_recorded_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = KEEPING.reader.get_decoder()
    check_probeable(decoder)
    monkeypatch.setattr(type(decoder), "_supports_sdpa", False)
    with pytest.raises(UnsupportedModelError, match="LlamaModel does not use; set kept to 0"):
        check_probeable(decoder)


@pytest.mark.parametrize(
    ("kept", "match"),
    [
        (-1, "kept must be greater than or equal to 0"),
        (65_537, "kept must be less than or equal to 65536"),
        ("2", "kept must be a valid integer"),
        (True, "kept must be a valid integer"),
    ],
)
def test_kept_must_be_a_number_within_bounds(tiny_saved: Path, kept: object, match: str) -> None:
    record = json.loads((tiny_saved / "gistlm.json").read_text())
    (tiny_saved / "gistlm.json").write_text(json.dumps({**record, "kept": kept}))
    with pytest.raises(ModelError, match=match):
        Checkpoint.load(tiny_saved, device="cpu")


def test_a_checkpoint_comes_back_with_what_it_keeps(tiny_saved: Path) -> None:
    prompt = "a prompt of some more words than 5 and a few"
    checkpoint = Checkpoint.load(tiny_saved, device="cpu")
    plain = GistModel(checkpoint).compress(prompt, checkpoint.placement.max_k)
    record = json.loads((tiny_saved / "gistlm.json").read_text())
    (tiny_saved / "gistlm.json").write_text(json.dumps({**record, "kept": 5, "k": None}))
    keeping = Checkpoint.load(tiny_saved, device="cpu")
    assert (keeping.placement.max_k, keeping.placement.learned) == (
        checkpoint.placement.max_k + 5,
        checkpoint.placement.max_k,
    )
    gist = GistModel(keeping).compress(prompt, keeping.placement.max_k)
    assert gist.provenance.kept == 5 and gist.provenance.adapter != plain.provenance.adapter
    learned = slice(1, checkpoint.placement.max_k)
    torch.testing.assert_close(gist.keys[1][:, learned], plain.keys[1][:, 1:], atol=1e-5, rtol=0)


def test_a_checkpoint_comes_back_with_its_fitting_and_its_probe_queries(tiny_saved: Path, tmp_path: Path) -> None:
    record = json.loads((tiny_saved / "gistlm.json").read_text())
    (tiny_saved / "gistlm.json").write_text(json.dumps({**record, "kept": 5}))
    made = Checkpoint.load(tiny_saved, device="cpu")
    layers = made.architecture.layers
    assert torch.equal(made.fit_strengths, torch.full((layers, 2), 0.5))
    before = made.adapter_fingerprint
    made.save_pretrained(tmp_path / "same")
    assert "fitted" in load_file(tmp_path / "same" / "gist_embeddings.safetensors")
    assert Checkpoint.load(tmp_path / "same", device="cpu").adapter_fingerprint == before
    made.fit_strengths.data[:] = torch.tensor([0.25, -0.75])
    made.probe_embeddings.data = torch.randn(3, made.gist_embeddings.shape[1])
    made.save_pretrained(tmp_path / "again")
    found = Checkpoint.load(tmp_path / "again", device="cpu")
    assert torch.equal(found.fit_strengths, made.fit_strengths) and torch.equal(
        found.probe_embeddings, made.probe_embeddings
    )
    assert found.adapter_fingerprint != before
    tensors = load_file(tmp_path / "again" / "gist_embeddings.safetensors")
    for name, wrong in (("fitted", torch.zeros(layers + 1, 2)), ("observers", torch.zeros(2, 3))):
        save_file({**tensors, name: wrong}, tmp_path / "again" / "gist_embeddings.safetensors")
        with pytest.raises(ModelError, match=f"'{name}'"):
            Checkpoint.load(tmp_path / "again", device="cpu")
    record = json.loads((tmp_path / "again" / "gistlm.json").read_text())
    (tmp_path / "again" / "gistlm.json").write_text(json.dumps({**record, "kept": 0}))
    without = Checkpoint.load(tmp_path / "again", device="cpu")  # what nothing uses is not read
    assert len(without.fit_strengths) == len(without.probe_embeddings) == 0


@pytest.mark.parametrize("kind", ["mistral", "gemma3_text", "t5"])
def test_models_that_read_no_kept_tokens_are_refused(kind: str) -> None:
    with pytest.raises(UnsupportedModelError, match="set kept to 0"):
        tiny_checkpoint(kind, "paper", kept=2)


@pytest.fixture
def tiny_saved(tmp_path: Path) -> Path:
    return save_tiny_checkpoint(tmp_path / "checkpoint")
