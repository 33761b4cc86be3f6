"""What is refused before a model is loaded: just what the loaded model would refuse, with the same words."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import CONTEXT, save_tiny_checkpoint, tiny_checkpoint, tiny_tokenizer
from transformers import AutoTokenizer

from gistlm import Gist, GistModel
from gistlm.cli.preflight import Preflight
from gistlm.errors import GistMismatchError, InputError, PromptTooLongError
from gistlm.gist_file import GistFile
from gistlm.models.tokenizer_file import TokenizerFile

KINDS = [("llama", "frozen"), ("llama", "paper"), ("gpt2", "frozen"), ("t5", "frozen"), ("t5", "paper")]


@pytest.fixture(scope="module", params=KINDS, ids="-".join)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "checkpoint", *request.param)


@pytest.fixture(scope="module")
def model(folder: Path) -> GistModel:
    return GistModel.from_pretrained(folder, device="cpu")


@pytest.fixture(scope="module")
def files(folder: Path) -> Preflight:
    found = Preflight.of(str(folder))
    assert found is not None and found.prompts is not None
    return found


def as_file(gist: Gist) -> GistFile:
    return GistFile.from_bytes(gist.to_bytes())


def test_a_gist_of_the_checkpoint_is_taken_and_another_models_is_refused_as_the_model_refuses_it(
    model: GistModel, files: Preflight
) -> None:
    files.check_gist(as_file(model.compress("Answer in rhymes.", 3)))
    foreign = GistModel(tiny_checkpoint("qwen3")).compress("Answer in rhymes.", 3)
    with pytest.raises(GistMismatchError) as early:
        files.check_gist(as_file(foreign))
    with pytest.raises(GistMismatchError) as late:
        model.generate("hi", foreign)
    if model.checkpoint.config.recipe == "frozen":
        assert str(early.value) == str(late.value)
    else:
        said, _, own = str(late.value).partition(model.checkpoint.fingerprint[:12])
        assert str(early.value) == f"{said}which has another{own}"


def test_a_gist_is_not_judged_by_another_base_than_the_recorded_one(folder: Path) -> None:
    foreign = GistModel(tiny_checkpoint("qwen3")).compress("Answer in rhymes.", 3)
    other = Preflight.of(str(folder), base=str(folder / "base" if (folder / "base").exists() else folder))
    assert other is not None
    other.check_gist(as_file(foreign))


@pytest.mark.parametrize("k", [1, 16])
@pytest.mark.parametrize("gap", [-2, -1, 0, 1, 2])
def test_a_prompt_is_too_long_before_loading_when_it_is_afterwards(
    model: GistModel, files: Preflight, k: int, gap: int
) -> None:
    room = CONTEXT - k - 1 - model.count_tokens("x") + 1
    prompt = "x" * (room + gap)  # a token each
    assert outcome(files.check_prompt, prompt, k) == outcome(model.compress, prompt, k)


@pytest.mark.parametrize("before", ["gist", "prompt", "nothing"])
@pytest.mark.parametrize("gap", [-8, 0, 8])
def test_a_request_is_too_long_before_loading_when_it_is_afterwards(
    model: GistModel, files: Preflight, before: str, gap: int
) -> None:
    prompt = "Answer in rhymes." if before == "prompt" else None
    gist = model.compress("Answer in rhymes.", 3) if before == "gist" else None
    prompts = model.checkpoint.prompts
    used = 4 + (len(prompts.request_ids(prompt, "x")) if gist is None else gist.end + len(prompts.rest_ids("x")))
    text = "x" * (CONTEXT - used + 1 + gap)
    late = outcome(lambda: model.generate(text, gist, prompts=prompt, max_new_tokens=4))
    early = outcome(lambda: files.check_request(text, prompt, None if gist is None else as_file(gist), 4))
    assert early == late
    assert (late is None) == (gap <= 0 or model.checkpoint.architecture.encodes)


@pytest.mark.parametrize("k", [0, 17, True, 2.0])
def test_an_impossible_k_and_an_empty_prompt_are_refused_in_the_models_words(
    model: GistModel, files: Preflight, k: Any
) -> None:
    assert outcome(files.check_prompt, "a prompt", k) == outcome(model.compress, "a prompt", k) is not None
    assert outcome(files.check_prompt, "  ", 1) == outcome(model.compress, "  ", 1) is not None


def test_what_is_not_on_this_machine_or_says_too_little_is_left_to_the_model(tmp_path: Path) -> None:
    assert Preflight.of("nobody/such-a-checkpoint") is None
    folder = save_tiny_checkpoint(tmp_path / "checkpoint")
    gist = as_file(GistModel(tiny_checkpoint("qwen3")).compress("words", 2))
    (folder / "base" / "tokenizer.json").unlink()
    files = Preflight.of(str(folder))
    assert files is not None
    files.check_gist(gist)
    files.check_prompt("x" * 10_000, 4)
    files.check_request("x" * 10_000, None, gist, 10)
    with pytest.raises(InputError):
        files.placement.check_k(17)
    (folder / "gist_embeddings.safetensors").write_bytes(b"damaged")
    assert Preflight.of(str(folder)) is None


def test_a_configuration_that_names_no_context_refuses_no_length(tmp_path: Path) -> None:
    folder = save_tiny_checkpoint(tmp_path / "checkpoint")
    path = folder / "base" / "config.json"
    record = json.loads(path.read_text())
    for said in ({}, {"max_position_embeddings": "many"}, {"max_position_embeddings": 0}):
        path.write_text(json.dumps({**{k: v for k, v in record.items() if k != "max_position_embeddings"}, **said}))
        files = Preflight.of(str(folder))
        assert files is not None
        files.check_prompt("x" * 10_000, 4)
    path.write_text(json.dumps({**record, "text_config": {"max_position_embeddings": 64}}))
    files = Preflight.of(str(folder))
    assert files is not None
    with pytest.raises(PromptTooLongError, match="room for 59"):
        files.check_prompt("x" * 100, 4)


# The tokenizer's file


@cache
def tokenizers() -> tuple[Any, TokenizerFile]:
    with TemporaryDirectory() as folder:
        tiny_tokenizer().save_pretrained(folder)
        alone = TokenizerFile.load(Path(folder))
        assert alone is not None
        return AutoTokenizer.from_pretrained(folder), alone


def texts() -> Iterator[Any]:
    yield st.text()
    yield st.lists(st.sampled_from(["<|im_start|>", "<|im_end|>", "<|endoftext|>", "system\n", " the", "x"])).map(
        "".join
    )


@settings(max_examples=200)
@given(st.one_of(*texts()))
def test_ids_are_those_of_transformers(text: str) -> None:
    stock, alone = tokenizers()
    text = text.encode(errors="replace").decode()
    ids = stock(text, add_special_tokens=False, split_special_tokens=True)["input_ids"] if text else []
    assert alone(text, split_special_tokens=True)["input_ids"] == ids
    assert alone(text)["input_ids"] == stock(text, add_special_tokens=False)["input_ids"]
    assert alone.decode(ids) == stock.decode(ids, skip_special_tokens=True)


def test_a_chat_templates_text_is_that_of_transformers(tmp_path: Path) -> None:
    template = (
        "{{ bos_token }}{%- for message in messages %}\n    {% if loop.index > 4 %}{% break %}{% endif %}\n"
        "{{ message | tojson }}{{ tools }}{{ message['content'] | trim }}{% endfor %}{{ pad_token }}"
        "{% if add_generation_prompt %}{{ strftime_now('%Y') }}{% endif %}"
    )
    given = {"tokenize": False, "add_generation_prompt": True, "strftime_now": lambda form: form}
    chat = [{"role": "user", "content": text} for text in (" a ", "\u00e9<b>\n", "", "x", "y", "z")]
    tiny_tokenizer(template).save_pretrained(tmp_path)
    stock, alone = AutoTokenizer.from_pretrained(tmp_path), TokenizerFile.load(tmp_path)
    assert alone is not None
    assert alone.apply_chat_template(chat, **given) == stock.apply_chat_template(chat, **given)
    (tmp_path / "chat_template.jinja").unlink()
    bare = TokenizerFile.load(tmp_path)
    assert bare is not None
    with pytest.raises(ValueError, match="no chat template"):
        bare.apply_chat_template(chat, **given)


@pytest.mark.parametrize("fault", ["several", "listed", "unknown tag", "other names"])
def test_a_chat_template_that_the_files_leave_open_is_left_to_transformers(tmp_path: Path, fault: str) -> None:
    tiny_tokenizer().save_pretrained(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    if fault == "several":
        (tmp_path / "additional_chat_templates").mkdir()
    elif fault == "listed":
        (tmp_path / "chat_template.jinja").unlink()
        named = [{"name": "default", "template": "x"}]
        path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": named}))
    elif fault == "unknown tag":
        (tmp_path / "chat_template.jinja").write_text("{% generation %}x{% endgeneration %}")
    else:
        (tmp_path / "special_tokens_map.json").write_text(json.dumps({"eos_token": "<|endoftext|>"}))
    assert TokenizerFile.load(tmp_path) is None


def test_vocabulary_and_special_tokens_are_those_of_transformers() -> None:
    stock, alone = tokenizers()
    assert alone.get_vocab() == stock.get_vocab()
    assert alone.unk_token_id == stock.unk_token_id
    assert {index: token.content for index, token in alone.added_tokens_decoder.items()} == {
        index: token.content for index, token in stock.added_tokens_decoder.items()
    }
    for token in ("<|im_start|>", "the", "no such token"):
        assert alone.convert_tokens_to_ids(token) == stock.convert_tokens_to_ids(token)


@pytest.mark.parametrize(
    "kind", ["GPTNeoXTokenizer", "LlamaTokenizer", "GPT2Tokenizer", "GemmaTokenizer", "Mine", None]
)
def test_a_tokenizer_that_transformers_has_a_class_for_is_left_to_it(tmp_path: Path, kind: str | None) -> None:
    """Its class may add tokens and rules that no file names."""
    tiny_tokenizer().save_pretrained(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "tokenizer_class": kind}))
    assert TokenizerFile.load(tmp_path) is None


@pytest.mark.parametrize(
    ("file", "record"),
    [
        ("tokenizer_config.json", {"pad_token": "<|more|>"}),
        ("tokenizer_config.json", {"extra_special_tokens": ["<|more|>"]}),
        ("tokenizer_config.json", {"extra_special_tokens": {"image": "<|more|>"}}),
        ("tokenizer_config.json", {"added_tokens_decoder": {"300": {"content": "<|more|>"}}}),
        ("special_tokens_map.json", {"cls_token": {"content": "<|more|>"}}),
        ("added_tokens.json", {"<|more|>": 300}),
        ("tokenizer_config.json", None),
        ("tokenizer.json", None),
        ("tokenizer.json", {}),
    ],
    ids=str,
)
def test_a_tokenizer_to_which_other_files_add_is_left_to_transformers(
    tmp_path: Path, file: str, record: dict[str, Any] | None
) -> None:
    tiny_tokenizer().save_pretrained(tmp_path)
    assert TokenizerFile.load(tmp_path) is not None
    path = tmp_path / file
    if record is None:
        path.write_text("{")
    else:
        known = json.loads(path.read_text()) if path.exists() and record else {}
        path.write_text(json.dumps({**known, **record}))
    assert TokenizerFile.load(tmp_path) is None


def outcome(call: Any, *arguments: Any) -> str | None:
    """What a call refuses its arguments with, or None."""
    try:
        call(*arguments)
    except InputError as error:
        return f"{type(error).__name__}: {error}"
    return None
