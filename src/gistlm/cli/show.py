"""Figures as people and programs read them: byte counts, seconds, tables, JSON; knows no command."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text


def print_json(values: Any) -> None:
    """One JSON value on stdout."""
    print(json.dumps(values, indent=2, ensure_ascii=False))


def print_table(rows: Iterable[Sequence[str]], header: Sequence[str] = (), title: str | None = None) -> None:
    """A table on stdout; its cells are plain text, never markup."""
    table = Table(
        title=Text(title) if title else None,
        title_justify="left",
        box=box.SIMPLE,
        show_header=bool(header),
        pad_edge=False,
    )
    rows = [list(row) for row in rows]
    for column in range(len(header) or max(map(len, rows), default=0)):
        table.add_column(Text(header[column]) if header else "", overflow="fold", no_wrap=False)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    Console().print(table)


def byte_count(count: int) -> str:
    """For example 184,320 bytes as "180 KiB"."""
    size = float(count)
    for unit in ("bytes", "KiB", "MiB"):
        if size < 1024:
            return f"{size:,.0f} {unit}" if unit == "bytes" or size >= 100 else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:,.1f} GiB"


def duration(seconds: float) -> str:
    """For example "85 ms", "1.32 s" or "2:05:09" from an hour on."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 100:
        return f"{seconds:.2f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"
