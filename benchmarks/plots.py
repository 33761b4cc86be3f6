"""The cost benchmark's figures as one picture; knows the keys of its JSON and nothing else."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from gistlm.errors import MissingDependencyError

LABELS = {
    "full_prompt": "full prompt, encoded each time",
    "cached_prompt": "full prompt, KV cache kept",
    "gist": "gist",
}


def require_matplotlib() -> None:
    """Raise `MissingDependencyError` now rather than after a long run."""
    if importlib.util.find_spec("matplotlib") is None:
        raise MissingDependencyError("matplotlib", "the plot", "pip install 'gistlm[bench]'")


def draw(figures: dict[str, Any], path: Path) -> None:
    """Four plots over prompt length, for the smallest batch: time, memory, FLOPs, requests to pay."""
    require_matplotlib()
    from matplotlib.figure import Figure

    batch = min(figures["settings"]["batches"])
    figure = Figure(figsize=(11, 7.5), layout="constrained")
    time_axes, cache_axes, flops_axes, pay_axes = figure.subplots(2, 2).flat
    for condition, label in LABELS.items():
        rows = [row for row in figures["generation"] if row["condition"] == condition and row["batch"] == batch]
        lengths = [row["prompt_tokens"] for row in rows]
        for axes, values in (
            (time_axes, [row["first_token_s"]["median"] * 1000 for row in rows]),
            (cache_axes, [row["cache_bytes"] / 1e6 for row in rows]),
            (flops_axes, [row["flops"] / batch / 1e9 for row in rows]),
        ):
            axes.plot(lengths, values, marker="o", label=label)
    rows = [row for row in figures["comparison"] if row["batch"] == batch and row["requests_to_pay"] is not None]
    pay_axes.plot([row["prompt_tokens"] for row in rows], [row["requests_to_pay"] for row in rows], "ko-")
    _label(time_axes, "Time to first token (ms)")
    _label(cache_axes, "Kept between requests, a prompt (MB)")
    _label(flops_axes, "One answer (GFLOP)")
    _label(pay_axes, "Requests until compressing has paid")
    time_axes.legend(fontsize="small")
    pay_axes.set_ylim(bottom=0)
    machine = figures["machine"]
    k = figures["settings"]["k"]
    figure.suptitle(
        f"{figures['model']}, k={k}, batch {batch}; {machine['cpu']}, {machine['threads']} threads, {machine['dtype']}"
    )
    figure.savefig(path, dpi=120)


def _label(axes: Any, title: str) -> None:
    axes.set_title(title, fontsize="medium")
    axes.set_xlabel("prompt (tokens)")
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:.0f}")
    axes.grid(alpha=0.3)
