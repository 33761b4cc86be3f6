"""The project's own promises: what it installs, how its files lie, and that tests stay on this machine."""

import ast
import importlib.metadata
import os
import random
import shutil
import socket
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import gistlm

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
REQUIREMENTS = [*PROJECT["dependencies"], *(line for extra in EXTRAS.values() for line in extra)]
SOURCES = sorted((ROOT / "src").rglob("*.py"))


def locked_versions() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = (line.split("==") for line in lines if line and not line.startswith("#"))
    return {canonicalize_name(name): version for name, version in pins}


def test_the_extras_that_the_docs_name_exist() -> None:
    assert {"smollm2", "data", "bench", "eval", "judge", "test", "dev"} <= set(EXTRAS)


def test_the_lock_pins_torch_and_transformers() -> None:
    locked = locked_versions()
    assert (locked["torch"], locked["transformers"]) == ("2.13.0", "5.19.0")


@pytest.mark.parametrize("line", [*PROJECT["dependencies"], *(line for extra in EXTRAS.values() for line in extra)])
def test_the_lock_satisfies_every_dependency(line: str) -> None:
    requirement = Requirement(line)
    if requirement.name != "gistlm":
        assert requirement.specifier.contains(locked_versions()[canonicalize_name(requirement.name)])


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
@pytest.mark.parametrize(
    ("python", "found"), [("old-python", "old-python, which is 3.9.2"), ("missing", "missing;"), ("", "no python3;")]
)
def test_setup_says_which_python_it_needs_before_it_does_anything(tmp_path: Path, python: str, found: str) -> None:
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    old = tmp_path / "old-python"
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo Python 3.9.2\n', encoding="utf-8")  # fails at all else
    old.chmod(0o755)
    given = f"./{python}" if python else ""
    alone = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")}
    command = ["make", "setup", f"PYTHON={given}"]
    result = subprocess.run(command, cwd=tmp_path, env=alone, capture_output=True, text=True, check=False, timeout=60)
    assert result.returncode != 0 and result.stdout == ""
    assert result.stderr.startswith("setup: needs Python 3.11 or newer with venv; found ")
    assert found in result.stderr.splitlines()[0]
    assert not (tmp_path / ".venv").exists()


def test_the_version_is_written_once() -> None:
    assert "version" in PROJECT["dynamic"] and "version" not in PROJECT
    assert importlib.metadata.version("gistlm") == gistlm.__version__


def test_importing_the_package_loads_no_torch() -> None:
    code = "import sys, gistlm; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_import_contract_holds() -> None:
    lint_imports = Path(sys.executable).with_name("lint-imports")
    result = subprocess.run([lint_imports, "--no-logo"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_source_file_opens_with_a_docstring_and_fits_in_400_lines(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert ast.get_docstring(ast.parse(text)), f"{path.name} does not say what it does"
    assert len(text.splitlines()) <= 400, f"{path.name} should be split"


@pytest.mark.parametrize("address", [("192.0.2.1", 80), ("2001:db8::1", 80, 0, 0)])
def test_a_test_cannot_connect_to_another_machine(address: tuple[object, ...]) -> None:
    family = socket.AF_INET if len(address) == 2 else socket.AF_INET6
    with socket.socket(family) as connection:
        connection.settimeout(0.1)
        with pytest.raises(RuntimeError, match="only reach this machine"):
            connection.connect(address)
        with pytest.raises(RuntimeError, match="only reach this machine"):
            connection.connect_ex(address)


def test_a_test_cannot_look_up_another_machine() -> None:
    with pytest.raises(RuntimeError, match=r"hub\.invalid"):
        socket.create_connection(("hub.invalid", 443), timeout=0.1)


def test_a_test_can_reach_a_server_on_this_machine() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(("localhost", server.getsockname()[1]), timeout=5).close()


def test_tests_leave_the_users_files_alone(gistlm_home: Path) -> None:
    assert os.environ["GISTLM_HOME"] == str(gistlm_home)
    assert not gistlm_home.is_relative_to(Path.home() / ".cache")
    assert Path(os.environ["HF_HOME"]).is_relative_to(gistlm_home)
    assert all(os.environ[name] == "1" for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE"))


@pytest.mark.parametrize("attempt", [1, 2])
def test_every_test_starts_from_the_same_seeds(attempt: int) -> None:
    drawn = random.random(), np.random.rand(), torch.rand(()).item()
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    assert drawn == (random.random(), np.random.rand(), torch.rand(()).item())
