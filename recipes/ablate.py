"""Runs one training recipe many times, each with one thing changed, and measures every run on the same rows.

Run: python recipes/ablate.py recipes/ablations.yaml --data ROWS.jsonl MORE.jsonl --out runs/ablations [--only NAME ...]

The YAML has `base`, options of a training recipe, and `runs`: a list of mappings with a `name` and the options that
differ. A run that is done is not repeated, one that was killed goes on. A run is measured in the dtype that it is
trained in. The table is written to OUT/ablations.md and its figures to OUT/ablations.json. Knows nothing of losses or
metrics.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from gistlm.errors import DataError, GistlmError
from gistlm.files import write_atomically
from gistlm.training.config import TrainConfig

Record = dict[str, Any]


def main() -> None:
    """Train and measure what is missing, then write the table."""
    options = parse()
    try:
        base, runs = read_plan(options.plan)
        if len({path.stem for path in options.data}) < len(options.data):
            raise DataError(f"--data has two files of one name: {', '.join(map(str, options.data))}; rename one")
        if unknown := set(options.only or []) - {run["name"] for run in runs}:
            raise DataError(
                f"{options.plan} has no run {min(unknown)!r}; it has {', '.join(run['name'] for run in runs)}"
            )
        console = Console(stderr=True)
        figures = []
        for run in runs:
            if not options.only or run["name"] in options.only:
                console.rule(run["name"])
                figures.append(one_run({**base, **run}, options) | {"changed": changed(run, base)})
    except GistlmError as error:
        sys.exit(f"ablate.py: {error}")
    write_atomically(options.out / "ablations.json", (json.dumps(figures, indent=1) + "\n").encode())
    write_atomically(options.out / "ablations.md", table(figures).encode())
    print(table(figures))


def read_plan(path: Path) -> tuple[Record, list[Record]]:
    """The options that all runs share, and each run's own. Raises `DataError` before anything is trained."""
    try:
        plan = yaml.safe_load(path.read_text(encoding="utf-8"))
        base, runs = plan["base"], plan["runs"]
        names = [run["name"] for run in runs]
    except (OSError, yaml.YAMLError, KeyError, TypeError) as error:
        raise DataError(f"{path} must have `base` and `runs`, each run with a `name`: {error}") from error
    if len(set(names)) < len(names):
        raise DataError(f"{path} has two runs of one name: {', '.join(names)}")
    for run in runs:
        TrainConfig.parse({**base, **run, "output": "-"}, f"{path}, {run['name']}")
    return base, runs


def one_run(recipe: Record, options: argparse.Namespace) -> Record:
    """Train a recipe and measure its checkpoint, unless that is done."""
    folder = options.out / re.sub(r"\W+", "-", recipe["name"]).strip("-")
    checkpoint = folder / "checkpoint"
    folder.mkdir(parents=True, exist_ok=True)
    own = {**recipe, "output": str(checkpoint), "threads": options.threads}
    asked = yaml.safe_dump({"recipe": recipe, "measured on": [[*map(str, options.data)], options.k, options.rows]})
    plan = folder / "asked.yaml"
    if plan.exists() and plan.read_text(encoding="utf-8") != asked:
        raise DataError(f"{folder} holds a run of other options; remove it, or name another --out")
    write_atomically(plan, asked.encode())
    write_atomically(folder / "recipe.yaml", yaml.safe_dump(own).encode())
    if not (checkpoint / "training.json").exists():
        gistlm("train", folder / "recipe.yaml")
    training = json.loads((checkpoint / "training.json").read_text(encoding="utf-8"))
    losses = training["losses"]
    return {
        "name": recipe["name"],
        "tokens": training["tokens"],
        "last_losses": sum(losses[-10:]) / len(losses[-10:]),
        "measured": [measure(path, checkpoint, recipe, options) for path in options.data],
    }


def measure(data: Path, checkpoint: Path, recipe: Record, options: argparse.Namespace) -> Record:
    """A checkpoint's figures on one file, unless they are there."""
    result = checkpoint.with_name(f"{data.stem}.json")
    if not result.exists():
        asked = ["--data", data, "--model", checkpoint, "--k", options.k, "--limit", options.rows]
        dtype = ["--dtype", recipe["dtype"]] if recipe.get("dtype") else []
        rest = ["--no-generate", "--baselines", "none", "--no-examples", "--threads", options.threads, "--json", result]
        gistlm("eval", *asked, *dtype, *rest)
    found = json.loads(result.read_text(encoding="utf-8"))
    conditions = [{key: row[key] for key in ("name", "k", "metrics")} for row in found["conditions"]]
    return {"data": data.stem, "rows": found["data"]["rows"], "conditions": conditions, "run": found["run"]}


def gistlm(*words: object) -> None:
    """One command of the package, in a process of its own. Raises `DataError` when it fails."""
    command = [sys.executable, "-m", "gistlm", *map(str, words)]
    if subprocess.run(command, env={**os.environ, "HF_HUB_OFFLINE": "1"}, stdout=sys.stderr, check=False).returncode:
        raise DataError(f"this command failed: {' '.join(command[1:])}")


def changed(run: Record, base: Record) -> str:
    """What a run has of its own; of its data, the sources that the base has not, and those that it has alone."""
    own = {name: value for name, value in run.items() if name != "name"}
    if "data" in own:
        shared = base.get("data", [])
        own["data"] = [source for source in run["data"] if source not in shared]
        own["without"] = [source for source in shared if source not in run["data"]]
    return ", ".join(f"{name}: {value}" for name, value in own.items()) or "nothing"


def table(figures: list[Record]) -> str:
    """Markdown: a row a run; for each file the likelihood of the references, and for each k that and the gap closed."""
    head, rows = ["run", "changed", "tokens"], []
    for found in figures[0]["measured"]:
        ks = [row["k"] for row in found["conditions"] if row["name"] == "gist"]
        head += [f"{found['data']}: NLL, full / none", *(f"k={k}: NLL; gap closed, NLL / KL" for k in ks)]
    for figure in figures:
        cells = [figure["name"], figure["changed"], f"{figure['tokens']:,}"]
        for found in figure["measured"]:
            controls = {row["name"]: row["metrics"]["nll"]["value"] for row in found["conditions"]}
            cells.append(f"{controls['full']:.3f} / {controls['none']:.3f}")
            cells += [cell(row["metrics"]) for row in found["conditions"] if row["name"] == "gist"]
        rows.append(cells)
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def cell(metrics: Record) -> str:
    """One gist's figures."""
    shares = " / ".join(f"{metrics[name]['gap_closed']:.0%}" for name in ("nll", "kl"))
    return f"{metrics['nll']['value']:.3f}; {shares}"


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("plan", type=Path, help="YAML with `base` and `runs`")
    parser.add_argument(
        "--data", type=Path, required=True, nargs="+", help="files of rows to measure on, which no run trains on"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/ablations"), help="a folder for runs and table")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these runs; all by default")
    parser.add_argument("--rows", type=int, default=96, help="rows of each file to measure on")
    parser.add_argument("--k", default="1,4,16", help="gist tokens to measure with")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads")
    return parser.parse_args()


if __name__ == "__main__":
    main()
