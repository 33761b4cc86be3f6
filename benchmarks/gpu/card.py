"""The GPU that a script runs on: looked for first, described in the figures; knows no job.

Every script of this folder begins with `find_card` and ends with `write_figures`. On a machine without a GPU, `--cpu`
runs the same work at tiny size, as CI does.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import torch
import transformers

FOLDER = Path(__file__).parent
ROOT = FOLDER.parents[1]
PREPARED = FOLDER / "card"
"""What is made beforehand for a GPU; git ignores it."""
PARTS = PREPARED / "parts.json"
"""Names and SHA-256 of the parts to be carried."""
GIB = 1 << 30


def parser(description: str | None) -> argparse.ArgumentParser:
    """A script's command line, with what all have."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--cpu", action="store_true", help="run at tiny size on the CPU, to see that the script works")
    made.add_argument("--json", type=Path, help="write the figures here")
    made.add_argument("--seed", type=int, default=0, help="of all that is drawn")
    return made


def find_card(options: argparse.Namespace, gib: float) -> torch.device:
    """The GPU, with at least so many GiB of memory free. Ends the script with a sentence where there is none."""
    if options.cpu:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        sys.exit(f"{name()}: there is no GPU here that torch can use; run it where there is one, or with --cpu")
    free, total = torch.cuda.mem_get_info()
    if free < gib * GIB:
        sys.exit(
            f"{name()}: needs {gib:g} GiB of the GPU's memory; {free / GIB:.0f} of {total / GIB:.0f} GiB are free on "
            f"{torch.cuda.get_device_name()}"
        )
    return torch.device("cuda")


def need_files(paths: list[Path], remedy: str) -> None:
    """End the script with a sentence where a file did not arrive."""
    missing = [path for path in paths if not path.is_file()]
    if missing:
        sys.exit(f"{name()}: there is no {missing[0]}; {remedy}")


def name() -> str:
    """The script's own name."""
    return Path(sys.argv[0]).name


def facts(device: torch.device) -> dict[str, Any]:
    """What figures depend on beside the code."""
    card: dict[str, Any] = {"card": platform.processor() or "CPU"}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        card = {"card": properties.name, "memory_bytes": properties.total_memory, "cuda": torch.version.cuda}
    return {
        **card,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "date": date.today().isoformat(),
        "script": name(),
    }


def write_figures(options: argparse.Namespace, device: torch.device, figures: dict[str, Any]) -> None:
    """One JSON file: GPU, versions and date, the options, and what was measured."""
    settings = {key: str(value) if isinstance(value, Path) else value for key, value in vars(options).items()}
    if options.json:
        record = {**facts(device), "settings": settings, **figures}
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def synchronise(device: torch.device) -> None:
    """Wait for what the GPU still has to do."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def timed(device: torch.device, call: Callable[[], object]) -> dict[str, float]:
    """Seconds of one call: by the wall, of the processor, and of the GPU (the wall's where there is none)."""
    synchronise(device)
    wall, cpu = time.perf_counter(), time.process_time()
    if device.type == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
    else:
        call()
    cpu = time.process_time() - cpu  # before waiting: what it takes to ask for the work
    synchronise(device)
    wall = time.perf_counter() - wall
    return {"wall_s": wall, "cpu_s": cpu, "card_s": start.elapsed_time(end) / 1000 if device.type == "cuda" else wall}


def peak_bytes(device: torch.device, call: Callable[[], object]) -> int | None:
    """Most memory of the GPU that a call takes above what was taken before; None on a CPU."""
    if device.type != "cuda":
        call()
        return None
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return int(torch.cuda.max_memory_allocated() - before)
