"""Times, FLOPs, peak memory and the machine they were taken on; knows nothing of gists or models."""

from __future__ import annotations

import ctypes
import gc
import math
import os
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from gistlm.evaluation import describe

Call = Callable[[], object]


def interleaved(
    calls: Mapping[str, Call], rounds: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """Seconds of every call in every round: a, b, c, a, b, c, ..., after one round that is not counted.

    What disturbs the machine for a while then falls on all calls alike, and ratios within a round stay true.
    """
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for counted in [False, *[True] * rounds]:
        for name, call in calls.items():
            taken = _seconds(call, clock)
            if counted:
                seconds[name].append(taken)
    return seconds


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, least and most."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def paired_ratio(numerator: Sequence[float], denominator: Sequence[float]) -> dict[str, float]:
    """`spread` of the ratios within each round."""
    return spread([above / below for above, below in zip(numerator, denominator, strict=True)])


def count_flops(call: Call) -> int:
    """FLOPs of the matrix products, attention included, by torch's counter.

    torch 2.13 does not count the CPU's fused attention, so attention is taken apart into two plain products
    here. These are counted whole: what a causal mask hides is not subtracted.
    """
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        call()
    return int(counter.get_total_flops())


def peak_memory(call: Call) -> int | None:
    """Bytes that the call takes at its highest above what was held before it; None where it cannot be known.

    CUDA: torch's allocator. Linux: the resident set, whose high-water mark the kernel lets a process reset;
    freed memory is handed back first, so that it cannot be used again unseen.
    """
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return int(torch.cuda.max_memory_allocated() - before)
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        before = _status_bytes("VmRSS")
        call()
        return max(0, _status_bytes("VmHWM") - before)
    except (OSError, AttributeError, TypeError):
        return None


def machine(dtype: torch.dtype, device: torch.device) -> dict[str, object]:
    """`describe.machine` and what times depend on besides; the keys are stable."""
    return {
        **describe.machine(),
        "cores": os.cpu_count(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "dtype": str(dtype).removeprefix("torch."),
        "python": platform.python_version(),
    }


def command() -> str:
    """What was typed; of absolute paths the names alone, as folders are of no use elsewhere."""
    words = [Path(word).name if Path(word).is_absolute() else word for word in sys.argv]
    return shlex.join(["python", *words])


def requests_to_pay(cost: float, saving: float) -> int | None:
    """After how many requests a one-time cost is earned back by what each one saves; None for never."""
    return math.ceil(cost / saving) if saving > 0 else None


def _seconds(call: Call, clock: Callable[[], float]) -> float:
    synchronise()
    started = clock()
    call()
    synchronise()
    return clock() - started


def synchronise() -> None:
    """Wait for what a GPU still has to do."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _status_bytes(field: str) -> int:
    """A size from /proc/self/status, which gives KiB."""
    for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"the kernel does not tell {field}")
