"""What versions promise: older files load for ever, newer ones are refused, a gist is read by what made it alone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tiny import ENCODER_DECODERS, TESTED, save_tiny_checkpoint, tiny_model

from gistlm.engines.transformers import GistModel
from gistlm.errors import GistMismatchError, ModelError
from gistlm.gist import Gist
from gistlm.models.catalog import load_checkpoint
from gistlm.models.checkpoint import Checkpoint
from gistlm.models.config import HARMLESS, SETTINGS, SORTED, read_config, settings_fingerprint

DATA = Path(__file__).parents[1] / "files"
PROMPT = (
    "You are the help desk of a small bookshop in Lisbon. Answer in one short sentence. Opening hours are 10 to 18 on "
    "weekdays. Never promise a delivery date. Returns are free within 14 days."
)
"""Of which the gists of version 1 in tests/files were made."""


@pytest.mark.parametrize("kind", [*TESTED, *ENCODER_DECODERS])
def test_every_field_of_the_families_is_known_to_change_activations_or_not_to(kind: str) -> None:
    names = {**TESTED, **ENCODER_DECODERS}[kind][0]
    fields = set(getattr(transformers, names)().to_dict())
    assert not SETTINGS & HARMLESS and kind in SORTED
    assert fields <= SETTINGS | HARMLESS, "sort these into config.SETTINGS or HARMLESS"


def change_base(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the config.json of a tiny checkpoint's base."""
    path = folder / "base" / "config.json"
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))


def set_theta(record: dict[str, Any]) -> None:
    record["rope_parameters"]["rope_theta"] = 500_000.0


@pytest.mark.parametrize(
    "change",
    [set_theta, lambda record: record.update(rms_norm_eps=1e-3), lambda record: record.update(hidden_act="gelu")],
    ids=["rope theta", "norm epsilon", "activation"],
)
def test_a_base_whose_settings_changed_reads_no_gist_of_before(
    change: Callable[[dict[str, Any]], None], tmp_path: Path
) -> None:
    folder = save_tiny_checkpoint(tmp_path / "checkpoint")
    gist = GistModel.from_pretrained(str(folder), device="cpu").compress("be brief", 2)
    change_base(folder, change)
    with pytest.raises(ModelError, match=r"has other settings than the base that .* was trained on; name one"):
        GistModel.from_pretrained(str(folder), device="cpu")
    changed = GistModel.from_pretrained(str(folder), base=str(folder / "base"), device="cpu")
    with pytest.raises(GistMismatchError, match="compress the prompt again"):
        changed.generate("hi", gist, max_new_tokens=1)


def test_a_setting_that_changes_nothing_leaves_gists_readable(tmp_path: Path) -> None:
    folder = save_tiny_checkpoint(tmp_path / "checkpoint")
    gist = GistModel.from_pretrained(str(folder), device="cpu").compress("be brief", 2)
    change_base(folder, lambda record: record.update(attention_dropout=0.5, initializer_range=0.3))
    GistModel.from_pretrained(str(folder), device="cpu").generate("hi", gist, max_new_tokens=1)


def as_version_1(folder: Path) -> None:
    """Write a checkpoint's gistlm.json as version 1 did."""
    path = folder / "gistlm.json"
    record = json.loads(path.read_text())
    (base,) = record.pop("bases")
    del record["k"]
    record |= {"version": 1, "base": base["base"], "base_fingerprint": base["weights"]}
    path.write_text(json.dumps(record))


def test_a_checkpoint_of_version_1_loads_and_makes_the_same_gists(tmp_path: Path) -> None:
    folder = save_tiny_checkpoint(tmp_path / "checkpoint")
    gist = GistModel.from_pretrained(str(folder), device="cpu").compress("be brief", 2)
    as_version_1(folder)
    old = GistModel.from_pretrained(str(folder), device="cpu")
    assert old.compress("be brief", 2).id == gist.id
    old.checkpoint.save_pretrained(tmp_path / "again")
    assert read_config(tmp_path / "again")[0].bases[0].settings


def test_a_newer_checkpoint_is_refused_with_what_to_do(tmp_path: Path) -> None:
    folder = save_tiny_checkpoint(tmp_path / "checkpoint")
    record = json.loads((folder / "gistlm.json").read_text())
    (folder / "gistlm.json").write_text(json.dumps({**record, "version": 3}))
    with pytest.raises(ModelError, match="has checkpoint version 3; this gistlm reads versions 1 and 2, so upgrade it"):
        Checkpoint.load(folder, device="cpu")


def test_k_is_bounded_by_what_the_checkpoint_says(tmp_path: Path) -> None:
    folder = save_tiny_checkpoint(tmp_path / "checkpoint")
    record = json.loads((folder / "gistlm.json").read_text())
    assert record["k"] == {"least": 1, "most": 16}
    (folder / "gistlm.json").write_text(json.dumps({**record, "k": {"least": 2, "most": 8}}))
    assert Checkpoint.load(folder, device="cpu").placement.max_k == 8
    model = GistModel.from_pretrained(str(folder), device="cpu")
    for k in (1, 9):
        with pytest.raises(Exception, match="from 2 to 8 for this checkpoint"):
            model.compress("be brief", k)
    (folder / "gistlm.json").write_text(json.dumps({**record, "k": {"least": 1, "most": 17}}))
    with pytest.raises(ModelError, match="says that k is from 1 to 17, and it has 16 gist tokens"):
        _ = Checkpoint.load(folder, device="cpu").placement


def test_a_second_base_that_is_known_to_fit_is_taken_quietly_and_another_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = save_tiny_checkpoint(tmp_path / "checkpoint")
    other = tmp_path / "other"
    shutil.copytree(folder / "base", other)
    change_base_folder(other)
    named = Checkpoint.load(folder, base=str(other), device="cpu")
    assert "was not trained for" in caplog.text and "measure its gists" in caplog.text
    named.save_pretrained(tmp_path / "both")
    config, _ = read_config(tmp_path / "both")
    assert [base.base for base in config.bases] == [str(other), str(folder / "base")]
    caplog.clear()
    again = Checkpoint.load(tmp_path / "both", base=str(folder / "base"), device="cpu")
    assert not caplog.text and again.fingerprint != named.fingerprint


def change_base_folder(folder: Path) -> None:
    path = folder / "config.json"
    record = json.loads(path.read_text())
    set_theta(record)
    path.write_text(json.dumps(record))


@pytest.mark.parametrize("k", [1, 4])
def test_gists_of_version_1_load_and_are_read_by_the_model_that_made_them(k: int) -> None:
    model = GistModel(load_checkpoint("smollm2-135m"))
    old = Gist.load(DATA / f"version-1-k{k}.gist")
    assert (old.k, old.provenance.version) == (k, 1)
    assert Gist.from_bytes(old.to_bytes()).id == old.id
    new = model.compress(PROMPT, k)
    assert new.provenance.prompt_sha256 == old.provenance.prompt_sha256
    score, same = (model.score("When are you open?", "From 10 to 18.", gist) for gist in (old, new))
    torch.testing.assert_close(score, same, atol=0.1, rtol=0.05)
    with pytest.raises(GistMismatchError):
        model.generate("hi", old.__class__(old.keys, old.values, old.provenance.replace(version=2)), max_new_tokens=1)


def test_the_tiny_models_are_the_families() -> None:
    assert {tiny_model(kind).config.get_text_config().model_type for kind in TESTED} == set(TESTED)


def test_of_other_families_every_field_counts_but_those_known_to_be_harmless() -> None:
    known = {"model_type": "granite", "attention_multiplier": 1.0, "hidden_size": 8, "use_cache": True}
    changed = [{**known, "attention_multiplier": 0.5}, {**known, "a_new_setting": 3}]
    assert len({settings_fingerprint(each) for each in (known, *changed)}) == 3
    assert settings_fingerprint({**known, "use_cache": False, "dtype": "float32"}) == settings_fingerprint(known)
    sorted_family = {**known, "model_type": "llama"}
    assert settings_fingerprint({**sorted_family, "a_new_setting": 3}) == settings_fingerprint(sorted_family)
