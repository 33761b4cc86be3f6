"""A run's saves, in `OUTPUT/run`: what a resumed run may go on from; knows nothing of losses or rows.

A save is a folder of Trainer's, `checkpoint-STEP`, that holds only what the run changes of the model; DeepSpeed adds a
folder of its own with all of it.
"""

from __future__ import annotations

import json
import logging
import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import TrainerState

from gistlm.errors import InputError
from gistlm.files import reason, write_atomically
from gistlm.training.config import TrainConfig
from gistlm.training.distributed import launch_record

logger = logging.getLogger(__name__)

WEIGHTS = "trainable.safetensors"
STATE = "trainer_state.json"
_RENAMED = {"fitted": "fit_strengths", "fit_weights": "fit_strengths", "observers": "probe_embeddings"}
"""Names in saves of older versions -> names now."""
_MAY_CHANGE = ("threads", "device", "teacher_cache")
"""Options that a resumed run may change."""


def write_weights(save: Path, tensors: Mapping[str, Tensor], tokens: int, data_hash: str) -> None:
    """What the run changes, how many tokens it has seen, and the hash of its rows."""
    save.mkdir(parents=True, exist_ok=True)
    notes = {"tokens": str(tokens), "data": data_hash}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, save / WEIGHTS, notes)


def read_weights(save: Path) -> dict[str, Tensor]:
    """The tensors that the run trains, as of the save, by the names they have now."""
    return {_RENAMED.get(name, name): tensor for name, tensor in load_file(save / WEIGHTS).items()}


def read_tokens(save: Path) -> int:
    """How many tokens the run had seen."""
    return int(_notes(save)["tokens"])


def _notes(save: Path) -> dict[str, str]:
    """What `write_weights` wrote beside the tensors; reads the file's head alone."""
    with safe_open(save / WEIGHTS, "pt") as file:
        notes: dict[str, str] = file.metadata()
    return notes


def last_save(run: Path) -> Path | None:
    """The newest whole save. One that a kill cut short is removed: the run goes on from the one before."""
    for save in sorted(run.glob("checkpoint-*"), key=step_of, reverse=True):
        if is_whole(save):
            return save
        shutil.rmtree(save)
    return None


def is_whole(save: Path) -> bool:
    """Whether every file of a save can be read to its end, DeepSpeed's too, which lie in a folder of their own."""
    try:
        TrainerState.load_from_json(str(save / STATE))
        read_weights(save)
        read_tokens(save)
    except (OSError, ValueError, TypeError, KeyError, SafetensorError):
        return False
    return all(map(zipfile.is_zipfile, [path for kind in ("pt", "pth", "bin") for path in save.rglob(f"*.{kind}")]))


def save_after(run: Path, step: int) -> Path:
    """Where a run keeps the save that it makes after a step."""
    return run / f"checkpoint-{step}"


def step_of(save: Path) -> int:
    """The step after which a save was made."""
    return int(save.name.partition("-")[2])


def check_same_run(config: TrainConfig, run: Path, processes: int) -> None:
    """Raise `InputError` when the folder holds saves of another recipe or launch; record this run's."""
    record = run / "recipe.json"
    values = {name: value for name, value in config.to_dict().items() if name not in _MAY_CHANGE}
    text = json.dumps(values | launch_record(processes), indent=2)
    try:
        began = any(run.glob("checkpoint-*")) or (run.parent / "training.json").exists()
        known = record.read_text(encoding="utf-8", errors="replace") if began and record.exists() else None
        if known is None:
            write_atomically(record, text.encode())
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise InputError(f"cannot write to output {config.output}: {reason(error)}; name another folder") from error
    if known is not None and known != text:
        raise InputError(
            f"{run} holds a run of another recipe, number of processes, DeepSpeed stage, or with or without FSDP; "
            "choose another output, or delete that folder"
        )


def check_same_data(save: Path, data_hash: str) -> None:
    """Raise `InputError` when a save's run used other rows: it would go on with other batches, in another order.

    A save that an older gistlm made names no rows; the log says that they could not be compared.
    """
    known = _notes(save).get("data")
    run = save.parent
    if known is None:
        logger.info("an older gistlm made the saves in %s; whether the data has changed could not be checked", run)
    elif known != data_hash:
        raise InputError(
            f"{run} holds a run on other data: its last save names other rows than data and exclude of the recipe now "
            "give; put the files back as they were, choose another output, or delete that folder"
        )
