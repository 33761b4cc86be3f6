"""What a base's own generation_config.json asks for never changes an answer; its ending tokens still end answers."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import prepared_batch, save_tiny, tiny_checkpoint, tiny_tokenizer
from transformers import CompileConfig, GenerationConfig

from gistlm.engines.base import Request, with_sampling
from gistlm.engines.sampling import Sampling
from gistlm.engines.transformers import GistModel
from gistlm.models.checkpoint import Checkpoint, CheckpointOptions
from gistlm.models.config import Recipe

KINDS = ["llama", "t5"]
LETTERS = list(range(3, 100))
"""Ids of the tiny tokenizer."""
CHANGING: dict[str, Any] = {
    "max_length": 3, "max_new_tokens": 1, "min_length": 40, "min_new_tokens": 40, "early_stopping": True,
    "max_time": 1e-9, "stop_strings": ["a", "e", " "], "do_sample": True, "num_beams": 3, "use_mtp": True,
    "use_cache": False, "cache_implementation": "static", "cache_config": {"backend": "none"}, "max_cache_len": 4,
    "temperature": 9.0, "top_k": 1, "top_p": 0.01, "min_p": 0.9, "top_h": 0.1, "typical_p": 0.1,
    "epsilon_cutoff": 0.5, "eta_cutoff": 0.5, "repetition_penalty": 9.0, "encoder_repetition_penalty": 9.0,
    "length_penalty": -9.0, "no_repeat_ngram_size": 1, "bad_words_ids": [[index] for index in LETTERS],
    "renormalize_logits": True, "forced_bos_token_id": 7, "forced_eos_token_id": 7, "remove_invalid_values": True,
    "exponential_decay_length_penalty": (0, 50.0), "suppress_tokens": LETTERS, "begin_suppress_tokens": LETTERS,
    "sequence_bias": [[[7], 50.0]], "token_healing": True, "guidance_scale": 3.0,
    "watermarking_config": {"bias": 50.0}, "num_return_sequences": 2, "output_attentions": True,
    "output_hidden_states": True, "output_scores": True, "output_logits": True, "return_dict_in_generate": True,
    "pad_token_id": 7, "bos_token_id": 7, "encoder_no_repeat_ngram_size": 1, "is_assistant": True,
    "num_assistant_tokens": 3, "num_assistant_tokens_schedule": "heuristic", "assistant_confidence_threshold": 1.0,
    "prompt_lookup_num_tokens": 2, "max_matching_ngram_size": 1, "assistant_early_exit": 1,
    "assistant_lookbehind": 1, "target_lookbehind": 1, "assistant_ensemble_weight": 0.5,
    "speculation_type": "dflash", "compile_config": CompileConfig(), "disable_compile": True,
    "continuous_batching_config": {"max_batch_tokens": 1}, "low_memory": True, "penalty_alpha": 0.9,
    "dola_layers": "low", "diversity_penalty": 9.0, "num_beam_groups": 3, "constraints": [7],
    "force_words_ids": [[7]], "prefill_chunk_size": 1, "custom_entry": 7,
}  # fmt: skip
"""A value for every field that would change or break generation, or would if others were set too."""
COUNTING = {"eos_token_id", "decoder_start_token_id"}
"""The fields that do count."""


@cache
def model(kind: str) -> GistModel:
    return GistModel(tiny_checkpoint(kind))


def requests(kind: str) -> list[Request]:
    """A gist, a full prompt and neither."""
    gist = model(kind).compress("be brief and kind", 3)
    return [Request("hello there", gist), Request("hello there", prompt="be brief and kind"), Request("hm")]


def answers(kind: str) -> dict[str, Any]:
    """Greedy and sampled answers, and a stream, with all that they say of themselves."""
    asked = requests(kind)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return {
            "complete": [
                asdict(done)
                for sampling in (
                    Sampling(max_new_tokens=8),
                    Sampling(max_new_tokens=8, temperature=0.9, top_p=0.95, top_k=40, seed=3),
                    Sampling(max_new_tokens=8, stop="e"),
                )
                for done in model(kind).complete(with_sampling(asked, sampling))
            ],
            "streamed": ["".join(model(kind).stream(each.input, each.gist, prompt=each.prompt, max_new_tokens=8))
                         for each in asked],
        }  # fmt: skip


@cache
def plain(kind: str) -> dict[str, Any]:
    """The answers without a generation config of the base's own."""
    return answers(kind)


@pytest.fixture
def base_config(request: pytest.FixtureRequest) -> Iterator[GenerationConfig]:
    """The reader's own config of that kind, put back as it was."""
    reader = model(request.getfixturevalue("kind")).checkpoint.reader
    own, reader.generation_config = reader.generation_config, GenerationConfig(eos_token_id=2, bos_token_id=0)
    yield reader.generation_config
    reader.generation_config = own


def test_every_field_has_a_value_that_would_change_something() -> None:
    fields = {name for name in vars(GenerationConfig()) if not name.startswith("_")} - {"transformers_version"}
    assert fields == set(CHANGING) - {"custom_entry"} | COUNTING


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("field", CHANGING)
def test_a_field_of_the_bases_generation_config_changes_no_answer(
    kind: str, field: str, base_config: GenerationConfig
) -> None:
    expected = plain(kind)
    setattr(base_config, field, CHANGING[field])
    assert answers(kind) == expected
    assert getattr(base_config, field) is CHANGING[field]  # it is only not looked at


@pytest.mark.parametrize("kind", KINDS)
def test_all_fields_together_change_no_answer(kind: str, base_config: GenerationConfig) -> None:
    expected = plain(kind)
    for field, value in CHANGING.items():
        setattr(base_config, field, value)
    assert answers(kind) == expected


@pytest.mark.parametrize("kind", KINDS)
def test_a_token_that_ends_the_bases_texts_ends_answers_and_is_no_part_of_them(
    kind: str, base_config: GenerationConfig
) -> None:
    asked, decode = requests(kind)[:1], model(kind).checkpoint.prompts.decode
    ids = model(kind)._generate(prepared_batch(model(kind), asked, 8), [Sampling(max_new_tokens=8)])[0, -8:].tolist()
    base_config.eos_token_id = [2, ids[4]]
    end = ids.index(ids[4])
    [cut] = model(kind).complete(with_sampling(asked, Sampling(max_new_tokens=8)))
    assert (cut.text, cut.finish_reason, cut.new_tokens) == (decode(ids[:end]), "stop", end + 1)
    pieces = model(kind).stream(asked[0].input, asked[0].gist, max_new_tokens=8)
    assert "".join(pieces) == cut.text


def test_a_model_that_nothing_ends_answers_to_the_last_token(monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = tiny_checkpoint("llama")
    checkpoint.prompts.output_end_ids = []
    checkpoint.reader.generation_config.eos_token_id = None
    done = GistModel(checkpoint).complete(
        with_sampling([Request("hm"), Request("a longer one")], Sampling(max_new_tokens=5))
    )
    assert [(each.finish_reason, each.new_tokens) for each in done] == [("length", 5)] * 2


def test_a_decoder_starts_from_the_token_that_only_the_generation_config_names() -> None:
    named, plain_one = GistModel(tiny_checkpoint("t5")), model("t5")
    config = named.checkpoint.reader.config
    named.checkpoint.reader.generation_config.decoder_start_token_id = config.decoder_start_token_id
    config.decoder_start_token_id = None
    assert named.generate("hello", max_new_tokens=6) == plain_one.generate("hello", max_new_tokens=6)


HARMFUL = {
    "repetition_penalty": 9.0, "no_repeat_ngram_size": 1, "num_beams": 3, "return_dict_in_generate": True,
    "do_sample": True, "temperature": 5.0, "top_k": 2, "min_new_tokens": 40, "eos_token_id": 2,
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("recipe", ["frozen", "paper"])
def test_a_base_folder_with_a_harmful_generation_config_answers_as_one_without_and_is_saved_as_it_is(
    kind: str, recipe: str, tmp_path: Path
) -> None:
    folder = save_tiny(tmp_path / "base", kind)
    options = CheckpointOptions(Recipe(recipe), max_k=4, lora_rank=4 if recipe == "frozen" else None)
    texts = []
    for settings in ({"eos_token_id": 2}, HARMFUL):
        (folder / "generation_config.json").write_text(json.dumps(settings))
        loaded = GistModel(Checkpoint.create(str(folder), options, "cpu"))
        gist = loaded.compress("be brief", 2)
        streamed = "".join(loaded.stream("hm", gist, max_new_tokens=6))
        texts.append([*loaded.generate(["hm"] * 2, [gist, None], max_new_tokens=6), streamed])
    assert texts[0] == texts[1]
    saved = loaded.checkpoint.save_pretrained(tmp_path / "saved")
    if recipe == "paper":
        written = json.loads((saved / "generation_config.json").read_text())
        assert {name: written[name] for name in HARMFUL} == HARMFUL


def test_a_stream_leaves_the_readers_generation_config_alone_while_it_runs() -> None:
    loaded = GistModel(tiny_checkpoint("llama"))
    own = loaded.checkpoint.reader.generation_config
    pieces = loaded.stream("hello", max_new_tokens=6)
    next(pieces)
    assert loaded.checkpoint.reader.generation_config is own
    assert "".join(pieces) is not None


def test_a_generation_shares_the_readers_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = GistModel(tiny_checkpoint("llama"))
    before = loaded.generate("hello", max_new_tokens=6)
    with torch.no_grad():
        for weight in loaded.checkpoint.reader.parameters():
            weight.mul_(-1)
    assert loaded.generate("hello", max_new_tokens=6) != before
    assert len(tiny_tokenizer()) == loaded.checkpoint.reader.config.vocab_size
