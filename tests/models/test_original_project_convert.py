"""Weight differences in the original project's shape: added to their base, or refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from original import (
    CASES,
    byte_level,
    one_pass,
    output_ids,
    paper_mask,
    save_base,
    save_difference,
    save_legacy,
    scores,
    sentencepiece_like,
    whole_ids,
)
from safetensors.torch import load_file
from tiny import tiny_model
from transformers import AutoModelForCausalLM

from gistlm.engines.transformers import GistModel
from gistlm.errors import ModelError
from gistlm.models import original_project
from gistlm.models.original_project import convert


def test_a_difference_and_its_base_give_the_tuned_weights_and_answers(tmp_path: Path) -> None:
    diff, base, wanted = save_difference(tmp_path)
    whole = convert(str(diff), str(base), str(tmp_path / "out" / "whole"))
    got = AutoModelForCausalLM.from_pretrained(whole).state_dict()
    assert got.keys() == wanted.keys()
    for name, weight in wanted.items():
        torch.testing.assert_close(got[name], weight, atol=1e-6, rtol=0)
    assert [file.name for file in whole.parent.iterdir()] == ["whole"]
    assert list(whole.glob("*.safetensors"))
    assert not list(whole.glob("*.bin"))

    model = GistModel.from_pretrained(whole)
    ids = whole_ids(sentencepiece_like, *CASES[0][:2], 2) + output_ids(sentencepiece_like(), "oui")
    last = len(output_ids(sentencepiece_like(), "oui"))
    mask = paper_mask(ids, model.checkpoint.gist_token_ids[0])
    expected = scores(one_pass(AutoModelForCausalLM.from_pretrained(whole), ids, mask), ids, last)
    got_scores = model.score(CASES[0][1], "oui", model.compress(CASES[0][0], 2))
    torch.testing.assert_close(got_scores, expected, atol=1e-4, rtol=0)


def to_torch_files(folder: Path) -> None:
    """The folder's weights as two files of 2023, in place of its safetensors."""
    weights = list(load_file(folder / "model.safetensors").items())
    index = {}
    for number, some in enumerate((weights[::2], weights[1::2]), 1):
        name = f"pytorch_model-0000{number}-of-00002.bin"
        torch.save(dict(some), folder / name)
        index |= {key: name for key, _ in some}
    record = {"metadata": {"total_size": 0}, "weight_map": index}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(record), encoding="utf-8")
    (folder / "model.safetensors").unlink()


def test_convert_reads_the_torch_files_of_2023_and_writes_safetensors(tmp_path: Path) -> None:
    diff, base, wanted = save_difference(tmp_path)
    to_torch_files(diff)
    to_torch_files(base)
    whole = convert(str(diff), str(base), str(tmp_path / "out"))
    got = load_file(whole / "model.safetensors")
    for name, weight in wanted.items():
        torch.testing.assert_close(got[name], weight, atol=1e-6, rtol=0)
    assert not list(whole.glob("*.bin"))


def test_a_difference_is_refused_as_a_model_and_the_command_is_named(tmp_path: Path) -> None:
    diff, _, _ = save_difference(tmp_path)
    with pytest.raises(ModelError, match="gistlm convert --diff"):
        GistModel.from_pretrained(diff)
    (diff / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"holds no safetensors.*gistlm convert --diff"):
        GistModel.from_pretrained(diff)


def test_convert_refuses_what_does_not_belong_together(tmp_path: Path) -> None:
    diff, base, _ = save_difference(tmp_path)
    tuned = save_legacy(tmp_path / "tuned")
    save_base(tmp_path / "wide", hidden_size=64)
    save_base(tmp_path / "deep", num_hidden_layers=3)
    save_base(tmp_path / "other", byte_level)
    neox = tiny_model("gpt_neox", vocab_size=300)
    neox.save_pretrained(tmp_path / "neox")
    sentencepiece_like().save_pretrained(tmp_path / "neox")
    cases = [
        (tuned, base, "is no difference but a whole model"),
        (base, base, "is no checkpoint of the original project"),
        (diff, diff, "is itself a difference"),
        (diff, tuned, "embed_tokens.weight is .* so it must be"),
        (diff, tmp_path / "other", "embed_tokens.weight is .* so it must be"),
        (diff, tmp_path / "wide", "so it must be"),
        (diff, tmp_path / "deep", "only one of them has model.layers.2"),
        (diff, tmp_path / "neox", "is a llama model, the base .* a gpt_neox model"),
        (tmp_path / "nowhere", base, "there is no model at"),
        (diff, tmp_path / "nowhere", "there is no model at"),
    ]
    for some_diff, some_base, message in cases:
        with pytest.raises(ModelError, match=message):
            convert(str(some_diff), str(some_base), str(tmp_path / "out"))
        assert not (tmp_path / "out").exists()
    with pytest.raises(ModelError, match="exists already"):
        convert(str(diff), str(base), str(base))
    (tmp_path / "file").touch()
    with pytest.raises(ModelError, match="cannot write the model"):
        convert(str(diff), str(base), str(tmp_path / "file" / "out"))


def test_a_conversion_that_fails_midway_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    diff, base, _ = save_difference(tmp_path)

    def fail(self: Any, folder: Path) -> None:
        (folder / "model.safetensors").write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(original_project.Checkpoint, "save_pretrained", fail)
    with pytest.raises(ModelError, match="no space left"):
        convert(str(diff), str(base), str(tmp_path / "out" / "whole"))
    assert list((tmp_path / "out").iterdir()) == []
