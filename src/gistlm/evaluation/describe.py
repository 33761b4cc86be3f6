"""What was measured with what, as plain values for the results; measures nothing."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers

import gistlm
from gistlm.compress import compress
from gistlm.data.rows import Row
from gistlm.evaluation.results import Settings
from gistlm.files import sha256
from gistlm.models.checkpoint import Checkpoint

if TYPE_CHECKING:
    from gistlm.engines.base import Engine
    from gistlm.evaluation.runner import EvalConfig


def model(checkpoint: Checkpoint) -> dict[str, Any]:
    """ "model" of the results."""
    return {
        "name": checkpoint.config.name,
        "fingerprint": checkpoint.fingerprint,
        "adapter": checkpoint.adapter_fingerprint,
        "dtype": str(checkpoint.reader.dtype).removeprefix("torch."),
        "kv_bytes_per_token": kv_bytes_per_token(checkpoint),
        "opening_tokens": checkpoint.placement.opening,
    }


def data(source: str, rows: Sequence[Row], skipped: int, output_tokens: int, answer_tokens: int) -> dict[str, Any]:
    """ "data" of the results; a source that is no file is known by its rows."""
    if os.path.isfile(source):
        with open(source, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    else:
        digest = sha256(*(text.encode() for row in rows for text in (row.prompt, row.input, row.output)))
    return {
        "name": Path(source).name,
        "sha256": digest,
        "rows": len(rows),
        "skipped": skipped,
        "output_tokens": output_tokens,
        "answer_tokens": answer_tokens,
    }


def nothing(checkpoint: Checkpoint, config: EvalConfig) -> dict[str, Any]:
    """What `runner.Evaluation.results` holds when no rows are given: of a retention probe alone."""
    return {
        "model": model(checkpoint),
        "data": {"name": "", "sha256": "", "rows": 0, "skipped": 0, "output_tokens": 0, "answer_tokens": 0},
        "settings": settings(config),
        "skipped": {},
        "conditions": [],
        "rows": [],
        "examples": [],
    }


def settings(config: EvalConfig) -> dict[str, Any]:
    """ "settings" of the results."""
    values = config.model_dump(mode="json")
    return {name: values["ks" if name == "k" else name] for name in Settings.model_fields}


def run(arguments: Sequence[str], seconds: float) -> dict[str, Any]:
    """ "run" of the results: folders are left out of the command, as they are of no use elsewhere."""
    words = [Path(word).name if os.path.isabs(word) or os.path.exists(word) else word for word in arguments]
    return {
        "command": " ".join(["gistlm", *words]),
        "date": date.today().isoformat(),
        "machine": machine(),
        "seconds": seconds,
    }


def basis(engine: Engine) -> dict[str, Any]:
    """By what an engine's figures are told apart, beside rows and settings: a `resume_log.ResumeLog`'s basis."""
    checkpoint = engine.checkpoint
    device = checkpoint.reader.device
    config = {name: value for name, value in checkpoint.reader.config.to_dict().items() if name != "_name_or_path"}
    adapters = {name: each.to_dict() for name, each in getattr(checkpoint.writer, "peft_config", {}).items()}
    sources = Path(gistlm.__file__).parent
    code = sorted([*sources.rglob("*.py"), *sources.rglob("*.toml")])
    return {
        "engine": type(engine).__name__,
        "model": model(checkpoint),
        "config": json.dumps([config, adapters], sort_keys=True, default=_plain),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device),
        "machine": machine(),
        "code": sha256(*(path.read_bytes() for path in code)),
    }


def _plain(value: Any) -> Any:
    """What JSON cannot say, the same in every process: a set has another order in each."""
    return sorted(map(str, value)) if isinstance(value, set | frozenset) else str(value)


def machine() -> dict[str, Any]:
    """What figures depend on beside the code; benchmarks use it too."""
    table = Path("/proc/cpuinfo")
    lines = table.read_text(encoding="utf-8", errors="replace").splitlines() if table.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def kv_bytes_per_token(checkpoint: Checkpoint) -> int:
    """Keys and values of one cached token, over all layers."""
    return compress(checkpoint, ["x"], 1)[0].nbytes
