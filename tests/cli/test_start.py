"""What a command imports: no torch and no transformers for help, descriptions, and mistakes that show without them."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from cli.conftest import SOURCES
from gists import make_gist
from tiny import save_tiny_checkpoint

from gistlm import GistModel

RUN_EACH = """
import json, sys
from typer.testing import CliRunner
from gistlm.cli.app import app

outcomes = []
for arguments in json.load(sys.stdin):
    result = CliRunner().invoke(app, arguments, prog_name="gistlm")
    loaded = sorted({"torch", "transformers", "peft", "sklearn", "pandas", "scipy"} & set(sys.modules))
    outcomes.append([result.exit_code, result.stdout, result.stderr, loaded])
json.dump(outcomes, sys.stdout)
"""
"""In one process: whatever is loaded stays loaded, so a command at fault is the first that shows something."""

CASES: dict[str, tuple[list[str], int, str]] = {
    "help": (["--help"], 0, "Usage: gistlm"),
    "help of a command": (["generate", "--help"], 0, "Usage: gistlm generate"),
    "version": (["--version"], 0, "gistlm "),
    "models": (["models"], 0, "smollm2-135m"),
    "inspect": (["inspect", "own.gist"], 0, "compression"),
    "inspect as JSON": (["inspect", "own.gist", "--json"], 0, '"kv_heads"'),
    "a mistyped option": (["generate", "--no-such-option", "hi"], 2, "No such option"),
    "an option without its value": (["compress", "prompt.txt"], 2, "Missing option"),
    "a missing file": (["compress", "none.txt", "-o", "x.gist"], 1, "there is no file none.txt"),
    "wrong UTF-8": (["compress", "latin1.txt", "-o", "x.gist"], 1, "latin1.txt is not valid UTF-8"),
    "an empty prompt": (["compress", "empty.txt", "-o", "x.gist"], 1, "empty.txt is empty"),
    "an output that cannot be": (["compress", "prompt.txt", "-o", "."], 1, "it is a folder"),
    "k below 1": (["compress", "prompt.txt", "-o", "x.gist", "-k", "0"], 1, "1 or more; got 0"),
    "k above the most": (["compress", "prompt.txt", "-o", "x.gist", "-k", "17", "-m", "tiny"], 1, "from 1 to 16"),
    "an unknown checkpoint": (["compress", "prompt.txt", "-o", "x.gist", "-m", "none"], 1, "no checkpoint 'none'"),
    "a plain model": (["compress", "prompt.txt", "-o", "x.gist", "-m", "tiny/base"], 1, "is a plain model"),
    "a damaged checkpoint": (["compress", "prompt.txt", "-o", "x.gist", "-m", "damaged"], 1, "gistlm.json is damaged"),
    "an unknown dtype": (["compress", "prompt.txt", "-o", "x.gist", "--dtype", "int3"], 1, "dtype must be one of"),
    "too long a prompt": (["compress", "long.txt", "-o", "x.gist", "-m", "tiny"], 1, "prompt has 6,0"),
    "a missing gist": (["inspect", "none.gist"], 1, "there is no gist at none.gist"),
    "a damaged gist": (["inspect", "damaged.gist"], 1, "its content does not match its hash"),
    "a gist that is none": (["inspect", "prompt.txt"], 1, "prompt.txt is not a gist"),
    "a missing gist to answer over": (["generate", "-g", "none.gist", "hi"], 1, "there is no gist at none.gist"),
    "a damaged gist to answer over": (["generate", "-g", "damaged.gist", "hi"], 1, "does not match its hash"),
    "a damaged gist to talk over": (["chat", "-g", "damaged.gist"], 1, "does not match its hash"),
    "a foreign gist": (["generate", "-g", "foreign.gist", "-m", "tiny", "hi"], 1, "made for tiny (fingerprint 5eed"),
    "a foreign gist to talk over": (["chat", "-g", "foreign.gist", "-m", "tiny"], 1, "made for tiny (finger"),
    "a gist of another dtype": (
        ["generate", "-g", "own.gist", "-m", "tiny", "--dtype", "bfloat16", "hi"], 1,
        "this gist is float32, the model is bfloat16",
    ),
    "too long an input": (["generate", "-g", "own.gist", "-m", "tiny", "-n", "600", "hi"], 1, "room for its answer"),
    "too long a full prompt": (["generate", "-p", "long.txt", "-m", "tiny", "hi"], 1, "room for its answer"),
    "a bad option": (["generate", "-t", "-1", "hi"], 1, "temperature must be"),
    "a missing recipe": (["train", "none.yaml"], 1, "none.yaml"),
    "a recipe in wrong UTF-8": (["train", "latin1.txt"], 1, "latin1.txt"),
    "a recipe with an unknown option": (["train", "recipe.yaml", "--set", "stepps=3"], 1, "no option 'stepps'"),
    "a recipe with an impossible option": (["train", "recipe.yaml", "--set", "steps=0"], 1, "steps must be greater"),
    "a recipe whose options do not agree": (["train", "recipe.yaml", "--set", "kept=16"], 1, "kept must be from 0 to"),
    "evaluation of an unknown checkpoint": (["eval", "-m", "none"], 1, "no checkpoint 'none'"),
    "evaluation at an impossible k": (["eval", "-m", "tiny", "-k", "1,99"], 1, "from 1 to 16"),
    "evaluation on a missing file": (["eval", "-m", "tiny", "--data", "none.jsonl"], 1, "none.jsonl does not exist"),
    "a report of a missing file": (["report", "none.json"], 1, "none.json"),
}  # fmt: skip


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, str, str, list[str]]]:
    folder = tmp_path_factory.mktemp("start")
    tiny = save_tiny_checkpoint(folder / "tiny")
    gist = GistModel.from_pretrained(tiny, device="cpu").compress("Answer in rhymes.", 4)
    gist.save(folder / "own.gist")
    make_gist(k=4, dtype=torch.float32).save(folder / "foreign.gist")
    damaged = bytearray((folder / "own.gist").read_bytes())
    damaged[-1] ^= 1
    (folder / "damaged.gist").write_bytes(damaged)
    (folder / "damaged").mkdir()
    (folder / "damaged" / "gistlm.json").write_text("{")
    for name, text in {"prompt": "Answer in rhymes.", "empty": " \n", "long": "x" * 6000}.items():
        (folder / f"{name}.txt").write_text(text, encoding="utf-8")
    (folder / "latin1.txt").write_bytes(b"caf\xe9")
    (folder / "recipe.yaml").write_text("{base: tiny/base, output: out, data: [{path: rows.jsonl}]}")
    before = sorted(path for path in folder.rglob("*"))
    environment: Any = {**os.environ, "PYTHONPATH": SOURCES}
    ran = subprocess.run(
        [sys.executable, "-c", RUN_EACH], input=json.dumps([arguments for arguments, _, _ in CASES.values()]),
        capture_output=True, text=True, check=True, cwd=folder, env=environment, timeout=120,
    )  # fmt: skip
    assert sorted(path for path in folder.rglob("*")) == before, "a mistake left a file"
    return dict(zip(CASES, json.loads(ran.stdout), strict=True))


@pytest.mark.parametrize("case", CASES)
def test_loads_no_torch_and_no_transformers(outcomes: dict[str, Any], case: str) -> None:
    _, code, said = CASES[case]
    exit_code, stdout, stderr, loaded = outcomes[case]
    assert said in stdout + stderr
    assert exit_code == code
    assert "Traceback" not in stderr and (code != 1 or stderr.count("\n") == 1)
    assert loaded == []


def test_an_answer_does_not_import_what_it_does_not_need(tmp_path: Path) -> None:
    tiny = save_tiny_checkpoint(tmp_path / "tiny")
    command = ["generate", "-m", str(tiny), "-n", "1", "hi"]
    ran = subprocess.run(
        [sys.executable, "-c", RUN_EACH], input=json.dumps([command]),
        capture_output=True, text=True, check=True, cwd=tmp_path, env={**os.environ, "PYTHONPATH": SOURCES},
    )  # fmt: skip
    ((exit_code, _, _, loaded),) = json.loads(ran.stdout)
    assert exit_code == 0
    assert loaded == ["peft", "torch", "transformers"]
