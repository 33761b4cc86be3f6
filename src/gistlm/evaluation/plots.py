"""A report's plots, drawn with matplotlib; computes nothing of what it shows.

Pictures of one result are the same to the byte each time: no dates and no software versions are in them.
"""

from __future__ import annotations

import importlib
import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from gistlm.errors import MissingDependencyError
from gistlm.evaluation import report
from gistlm.evaluation.report import Result

# Okabe and Ito's palette, told apart by the colour-blind; the gist comes first and is drawn strongest
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#000000")
_MARKERS = "osD^vPX"
_SHORT = {"nll": "likelihood of references", "kl": "divergence, references", "answer_kl": "divergence, own answers"}
_SIZE = (11.0, 4.2)
"""Inches of one plot."""
_DPI = 110


@dataclass(frozen=True)
class Plot:
    """A kind of plot."""

    name: str
    caption: str
    applies: Callable[[Result], bool]
    draw: Callable[[Any, Result], None]
    """Onto an empty matplotlib (sub)figure."""


def plots_of(result: Result) -> list[Plot]:
    """Those that a result has the figures for."""
    return [plot for plot in PLOTS if plot.applies(result)]


def draw(plot: Plot, result: Result) -> bytes:
    """One plot as PNG. Raises `MissingDependencyError` without matplotlib."""
    figure = _figure(1)
    plot.draw(figure, result)
    return _png(figure)


def draw_all(results: Sequence[Result]) -> bytes:
    """Every plot of every result in one PNG, one under the other."""
    pairs = [(plot, result) for result in results for plot in plots_of(result)]
    figure = _figure(max(1, len(pairs)))
    below = figure.subfigures(max(1, len(pairs)), 1, squeeze=False)[:, 0]
    for part, (plot, result) in zip(below, pairs, strict=False):
        plot.draw(part, result)
        part.suptitle(f"{plot.name}: {report.title(result)}", fontsize=10)
    return _png(figure)


def _against_compression(figure: Any, result: Result) -> None:
    panels = _panels(figure, result)
    for axes, metric in panels:
        for style, (name, points) in _styles(report.points(result, metric)):
            _with_intervals(axes, [point.compression for point in points], points, name, style)
        axes.set_xscale("log")
        _plain_ticks(axes.xaxis)
    figure.supxlabel("compression: prompt tokens for each token in their place", fontsize=10)
    _legend(panels)


def _against_bytes(figure: Any, result: Result) -> None:
    whole = report.full_bytes(result)
    panels = _panels(figure, result)
    for axes, metric in panels:
        for style, (name, points) in _styles(report.points(result, metric)):
            _with_intervals(axes, [point.kv_bytes / 1024 for point in points], points, name, style)
        axes.plot([whole / 1024], [100], marker="*", markersize=13, color="#555555", linestyle="", label="full prompt")
    figure.supxlabel("KiB of keys and values a prompt", fontsize=10)
    _legend(panels)


def _against_length(figure: Any, result: Result) -> None:
    panels = _panels(figure, result)
    for axes, metric in panels:
        groups = report.by_length(result, metric)
        for style, (name, bins) in _styles(groups):
            shares = [math.nan if each.share is None else 100 * each.share for each in bins]
            axes.plot(range(len(bins)), shares, label=name, **style)
        bins = next(iter(groups.values()))
        axes.set_xticks(range(len(bins)), [f"{each.shortest} to {each.longest}\n{each.rows} rows" for each in bins])
    figure.supxlabel("prompt tokens", fontsize=10)
    _legend(panels)


def _retention(figure: Any, result: Result) -> None:
    probed = report.retention(result)
    assert probed is not None
    kinds, conditions, scores = probed
    axes = figure.subplots()
    axes.imshow([[100 * score for score in row] for row in scores], cmap="cividis", vmin=0, vmax=100, aspect="auto")
    axes.set_xticks(range(len(conditions)), conditions)
    axes.set_yticks(range(len(kinds)), kinds)
    for row, values in enumerate(scores):
        for column, score in enumerate(values):
            dark = not score > 0.6
            axes.text(column, row, f"{score:.0%}", ha="center", va="center", color="white" if dark else "black")


PLOTS = (
    Plot(
        "Quality against compression",
        "The share of the gap between no prompt (0 %) and full prompt (100 %) that gists and baselines of the same "
        "bytes close, with 95 % intervals.",
        lambda result: bool(report.drawn_metrics(result)),
        _against_compression,
    ),
    Plot(
        "Quality against prompt length",
        "The same for the gist over rows of like prompt length, in groups of as many rows each; means over tokens.",
        lambda result: bool(report.drawn_metrics(result)) and bool(result["rows"]),
        _against_length,
    ),
    Plot(
        "Cost against quality",
        "The same against the memory that stands in the prompt's place, a mean over prompts; the star is the full "
        "prompt's KV cache.",
        lambda result: bool(report.drawn_metrics(result)),
        _against_bytes,
    ),
    Plot(
        "What is retained",
        "Right answers to questions for what short prompts say, by kind of content.",
        lambda result: bool(result["retention"]),
        _retention,
    ),
)


def _panels(figure: Any, result: Result) -> list[tuple[Any, str]]:
    """An axes for each metric with a share of the gap."""
    metrics = report.drawn_metrics(result)
    row = figure.subplots(1, len(metrics), squeeze=False, sharey=True)[0]
    for axes, metric in zip(row, metrics, strict=True):
        axes.axhline(100, color="#555555", linewidth=0.8, linestyle="--")
        axes.axhline(0, color="#555555", linewidth=0.8, linestyle=":")
        axes.set_title(_SHORT[metric], fontsize=10)
        axes.grid(alpha=0.25)
    row[0].set_ylabel("gap closed, %")
    return list(zip(row, metrics, strict=True))


def _legend(panels: Sequence[tuple[Any, str]]) -> None:
    """Of all series, beside the last panel."""
    panels[-1][0].legend(loc="center left", bbox_to_anchor=(1.02, 0.5), frameon=False, fontsize=9)


def _styles(series: dict[str, Any]) -> list[tuple[dict[str, Any], tuple[str, Any]]]:
    """Colour, marker and width of each series."""
    return [
        (
            {
                "color": _COLOURS[place % len(_COLOURS)],
                "marker": _MARKERS[place % len(_MARKERS)],
                "linewidth": 2.2 if name.startswith("gist") else 1.1,
            },
            (name, values),
        )
        for place, (name, values) in enumerate(series.items())
    ]


def _with_intervals(axes: Any, x: Sequence[float], points: Sequence[report.Point], name: str, style: Any) -> None:
    below = [100 * max(0.0, point.share - point.interval[0]) for point in points]
    above = [100 * max(0.0, point.interval[1] - point.share) for point in points]
    axes.errorbar(x, [100 * point.share for point in points], yerr=[below, above], label=name, capsize=2, **style)


def _plain_ticks(axis: Any) -> None:
    from matplotlib.ticker import FuncFormatter, NullFormatter

    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}x"))
    axis.set_minor_formatter(NullFormatter())


def _figure(plots: int) -> Any:
    try:
        module = importlib.import_module("matplotlib.figure")
    except ImportError as error:
        install = "pip install 'gistlm[eval]'"
        raise MissingDependencyError("matplotlib", "the plots of a report", install) from error
    return module.Figure(figsize=(_SIZE[0], _SIZE[1] * plots), dpi=_DPI, layout="constrained")


def _png(figure: Any) -> bytes:
    target = io.BytesIO()
    figure.savefig(target, format="png", metadata={"Software": None})
    return target.getvalue()
