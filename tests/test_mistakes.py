"""A user's mistakes in Python: each gets gistlm's own error, in one sentence, before any work is done."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny import save_tiny, save_tiny_checkpoint, tiny_checkpoint

from gistlm import GistModel
from gistlm.engines.base import Request, with_sampling
from gistlm.engines.sampling import Sampling
from gistlm.errors import GistlmError, InputError, ModelError
from gistlm.models.catalog import load_checkpoint
from gistlm.models.checkpoint import Checkpoint
from gistlm.models.loading import check_device, load_base


@cache
def model() -> GistModel:
    return GistModel(tiny_checkpoint("llama"))


@pytest.mark.parametrize(
    "options",
    [
        {"max_new_tokens": "5"}, {"max_new_tokens": 2.5}, {"max_new_tokens": True}, {"temperature": None},
        {"temperature": float("nan")}, {"stop": None}, {"stop": 5}, {"stop": [""]}, {"top_k": 1.5}, {"seed": 1.5},
        {"seed": -1}, {"top_p": "1"},
    ],
)  # fmt: skip
def test_sampling_options_of_a_wrong_kind_are_named(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=next(iter(options))):
        Sampling(**options)


@pytest.mark.parametrize("inputs", [5, None, {"role": "user"}])
def test_inputs_that_are_no_text_are_refused(inputs: Any) -> None:
    with pytest.raises(InputError, match="inputs"):
        model().generate(inputs)


def test_a_path_is_no_gist() -> None:
    with pytest.raises(InputError, match=r"Gist\.load"):
        model().generate("hi", "x.gist")  # type: ignore[call-overload]
    with pytest.raises(InputError, match="prompt must be a string"):
        Request("hi", prompt=5)  # type: ignore[arg-type]


@pytest.mark.parametrize("prompt", [None, 5, "a\ud800b"])
def test_a_prompt_that_is_no_text_is_refused(prompt: Any) -> None:
    with pytest.raises(InputError):
        model().compress(prompt)


@pytest.mark.parametrize("j", [1.0, "1", True, 0, 9])
def test_a_gist_is_shortened_to_a_whole_number_of_tokens(j: Any) -> None:
    with pytest.raises(InputError, match="shorten"):
        model().compress("words", 2).shorten(j)


def test_a_gist_takes_dtypes_by_name_and_refuses_others() -> None:
    gist = model().compress("words", 2)
    assert gist.to("bfloat16").dtype == torch.bfloat16
    for wrong in (torch.int8, "int8", "nowhere"):
        with pytest.raises(InputError):
            gist.to(wrong)


def test_a_dtype_that_no_gist_has_is_refused_before_anything_is_loaded() -> None:
    with pytest.raises(InputError, match="dtype"):
        GistModel.from_pretrained("no such model", dtype=torch.int8)


def test_an_unknown_device_is_refused_by_name() -> None:
    with pytest.raises(InputError, match="'foo'"):
        check_device("foo")


@pytest.mark.parametrize(
    "name", ["~nobody-of-that-name/x", "package:a.b/x.gguf", "package:gistlm/none.gguf", "package:/"]
)
def test_names_of_nothing_are_refused_in_one_sentence(name: str) -> None:
    with pytest.raises(GistlmError) as caught:
        load_base(name, "cpu", None) if name.startswith("package:") else load_checkpoint(name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("base", [5, None])
def test_a_checkpoint_whose_base_is_no_name_is_damaged(base: Any, tmp_path: Path) -> None:
    folder = save_tiny_checkpoint(tmp_path / "checkpoint")
    record = json.loads((folder / "gistlm.json").read_text())
    (folder / "gistlm.json").write_text(json.dumps({**record, "bases": [{**record["bases"][0], "base": base}]}))
    with pytest.raises(ModelError, match="damaged"):
        Checkpoint.load(folder, device="cpu")


def test_a_base_that_brings_its_own_code_is_not_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = save_tiny(tmp_path / "base")
    config = json.loads((folder / "config.json").read_text())
    own = {"model_type": "mine", "auto_map": {"AutoConfig": "code.Config", "AutoModelForCausalLM": "code.Model"}}
    (folder / "config.json").write_text(json.dumps(config | own))
    (folder / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(ModelError):
        load_base(str(folder), "cpu", None)
    assert not (tmp_path / "ran").exists()
    assert "[y/N]" not in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_a_configuration_that_asks_for_tuples_changes_nothing(tmp_path: Path, kind: str) -> None:
    folder = save_tiny_checkpoint(tmp_path / "checkpoint", kind)
    plain = GistModel.from_pretrained(folder, device="cpu")
    config = json.loads((folder / "base" / "config.json").read_text())
    (folder / "base" / "config.json").write_text(json.dumps({**config, "return_dict": False}))
    asking = GistModel.from_pretrained(folder, device="cpu")
    gists = [model.compress("Answer in rhymes.", 2) for model in (plain, asking)]
    assert gists[0].id == gists[1].id
    assert plain.generate("hi", gists[0], max_new_tokens=4) == asking.generate("hi", gists[1], max_new_tokens=4)
    assert torch.equal(plain.score("hi", "you", gists[0]), asking.score("hi", "you", gists[1]))


def test_a_decoders_start_may_stand_in_either_configuration_and_must_in_one(tmp_path: Path) -> None:
    folder = save_tiny_checkpoint(tmp_path / "checkpoint", "t5")
    scores = GistModel.from_pretrained(folder, device="cpu").score("hi", "you")
    paths = [folder / "base" / name for name in ("config.json", "generation_config.json")]
    own, generation = (json.loads(path.read_text()) for path in paths)
    paths[0].write_text(json.dumps({**own, "decoder_start_token_id": None}))
    paths[1].write_text(json.dumps({**generation, "decoder_start_token_id": own["decoder_start_token_id"]}))
    assert torch.equal(GistModel.from_pretrained(folder, device="cpu").score("hi", "you"), scores)
    paths[1].write_text(json.dumps({**generation, "decoder_start_token_id": None}))
    with pytest.raises(ModelError, match=r"write decoder_start_token_id into its config\.json"):
        GistModel.from_pretrained(folder, device="cpu")


@pytest.mark.parametrize("pickled", ["pytorch_model.bin", "pytorch_model-00001-of-00001.bin"])
def test_a_base_with_only_pickled_weights_is_not_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pickled: str
) -> None:
    folder = save_tiny(tmp_path / "base")
    torch.save(load_file(folder / "model.safetensors"), folder / pickled)
    (folder / "model.safetensors").unlink()
    opened: list[Any] = []
    monkeypatch.setattr(torch, "load", lambda *args, **options: opened.append(args))
    with pytest.raises(ModelError, match=r"no pickled weights \(pytorch_model.bin\).*save_pretrained.*gistlm convert"):
        load_base(str(folder), "cpu", None)
    assert opened == []


def test_tokens_of_a_batch_are_counted_without_the_padding_after_a_stop_string() -> None:
    request = Request("hello there")
    text = model().generate("hello there", max_new_tokens=6)
    stop = text[: max(1, len(text) // 3)]
    sampling = Sampling(max_new_tokens=6, stop=stop)
    alone = model().complete(with_sampling([request], sampling))[0]
    longer = next(
        word for word in ("other", "words", "go", "on") if stop not in model().generate(word, max_new_tokens=6)
    )
    together = model().complete(with_sampling([request, Request(longer)], sampling))[0]
    assert together.new_tokens == alone.new_tokens
