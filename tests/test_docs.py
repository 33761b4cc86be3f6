"""What README and docs/ say is what the code does: examples run, commands exist, names and drawings match."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
import shlex
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import yaml
from fake_engine import FAKE
from safetensors import safe_open
from tiny import save_tiny, tiny_checkpoint
from typer.core import TyperGroup
from typer.main import get_command
from typer.testing import CliRunner

from gistlm import GistModel
from gistlm.cli.app import app
from gistlm.cli.options import DEFAULT_MODEL
from gistlm.data.rows import read_rows
from gistlm.data.sources import load_sources
from gistlm.engines.sampling import Sampling
from gistlm.gisting.mask import cross_attention_mask, decoder_mask, encoder_mask
from gistlm.gisting.placement import Condition, Part
from gistlm.training import loop
from gistlm.training.config import TrainConfig

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LINKING = [*PAGES, *(ROOT / name for name in ("CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/README.md"))]
LINKING += sorted((ROOT / "checkpoints").glob("*/README.md"))
ROW = '{"prompt": "Answer in one word, %d.", "input": "What colour is the sky?", "output": "Blue."}\n'


def blocks(page: Path, *languages: str) -> list[str]:
    """A page's code blocks in some languages."""
    found = re.findall(r"^```(\w+)\n(.*?)^```$", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    return [body for language, body in found if language in languages]


def commands(page: Path) -> list[list[str]]:
    """The arguments of every `gistlm` command in a page's shell blocks."""
    found = []
    for block in blocks(page, "bash", "console", "sh"):
        for line in block.replace("\\\n", " ").splitlines():
            for part in line.removeprefix("$ ").split(" | "):
                words = shlex.split(part, comments=True)
                if words[:1] == ["gistlm"]:
                    found.append(words[1:])
    return found


def anchors(page: Path) -> set[str]:
    """The names that links give a page's headings: small letters, digits and underscores, with hyphens for spaces."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def table(page: str, heading: str, number: int = 0) -> list[str]:
    """The first column of a table under a heading of docs/PAGE, without backticks."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    section = re.split(r"^#+ ", text.partition(f"# {heading}\n")[2], maxsplit=1, flags=re.MULTILINE)[0]
    rows = re.findall(r"(?:^\|.*\n)+", section, re.MULTILINE)[number].splitlines()[2:]
    return [row.split("|")[1].strip().strip("`") for row in rows]


def script(name: str) -> ModuleType:
    """A script in docs/ as a module."""
    sys.path.insert(0, str(ROOT / "docs"))  # figures.py imports tables.py
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny stock model."""
    return save_tiny(tmp_path_factory.mktemp("docs") / "base")


@pytest.fixture
def reader(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a reader who follows the pages: a prompt, rows, a recipe, the repository's recipes."""
    (tmp_path / "prompt.txt").write_text("You answer for a shop. Returns are free for 30 days.\n", encoding="utf-8")
    (tmp_path / "my_rows.jsonl").write_text("".join(ROW % number for number in range(12)), encoding="utf-8")
    recipe = yaml.safe_load(blocks(ROOT / "docs" / "training.md", "yaml")[0])
    recipe |= {"base": str(base), "batch_size": 2, "lora_rank": 2, "validation_rows": 2, "device": "cpu"}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=lambda page: page.name)
def test_the_python_examples_of_a_page_run_in_order(page: Path, reader: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load = GistModel.from_pretrained

    def from_pretrained(name_or_path: str | Path, *args: Any, **options: Any) -> GistModel:
        if name_or_path == DEFAULT_MODEL:
            return GistModel(tiny_checkpoint())
        return load(name_or_path, *args, **options)

    monkeypatch.setattr(GistModel, "from_pretrained", from_pretrained)
    names: dict[str, Any] = {}
    for number, block in enumerate(blocks(page, "python"), 1):
        exec(compile(block, f"{page.name}, python block {number}", "exec"), names)


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)], ids=lambda page: page.name)
def test_the_commands_of_a_page_run_in_order(page: Path, reader: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_training(config: Any, callbacks: Any) -> Path:
        assert load_sources(config.data, config.seed)
        folder = Path(config.output)
        folder.mkdir(parents=True)
        (folder / "training.json").write_text('{"validation": [], "tokens": 0}')
        return folder

    monkeypatch.setenv("GISTLM_ENGINE", FAKE)
    monkeypatch.setattr(loop, "train", no_training)
    group = get_command(app)
    assert isinstance(group, TyperGroup)
    for arguments in commands(page):
        if arguments[0] in ("convert", "eval", "report"):  # need real models or their results: options are checked only
            group.commands[arguments[0]].make_context(arguments[0], arguments[1:])
            continue
        result = CliRunner().invoke(app, arguments, input="Hello.\n")
        assert result.exit_code == 0, f"gistlm {shlex.join(arguments)}: {result.output}"


@pytest.mark.parametrize("page", LINKING, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_a_page_links_to_exists(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if target.startswith(("http://", "https://")):
            continue
        file, _, anchor = target.partition("#")
        found = page.parent / file if file else page
        assert found.exists(), f"{page.name} links to {target}"
        assert not anchor or anchor in anchors(found), f"{page.name} links to {target}, and no heading is called so"


@pytest.mark.parametrize("name", ["tables", "figures", "picture"])
def test_the_generated_tables_figures_and_picture_are_current(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", [f"{name}.py", "--check"])
    script(name).main()


def test_a_stale_table_fails_the_check_and_is_written_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    current = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    page = tmp_path / "training.md"
    page.write_text(current.replace("Optimiser steps", "Something else"), encoding="utf-8")
    tables = script("tables")
    monkeypatch.setattr(tables, "DOCS", tmp_path)
    monkeypatch.setattr("sys.argv", ["tables.py", "--check"])
    with pytest.raises(SystemExit, match=r"training\.md"):
        tables.main()
    monkeypatch.setattr("sys.argv", ["tables.py"])
    tables.main()
    assert page.read_text(encoding="utf-8") == current


def test_a_stale_picture_fails_the_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture = script("picture")
    (tmp_path / "cache.svg").write_text("<svg/>")
    monkeypatch.setattr(picture, "PICTURE", tmp_path / "cache.svg")
    monkeypatch.setattr("sys.argv", ["picture.py", "--check"])
    with pytest.raises(SystemExit, match=r"cache\.svg is stale"):
        picture.main()


def test_the_artefact_page_names_exactly_what_a_gist_file_holds(tmp_path: Path) -> None:
    gist = GistModel(tiny_checkpoint(kept=15)).compress("Answer in French.", k=2)
    with safe_open(gist.save(tmp_path / "x.gist"), "pt") as file:
        metadata, tensors = file.metadata(), list(file.keys())
    assert sorted(table("artefact.md", "Metadata")) == sorted(metadata)
    assert sorted(table("artefact.md", "Metadata", 1)) == sorted(json.loads(metadata["gist"]))
    encoders = GistModel(tiny_checkpoint("t5")).compress("Answer in French.", k=2)
    with safe_open(encoders.save(tmp_path / "y.gist"), "pt") as file:
        of_an_encoder = sorted(name for name in set(file.keys()) if not name.startswith("layers."))
    assert table("artefact.md", "Tensors") == sorted(name for name in tensors if ".0." in name) + of_an_encoder


def test_the_content_hash_is_what_the_artefact_page_says() -> None:
    gist = GistModel(tiny_checkpoint(kept=15)).compress("Answer in French.", k=2)
    parts = [json.dumps(gist.provenance.model_dump(exclude={"version"}), sort_keys=True).encode()]
    tensors = {f"layers.{layer}.key": key for layer, key in enumerate(gist.keys)}
    tensors |= {f"layers.{layer}.value": value for layer, value in enumerate(gist.values)}
    for name in sorted(tensors):
        parts.append(f"{name} {tensors[name].dtype} {list(tensors[name].shape)}".encode())
        parts.append(tensors[name].numpy().tobytes())
    assert hashlib.sha256(b"".join(len(part).to_bytes(8, "little") + part for part in parts)).hexdigest() == gist.id


def test_the_artefact_page_names_exactly_what_a_trained_checkpoint_holds(reader: Path) -> None:
    settings = ["--set", "steps=1", "--set", "save_every=1"]
    result = CliRunner().invoke(app, ["train", "mine.yaml", *settings])
    assert result.exit_code == 0, result.output
    folder = reader / "runs" / "mine"
    named = {name.strip(" `") for cell in table("artefact.md", "A checkpoint folder") for name in cell.split(",")}
    assert {path.name for path in folder.iterdir() if path.is_file()} <= named
    record = json.loads((folder / "gistlm.json").read_text())
    assert sorted(table("artefact.md", "gistlm.json")) == sorted(record)
    assert sorted(table("artefact.md", "gistlm.json", 1)) == sorted({*record["prompt_format"], "date"})
    assert sorted(table("artefact.md", "training.json")) == sorted(json.loads((folder / "training.json").read_text()))


def test_the_training_page_shows_a_recipe_and_rows_that_can_be_read(tmp_path: Path) -> None:
    page = ROOT / "docs" / "training.md"
    assert TrainConfig.parse(yaml.safe_load(blocks(page, "yaml")[0])).output == "runs/mine"
    rows = tmp_path / "rows.jsonl"
    rows.write_text(blocks(page, "json")[0], encoding="utf-8")
    assert len(read_rows(str(rows))) == len(rows.read_text().splitlines())


def test_the_python_page_lists_every_sampling_option() -> None:
    assert table("python.md", "Generate") == list(Sampling.model_fields)


def test_the_masks_drawn_are_the_masks_made() -> None:
    letters = {"o": Part.OPENING, "p": Part.PROMPT, "g": Part.GIST, "r": Part.REST}
    gist, controls, encoder = (block for block in blocks(ROOT / "docs" / "architecture.md", "text") if "key" in block)
    parts = torch.tensor([[letters[letter] for letter in gist.splitlines()[0].split()[1:]]])
    positions = torch.arange(parts.shape[1])[None]

    def drawn(lines: list[str]) -> list[list[bool]]:
        return [[sign == "1" for sign in re.findall(r"(?<= )[1.](?= |$)", line)] for line in lines]

    def made(condition: Condition) -> list[list[bool]]:
        return decoder_mask(parts, positions, condition)[0].tolist()

    assert [row[:8] for row in drawn([line[:38] for line in gist.splitlines()[1:]])] == made(Condition.GIST)
    positive, negative = zip(*[(line[:42], line[42:]) for line in controls.splitlines()[2:]], strict=True)
    assert drawn(list(positive)) == made(Condition.POSITIVE)[-2:]
    assert drawn(list(negative)) == made(Condition.NEGATIVE)[-2:]

    without_opening = parts[:, 1:]
    whole = [line[:36] for line in encoder.splitlines()[1:]]
    assert drawn(whole) == encoder_mask(without_opening)[0].tolist()
    for line, condition in zip(encoder.splitlines()[2:5], Condition, strict=True):
        assert line[43:].split()[0] == condition.value
        assert drawn([line[43:]]) == cross_attention_mask(without_opening, condition).tolist()
