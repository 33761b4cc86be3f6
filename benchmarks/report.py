"""The cost benchmark's tables, in Markdown; knows the keys of its JSON and nothing else."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

Record = dict[str, Any]


def show(figures: Record, console: Console) -> None:
    """All tables, after a line on what was run where."""
    machine, settings = figures["machine"], figures["settings"]
    console.print(
        f"{figures['model']}, k={settings['k']}, inputs of {settings['input_tokens']} and answers of "
        f"{settings['new_tokens']} tokens, {settings['repeats']} rounds; {machine['cpu']}, "
        f"{machine['threads']} threads, {machine['dtype']}, torch {machine['torch']}, "
        f"transformers {machine['transformers']}",
        highlight=False,
    )
    for table in (generation(figures), ratios(figures), compression(figures)):
        console.print()
        console.print(table)


def generation(figures: Record) -> Table:
    """A row per prompt length, batch and condition."""
    table = _table(
        "prompt", "batch", "condition", "first token, ms", "answer, ms", "tokens/s", "cache", "peak memory", "GFLOP"
    )
    for row in figures["generation"]:
        table.add_row(
            str(row["prompt_tokens"]),
            str(row["batch"]),
            row["condition"].replace("_", " "),
            _ms(row["first_token_s"]),
            _ms(row["answer_s"]),
            f"{row['tokens_per_s']:.1f}",
            _size(row["cache_bytes"]),
            _size(row["peak_bytes"]),
            f"{row['flops'] / 1e9:.2f}",
        )
    return table


def ratios(figures: Record) -> Table:
    """The gist's time divided by each other condition's; below 1 the gist is faster."""
    others = ("full_prompt", "cached_prompt", "same_tokens")
    table = _table(
        "prompt", "batch", *(f"{kind} / {other.replace('_', ' ')}" for kind in ("first", "answer") for other in others)
    )
    for row in figures["comparison"]:
        found = [_range(row[f"{kind}_vs_{other}"]) for kind in ("first_token", "answer") for other in others]
        table.add_row(str(row["prompt_tokens"]), str(row["batch"]), *found)
    return table


def compression(figures: Record) -> Table:
    """Compressing against plain prefill, and when it has paid for itself."""
    table = _table(
        "prompt",
        "batch",
        "compress, ms",
        "prefill, ms",
        "tokens/s",
        "prefill tokens/s",
        "speed / prefill",
        "paid after",
        "cache saved",
    )
    for row, compared in zip(figures["compression"], figures["comparison"], strict=True):
        after = compared["requests_to_pay"]
        table.add_row(
            str(row["prompt_tokens"]),
            str(row["batch"]),
            _ms(row["compress_s"]),
            _ms(row["prefill_s"]),
            f"{row['compress_tokens_per_s']:.0f}",
            f"{row['prefill_tokens_per_s']:.0f}",
            _range(row["speed_ratio"]),
            "never" if after is None else f"{after} request{'s' * (after != 1)}",
            _size(compared["cache_bytes_saved"]),
        )
    return table


def _table(*columns: str) -> Table:
    table = Table(box=box.MARKDOWN)
    for column in columns:
        table.add_column(column, justify="left" if column == "condition" else "right")
    return table


def _ms(seconds: dict[str, float]) -> str:
    return f"{seconds['median'] * 1000:.1f}"


def _range(ratio: dict[str, float]) -> str:
    return f"{ratio['median']:.2f} ({ratio['min']:.2f}-{ratio['max']:.2f})"


def _size(count: int | None) -> str:
    if count is None:
        return "unknown"
    return f"{count / 1e6:.2f} MB" if count >= 1e4 else f"{count} B"
