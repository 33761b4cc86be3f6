"""Checkpoints in the original project's shape: recognised, read under the paper's mask, or refused."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from original import (
    CASES,
    GIST,
    TOKENIZERS,
    one_pass,
    output_ids,
    paper_mask,
    save_difference,
    save_legacy,
    scores,
    sentencepiece_like,
    whole_ids,
    whole_text,
)
from safetensors.torch import load_file, save_file
from tiny import tiny_model
from transformers import AutoModelForCausalLM, T5Config, T5ForConditionalGeneration

from gistlm.engines.transformers import GistModel
from gistlm.errors import MissingDependencyError, ModelError
from gistlm.models import original_project
from gistlm.models.catalog import is_legacy

WITH_SPECIAL = ("Mind <GIST> and <s> and </s>.", "what is <GIST>?")

# The paper's mask


@pytest.mark.parametrize("make", TOKENIZERS)
@pytest.mark.parametrize("k", [1, 2, 5])
def test_scores_through_a_gist_are_those_of_the_papers_mask_over_the_whole_string(
    tmp_path: Path, make: Callable[[], Any], k: int
) -> None:
    folder = save_legacy(tmp_path / "gist", make)
    ours, plain = GistModel.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    for instruction, text, output in CASES:
        tokenizer, prompts = ours.checkpoint.prompts.tokenizer, ours.checkpoint.prompts
        (gist,) = ours.checkpoint.gist_token_ids
        ids = whole_ids(make, instruction, text, k)
        assert ids[0] == tokenizer.bos_token_id
        assert prompts.prompt_ids(instruction) + [gist] * k + prompts.rest_ids(text) == ids
        ids += output_ids(tokenizer, output)
        last = len(output_ids(tokenizer, output))
        expected = scores(one_pass(plain, ids, paper_mask(ids, gist)), ids, last)
        got = ours.score(text, output, ours.compress(instruction, k))
        torch.testing.assert_close(got, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("make", TOKENIZERS)
def test_the_positive_control_reads_the_whole_string_with_its_gist_token(
    tmp_path: Path, make: Callable[[], Any]
) -> None:
    folder = save_legacy(tmp_path / "pos_control", make)
    ours, plain = GistModel.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    for instruction, text, output in CASES:
        outputs = output_ids(ours.checkpoint.prompts.tokenizer, output)
        ids = whole_ids(make, instruction, text, 1) + outputs
        causal = torch.ones(len(ids), len(ids), dtype=torch.bool).tril()
        expected = scores(one_pass(plain, ids, causal), ids, len(outputs))
        torch.testing.assert_close(ours.score(text, output, prompts=instruction), expected, atol=1e-4, rtol=0)


def test_the_negative_control_sees_neither_prompt_nor_gist(tmp_path: Path) -> None:
    folder = save_legacy(tmp_path / "neg_control")
    ours, plain = GistModel.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    for instruction, text, output in CASES:
        outputs = output_ids(ours.checkpoint.prompts.tokenizer, output)
        ids = whole_ids(sentencepiece_like, instruction, text, 1) + outputs
        visible = paper_mask(ids, ours.checkpoint.gist_token_ids[0])
        after = ids.index(ours.checkpoint.gist_token_ids[0]) + 1
        visible[after:, :after] = False
        expected = scores(one_pass(plain, ids, visible), ids, len(outputs))
        torch.testing.assert_close(ours.score(text, output), expected, atol=1e-4, rtol=0)


def test_a_users_text_never_becomes_a_gist_token_or_another_special_token(tmp_path: Path) -> None:
    for make in TOKENIZERS:
        prompts = GistModel.from_pretrained(save_legacy(tmp_path / make.__name__, make)).checkpoint.prompts
        special = {prompts.tokenizer.convert_tokens_to_ids(token) for token in (GIST, "<s>")}
        instruction, text = WITH_SPECIAL
        assert not special & set(prompts.prompt_ids(instruction)[1:])
        assert not special & set(prompts.rest_ids(text))


def test_the_gist_token_is_never_emitted_even_when_it_is_the_likeliest(tmp_path: Path) -> None:
    folder = save_legacy(tmp_path / "gist")
    ours = GistModel.from_pretrained(folder)
    (gist,) = ours.checkpoint.gist_token_ids
    instruction, text, _ = CASES[0]
    plain = ours.checkpoint.reader
    ids = whole_ids(sentencepiece_like, instruction, text, 3)
    mask = torch.where(paper_mask(ids, gist), 0.0, torch.finfo(torch.float32).min)[None, None]
    with torch.no_grad():
        hidden = plain.get_decoder()(torch.tensor([ids]), attention_mask=mask).last_hidden_state[0, -1]
        plain.get_output_embeddings().weight[gist] = 10 * hidden
    wanted: list[int] = []
    for _ in range(6):
        logs = one_pass(plain, ids + wanted, paper_mask(ids + wanted, gist))[-1]
        assert wanted or logs.argmax() == gist
        logs[gist] = -torch.inf
        wanted.append(int(logs.argmax()))
    answer = ours.generate(text, ours.compress(instruction, 3), max_new_tokens=6)
    assert answer == ours.checkpoint.prompts.decode(wanted)


def test_saved_again_it_is_an_ordinary_checkpoint_that_answers_the_same(tmp_path: Path) -> None:
    for make in TOKENIZERS:
        ours = GistModel.from_pretrained(save_legacy(tmp_path / make.__name__, make))
        saved = GistModel.from_pretrained(ours.checkpoint.save_pretrained(tmp_path / f"saved-{make.__name__}"))
        assert saved.checkpoint.gist_token_ids == ours.checkpoint.gist_token_ids != ()
        assert saved.checkpoint.prompts.format == ours.checkpoint.prompts.format
        instruction, text = WITH_SPECIAL
        gist = ours.compress(instruction, 4)
        assert saved.compress(instruction, 4).id == gist.id
        assert torch.equal(saved.score(text, "yes", gist), ours.score(text, "yes", gist))


# What is one


def write_json(folder: Path, **files: Any) -> Path:
    folder.mkdir()
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("files", "found"),
    [
        ({"config": {"vocab_size": 9}, "added_tokens": {GIST: 8}}, True),
        ({"config": {"vocab_size": 9}, "tokenizer": {"added_tokens": [{"id": 8, "content": GIST}]}}, True),
        (
            {
                "config": {"vocab_size": 9, "is_encoder_decoder": True},
                "tokenizer_config": {"added_tokens_decoder": {"8": {"content": GIST}}},
            },
            True,
        ),
        ({"config": {"vocab_size": 9}, "added_tokens": {GIST: 7}}, False),
        ({"config": {"vocab_size": 9}, "added_tokens": {"<PAD>": 8}, "tokenizer": {"added_tokens": []}}, False),
        ({"config": {"vocab_size": 9}}, False),
        ({"config": {"vocab_size": "9"}, "added_tokens": {GIST: 8}}, False),
        ({"config": [], "added_tokens": {GIST: 8}}, False),
        ({"config": {"vocab_size": 9}, "added_tokens": [GIST]}, False),
        ({"config": {"vocab_size": 9}, "tokenizer": {"added_tokens": [8]}}, False),
        ({"config": {"vocab_size": 9}, "tokenizer_config": {"added_tokens_decoder": {"x": {"content": GIST}}}}, False),
        ({"added_tokens": {GIST: 8}}, False),
        ({}, False),
    ],
)
def test_a_folder_is_recognised_by_its_last_vocabulary_entry_alone(
    tmp_path: Path, files: dict[str, Any], found: bool
) -> None:
    assert is_legacy(write_json(tmp_path / "folder", **files)) is found


def test_a_folder_that_holds_something_else_is_not_one_and_raises_nothing(tmp_path: Path) -> None:
    folder = write_json(tmp_path / "folder", config={"vocab_size": 9}, added_tokens={GIST: 8})
    assert is_legacy(folder)
    for content in (b"{", b"\xff", b"[" * 100_000, b"null", b""):
        (folder / "config.json").write_bytes(content)
        assert not is_legacy(folder)
    (folder / "config.json").unlink()
    (folder / "config.json").mkdir()
    assert not is_legacy(folder)
    assert not is_legacy(tmp_path / "nowhere")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_or_an_oversized_file_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_json(tmp_path / "folder", config={"vocab_size": 9}, added_tokens={GIST: 8})
    monkeypatch.setattr("gistlm.files._MAX_JSON_BYTES", 10)
    assert not is_legacy(folder)
    monkeypatch.undo()
    (folder / "config.json").unlink()
    os.mkfifo(folder / "config.json")
    assert not is_legacy(folder)


# What cannot be read


def test_an_encoder_decoder_checkpoint_answers_as_the_stock_model_does_over_its_repeated_gist_token(
    tmp_path: Path,
) -> None:
    """The shape of flan-t5-xxl-gist-1: one <GIST> at the vocabulary's end, no "Output:" in the template."""
    tokenizer = sentencepiece_like()
    tokenizer.add_special_tokens({"additional_special_tokens": [GIST]})
    config = T5Config(
        vocab_size=len(tokenizer), d_model=16, d_kv=8, d_ff=16, num_layers=2, num_heads=2, decoder_start_token_id=0,
        initializer_factor=4.0,
    )  # fmt: skip
    torch.manual_seed(0)
    stock = T5ForConditionalGeneration(config).eval()
    stock.save_pretrained(tmp_path / "t5")
    tokenizer.save_pretrained(tmp_path / "t5")
    model = GistModel.from_pretrained(tmp_path / "t5", device="cpu")

    prompts, k, gist_id = model.checkpoint.prompts, 3, len(tokenizer) - 1
    assert model.checkpoint.config.recipe == "paper" and model.checkpoint.gist_token_ids == (gist_id,)
    for instruction, text, output in CASES:
        p, r = prompts.prompt_ids(instruction), prompts.rest_ids(text)
        assert prompts.decode(p).strip() == f"Instruction: {instruction}"
        assert r[-1] == tokenizer.eos_token_id and "Output" not in prompts.decode(r)
        ids = torch.tensor([[*p, *[gist_id] * k, *r]])
        kinds = torch.tensor([0] * len(p) + [1] * k + [2] * len(r))
        seen = (kinds[:, None] <= 1) & (kinds <= 1) | (kinds[:, None] == 2) & (kinds >= 1)
        targets = prompts.output_ids(output)
        with torch.no_grad():
            states = stock.encoder(input_ids=ids, attention_mask=torch.where(seen, 0.0, -1e30)[None, None])
            logits = stock(
                encoder_outputs=states,
                attention_mask=(kinds >= 1).long()[None],
                decoder_input_ids=torch.tensor([[0, *targets[:-1]]]),
            ).logits[0]
        expected = logits.log_softmax(-1).gather(-1, torch.tensor(targets)[:, None])[:, 0]
        mine = model.score(text, output, model.compress(instruction, k=k))
        torch.testing.assert_close(mine, expected, atol=1e-4, rtol=0)


def test_a_tokenizer_and_a_model_that_disagree_are_refused(tmp_path: Path) -> None:
    folder = save_legacy(tmp_path / "gist")
    (folder / "added_tokens.json").write_text(json.dumps({GIST: 400}), encoding="utf-8")
    tiny_model("llama", vocab_size=401).save_pretrained(folder)
    assert is_legacy(folder)
    with pytest.raises(ModelError, match="the last of its 401 token ids must be <GIST>"):
        GistModel.from_pretrained(folder)


def test_damaged_weights_are_one_clear_error(tmp_path: Path) -> None:
    folder = save_legacy(tmp_path / "gist")
    weights = folder / "model.safetensors"
    whole = load_file(weights)
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ModelError):
        GistModel.from_pretrained(folder)
    save_file({name: tensor[:1].contiguous() for name, tensor in whole.items()}, weights, {"format": "pt"})
    with pytest.raises(ModelError):
        GistModel.from_pretrained(folder)


class _Trap:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


def test_no_code_in_a_torch_file_is_run(tmp_path: Path) -> None:
    folder = save_legacy(tmp_path / "gist")
    (folder / "model.safetensors").unlink()
    torch.save({"model.embed_tokens.weight": _Trap(tmp_path / "trapped")}, folder / "pytorch_model.bin")
    with pytest.raises(ModelError):
        GistModel.from_pretrained(folder)
    with pytest.raises(ModelError):
        original_project.convert(str(folder), str(save_difference(tmp_path)[1]), str(tmp_path / "out"))
    assert not (tmp_path / "trapped").exists()


def test_a_sentencepiece_tokenizer_names_the_packages_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save_legacy(tmp_path / "gist")
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.model").write_bytes(b"")
    (folder / "added_tokens.json").write_text(json.dumps({GIST: 300}), encoding="utf-8")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": 301}), encoding="utf-8")
    monkeypatch.setattr(original_project, "_is_installed", lambda package: package != "sentencepiece")
    with pytest.raises(MissingDependencyError, match="pip install sentencepiece protobuf"):
        GistModel.from_pretrained(folder)


def test_a_sentencepiece_folder_is_tokenised_as_in_its_training(tmp_path: Path) -> None:
    """Its tokenizer dropped white space around special tokens, took what follows for a start, and added BOS."""
    sentencepiece = pytest.importorskip("sentencepiece")
    pytest.importorskip("google.protobuf")
    folder = tmp_path / "gist"
    folder.mkdir()
    text = [whole_text(*CASES[0][:2], gists=0).replace("\n", " "), *("the thing in the other tin" for _ in range(20))]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(text),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=300,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        num_threads=1,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    pieces = sentencepiece.SentencePieceProcessor(str(folder / "tokenizer.model"))
    rows = pieces.vocab_size() + 1
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "</s>"}
    files = {
        "added_tokens": {GIST: rows - 1},
        "special_tokens_map": {**names, "additional_special_tokens": [GIST]},
        "tokenizer_config": {**names, "tokenizer_class": "LlamaTokenizer"},
    }
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    tiny_model("llama", vocab_size=rows, bos_token_id=1, eos_token_id=2).save_pretrained(folder)

    checkpoint = GistModel.from_pretrained(folder).checkpoint
    again = GistModel.from_pretrained(checkpoint.save_pretrained(tmp_path / "saved")).checkpoint
    for prompts in (checkpoint.prompts, again.prompts):
        for instruction, given, output in CASES:
            segments = whole_text(instruction, given, gists=1).split(GIST)
            before, after = (pieces.encode(segment.strip()) for segment in segments)
            assert prompts.prompt_ids(instruction) == [1, *before]
            assert prompts.rest_ids(given) == after
            assert prompts.output_ids(output) == [*pieces.encode(output), 2]
        assert rows - 1 not in prompts.prompt_ids(WITH_SPECIAL[0])
    assert checkpoint.gist_token_ids == again.gist_token_ids == (rows - 1,)
