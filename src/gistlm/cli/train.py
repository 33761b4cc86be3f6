"""`gistlm train`: a recipe in, a checkpoint out, with progress; knows nothing of how training goes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gistlm.cli.outcome import is_main_process
from gistlm.cli.show import print_table
from gistlm.errors import InputError

if TYPE_CHECKING:
    from gistlm.training.config import TrainConfig


def train(
    recipe: Annotated[Path, typer.Argument(help="YAML file with the run's options.", metavar="RECIPE")],
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Replace an option; may be given several times."),
    ] = None,
) -> None:
    """Train a gist checkpoint as a recipe says.

    --set takes YAML values, and dots lead into lists and mappings. A run that was stopped, by Ctrl-C too, goes
    on from its last save when it is started again with the same command.

    \b
    Example:
      gistlm train mine.yaml --set steps=1000 --set data.0.limit=5000
    """
    settings = [_parse_setting(change) for change in changes or []]
    config = read_recipe(recipe, settings)
    folder = _run(config)
    if is_main_process():
        _report(folder)


def read_recipe(path: Path, settings: list[tuple[list[str], Any]]) -> TrainConfig:
    """The recipe with its settings: whole options first, then places inside them."""
    from gistlm.training.config import TrainConfig, read_config

    config = read_config(path, {keys[0]: value for keys, value in settings if len(keys) == 1})
    inner = [(keys, value) for keys, value in settings if len(keys) > 1]
    if not inner:
        return config
    values = config.to_dict()
    for keys, value in inner:
        _assign(values, keys, value)
    return TrainConfig.parse(values, str(path))


def _parse_setting(text: str) -> tuple[list[str], Any]:
    """ "data.0.limit=3" -> (["data", "0", "limit"], 3)."""
    import yaml

    key, equals, value = text.partition("=")
    keys = key.strip().split(".")
    if not equals or not all(keys):
        raise typer.BadParameter(f"--set takes KEY=VALUE, for example --set steps=10; got {text!r}")
    try:
        return keys, yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise InputError(f"--set {text}: the value is not YAML: {error}") from error


def _assign(values: dict[str, Any], keys: list[str], value: Any) -> None:
    """Put a value at a dotted place that leads through mappings and lists."""
    place: Any = values
    for depth, key in enumerate(keys):
        last, name = depth == len(keys) - 1, ".".join(keys[: depth + 1])
        if isinstance(place, list):
            if not key.isdecimal() or int(key) >= len(place):
                raise InputError(
                    f"--set {'.'.join(keys)}: there is no {name}; {keys[depth - 1]} has {len(place)} entries"
                )
            index: Any = int(key)
        elif isinstance(place, dict):
            if not last and key not in place:
                raise InputError(f"--set {'.'.join(keys)}: there is no {name}")
            index = key
        else:
            raise InputError(f"--set {'.'.join(keys)}: {'.'.join(keys[:depth])} is neither a list nor a mapping")
        if last:
            place[index] = value
        else:
            place = place[index]


def _run(config: TrainConfig) -> Path:
    import torch.distributed
    from rich.console import Console

    from gistlm.training.loop import train as run
    from gistlm.training.progress import TrainingProgress

    try:
        with TrainingProgress(Console(stderr=True)) as progress:
            folder = run(config, [progress])
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"interrupted: the same command resumes this run from its last save (one every {config.save_every} steps)"
        ) from None
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()  # gloo's threads may abort a process that ends with its group alive
    return folder


def _report(folder: Path) -> None:
    """Where the checkpoint is, and the last validation figures."""
    figures = json.loads((folder / "training.json").read_text(encoding="utf-8"))
    if figures["validation"]:
        last = figures["validation"][-1]
        names = [name for name in last if isinstance(last[name], dict)]
        print_table(
            [_validation_row(name, last[name]) for name in names],
            header=["prompt as", "NLL (nats)", "KL (nats)", "NLL gap closed", "KL gap closed"],
            title=f"{last['rows']} held-out rows at step {last['step']}",
        )
    print(f"{figures['tokens']:,} tokens seen; the checkpoint is in {folder}")
    print(f"use it with: gistlm compress PROMPT.txt -o X.gist --model {folder}")


def _validation_row(name: str, values: dict[str, float]) -> list[str]:
    shown = {"full": "full prompt", "none": "nothing"}.get(name, f"gist, {name}")
    cells = [f"{values['nll']:.3f}", f"{values['kl']:.3f}" if "kl" in values else ""]
    closed = [f"{values[key]:.0%}" if key in values else "" for key in ("nll_gap_closed", "kl_gap_closed")]
    return [shown, *cells, *closed]
