"""Fills the tables in docs/*.md that repeat what the code says; reads the sources and runs none of them.

Run: python docs/tables.py [--check]      --check fails when a page is not what would be written

A table stands between `<!-- NAME: made by docs/tables.py -->` and `<!-- end -->`.
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

DOCS = Path(__file__).parent
SOURCE = DOCS.parent / "src" / "gistlm"
_SLOT = re.compile(r"(<!-- ([\w-]+): made by docs/tables\.py -->\n).*?(<!-- end -->)", re.DOTALL)


def main() -> None:
    """Write the pages that change, or say which are stale."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; fail when a page is stale")
    check = parser.parse_args().check
    stale = []
    for path in sorted(DOCS.glob("*.md")):
        old = path.read_text(encoding="utf-8")
        if (new := fill(old)) != old:
            stale.append(path.name)
            if not check:
                path.write_text(new, encoding="utf-8")
    if check and stale:
        sys.exit(f"docs/{', docs/'.join(stale)} stale; write anew with: make docs")


def fill(page: str) -> str:
    """The page with every table as the code has it now."""
    return _SLOT.sub(lambda slot: f"{slot[1]}\n{TABLES[slot[2]]()}\n\n{slot[3]}", page)


def train_options() -> str:
    """Fields of TrainConfig."""
    return options(SOURCE / "training" / "config.py", "TrainConfig")


def data_options() -> str:
    """Fields of DataSource."""
    return options(SOURCE / "data" / "sources.py", "DataSource")


def options(path: Path, name: str) -> str:
    """A class's fields with their defaults and the docstrings beneath them."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    kind = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name)
    rows = []
    for field, note in zip(kind.body, kind.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign):
            said = isinstance(note, ast.Expr) and isinstance(note.value, ast.Constant) and note.value.value
            if not said:
                sys.exit(f"{path.name}: {name}.{ast.unparse(field.target)} has no docstring")
            rows.append([f"`{ast.unparse(field.target)}`", default(field.value), " ".join(str(said).split())])
    return table(["option", "default", "meaning"], rows)


def default(value: ast.expr | None) -> str:
    """A field's default as it would stand in a recipe."""
    if value is None:
        return "required"
    if isinstance(value, ast.Attribute):  # Recipe.FROZEN
        return f"`{value.attr.lower()}`"
    words = {"None": "`null`", "True": "`true`", "False": "`false`", "''": "empty"}
    text = ast.unparse(value)
    return words.get(text, "`" + text.strip("'") + "`")


def layers() -> str:
    """The rows of the import contract, from the bottom, with what each module says that it does."""
    project = tomllib.loads((DOCS.parent / "pyproject.toml").read_text(encoding="utf-8"))
    contract = project["tool"]["importlinter"]["contracts"][0]["layers"]
    lines = [[module.strip(" ()") for module in re.split("[|:]", line)] for line in reversed(contract)]
    there = [found for line in lines if (found := [module for module in line if module_file(module)])]
    rows = [[str(number), f"`{module}`", summary(module)] for number, line in enumerate(there, 1) for module in line]
    return table(["row", "module", "what it does"], rows)


def summary(module: str) -> str:
    """The first sentence of a module's docstring, up to its first semicolon."""
    path = module_file(module)
    assert path is not None
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return text.splitlines()[0].split("; ")[0].rstrip(".").replace("<", "\\<")


def module_file(module: str) -> Path | None:
    """Where a module or package is, if it is there."""
    path = SOURCE.joinpath(*module.split("."))
    return next((file for file in (path.with_suffix(".py"), path / "__init__.py") if file.exists()), None)


def architectures() -> str:
    """The architectures whose exactness is tested."""
    tree = ast.parse((SOURCE / "models" / "architecture.py").read_text(encoding="utf-8"))
    tested = next(node.value for node in tree.body if isinstance(node, ast.AnnAssign) and node.value
                  and ast.unparse(node.target) == "TESTED")  # fmt: skip
    rows = [[f"`{name}`", numbering] for name, numbering in ast.literal_eval(tested).items()]
    return table(["model_type", "numbering"], rows)


def table(head: list[str], rows: list[list[str]]) -> str:
    """Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


TABLES: dict[str, Callable[[], str]] = {
    "train-options": train_options,
    "data-options": data_options,
    "layers": layers,
    "architectures": architectures,
}

if __name__ == "__main__":
    main()
