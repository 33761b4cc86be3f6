"""A report's plots: which there are, what they say, and their pictures; computes no figure.

Pictures of one result are the same to the byte each time: no dates and no software versions are in them, and the
user's own matplotlib style is left out.
"""

from __future__ import annotations

import importlib
import io
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gistlm.errors import DataError, MissingDependencyError
from gistlm.evaluation.statistics import LengthGroup, by_length
from gistlm.report import tables
from gistlm.report.tables import Point, Result, Score, Values, percent

_NAMES = ("gist", "truncation", "tfidf", "pooled", "last", "untrained", "llmlingua2", "selected")
# Okabe and Ito's palette, told apart by the colour-blind, its yellow darkened; the gist is first and strongest
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#000000", "#BDB000")
_MARKERS = "osD^vPX<"
_LINES = ("-", "--", "-.", ":")
_GREY = "#555555"
_TITLES = {
    "nll": "likelihood of the references (nll)",
    "kl": "divergence on the references (kl)",
    "answer_kl": "divergence on own answers (answer_kl)",
}
_LOWEST, _HIGHEST = -100.0, 200.0
"""Per cent; a figure beyond is drawn at the edge, with its value."""
_SMALL = 8.5
_WIDTH, _DPI = 11.0, 110
_GAP = (
    "The gap closed between no prompt (0 %) and full prompt (100 %), with 95 % intervals from a paired bootstrap over "
    "rows; more is better."
)


@dataclass(frozen=True)
class Plot:
    """A picture to be drawn."""

    name: str
    caption: str
    alt: str
    """The picture in words, for those who cannot see it."""
    draw: Callable[[Any], None]
    """Onto an empty matplotlib (sub)figure."""
    height: float = 4.4
    """Inches."""

    @property
    def file(self) -> str:
        """A name for its file, without suffix."""
        return self.name.lower().replace(" ", "-")


def plots_of(result: Result) -> list[Plot]:
    """Those that a result has the figures for."""
    values = result.values
    found = []
    if series := {metric: tables.points(values, metric) for metric in tables.drawn_metrics(values)}:
        groups = {metric: some for metric in series if (some := by_length(values, metric))}
        found.append(_against_compression(series))
        found += [_against_length(values, groups)] if groups else []
        found.append(_against_bytes(values, series))
    if probed := tables.retention(values):
        found.append(_retained(*probed))
    if values["judge"]:
        found.append(_judged(values["judge"]))
    return found


def comparison(results: Sequence[Result]) -> Plot | None:
    """The gists of several results in one plot; None where fewer than two have any."""
    gists = {
        metric: {each.title: found for each in results if (found := tables.points(each.values, metric).get("gist"))}
        for metric in tables.DRAWN
    }
    gists = {metric: series for metric, series in gists.items() if len(series) > 1}
    if not gists:
        return None
    return Plot(
        "Gists of all results",
        f"{_GAP} Compression is a mean over a result's own prompts.",
        f"Lines of the gap closed against compression. {_in_words(gists, behind_name=':')}",
        lambda figure: _draw_against_compression(figure, gists, own_ticks=False),
        4.4 + 0.25 * len(results),
    )


def draw(plot: Plot) -> bytes:
    """One plot as PNG. Raises `MissingDependencyError` without matplotlib."""
    return _png(plot.height, plot.draw)


def draw_all(results: Sequence[Result]) -> bytes:
    """Every plot of every result in one PNG, one under the other. Raises `DataError` where there is none."""
    parts = [
        (plot, [plot.name, result.title, tables.origin_line(result)]) for result in results for plot in plots_of(result)
    ]
    if together := comparison(results):
        parts.insert(0, (together, [together.name]))
    if not parts:
        raise DataError("these results hold no figures to draw; run `gistlm eval` with --data or --probe")
    heights = [plot.height + 0.25 * len(lines) for plot, lines in parts]

    def all_parts(figure: Any) -> None:
        below = figure.subfigures(len(parts), 1, squeeze=False, height_ratios=heights)[:, 0]
        for part, (plot, lines) in zip(below, parts, strict=True):
            part.suptitle("\n".join(shortened(line, 120) for line in lines), fontsize=10)
            plot.draw(part)

    return _png(sum(heights), all_parts)


def shortened(text: str, most: int = 60) -> str:
    """On one line, with its middle left out where it is too long."""
    text = " ".join(text.split())
    half = (most - 1) // 2
    return text if len(text) <= most else f"{text[:half]}…{text[-half:]}"


def _png(height: float, draw: Callable[[Any], None]) -> bytes:
    """What ``draw`` puts onto an empty figure, in matplotlib's own style whatever the user's is."""
    try:
        style, figures = (importlib.import_module(f"matplotlib.{name}") for name in ("style", "figure"))
    except ImportError as error:
        install = "pip install 'gistlm[eval]'"
        raise MissingDependencyError("matplotlib", "the plots of a report", install) from error
    target = io.BytesIO()
    with warnings.catch_warnings(), style.context(["default", {"text.parse_math": False}]):  # names as they stand
        warnings.filterwarnings("ignore", "Glyph")  # a name in a script that the font lacks is drawn as boxes
        figure = figures.Figure(figsize=(_WIDTH, height), dpi=_DPI, layout="constrained")
        draw(figure)
        figure.savefig(target, format="png", metadata={"Software": None})
    return target.getvalue()


def _against_compression(series: dict[str, dict[str, list[Point]]]) -> Plot:
    return Plot(
        "Quality against compression",
        f"{_GAP} Conditions of the same k stand beside each other so that their intervals can be seen.",
        f"Lines of the gap closed against compression. {_in_words(series)}",
        lambda figure: _draw_against_compression(figure, series),
    )


def _against_bytes(values: Values, series: dict[str, dict[str, list[Point]]]) -> Plot:
    full, none = tables.control_bytes(values, "full"), tables.control_bytes(values, "none")
    opening = values["model"]["opening_tokens"]
    kept = f", the {opening} tokens of the template's opening included" if opening else ""
    return Plot(
        "Cost against quality",
        f"The same against the keys and values that stand in the prompt's place{kept}; means over prompts. The star "
        "and the dashed upright are the full prompt, the ring is no prompt. Less memory and more of the gap is better: "
        "up and to the left.",
        f"The gap closed against memory; the full prompt takes {full:,} bytes. {_in_words(series)}",
        lambda figure: _draw_against_bytes(figure, series, full, none),
    )


def _against_length(values: Values, groups: dict[str, dict[str, list[LengthGroup]]]) -> Plot:
    opening = values["model"]["opening_tokens"]
    kept = f"; the {opening} tokens of the template's opening are counted" if opening else ""
    lines = [
        f"{name}: {', '.join('no gap' if each.gap_closed is None else percent(each.gap_closed) for each in some)}"
        for name, some in next(iter(groups.values())).items()
    ]
    return Plot(
        "Quality against prompt length",
        f"The gap that the gist closes over rows whose prompts are of like length{kept}. A group's figures are pooled "
        f"as those of all rows are: over tokens, so that longer outputs weigh more. {_GAP}",
        f"Lines of the gap closed by prompt length. {next(iter(groups))}, shortest first: {'; '.join(lines)}.",
        lambda figure: _draw_against_length(figure, groups),
        4.8,
    )


def _retained(kinds: list[str], conditions: list[str], scores: dict[tuple[str, str], Score]) -> Plot:
    means = {name: [score.accuracy for (_, each), score in scores.items() if each == name] for name in conditions}
    words = ", ".join(f"{name} {percent(sum(some) / len(some))}" for name, some in means.items())
    return Plot(
        "What is retained",
        "Right answers to questions for what short prompts say, by kind of content; more is better. Intervals are in "
        "the table.",
        f"Heat map of right answers by kind of content and condition. Means over kinds: {words}.",
        lambda figure: _draw_retained(figure, kinds, conditions, scores),
        1.2 + 0.32 * len(kinds),
    )


def _judged(entries: list[dict[str, Any]]) -> Plot:
    words = ", ".join(f"{entry['condition']} {percent(entry['win_rate'])}" for entry in entries)
    return Plot(
        "Judged answers",
        "How often a judging model prefers a condition's answer to the other's, a tie being half a win, with 95 % "
        "intervals; at 50 % both are as good.",
        f"Bars of win rates: {words}.",
        lambda figure: _draw_judged(figure, entries),
        1.4 + 0.4 * len(entries),
    )


def _in_words(series: dict[str, dict[str, list[Point]]], behind_name: str = "") -> str:
    """The first metric's figures as a sentence."""
    metric, named = next(iter(series.items()))
    words = {
        name: ", ".join(f"{percent(each.gap_closed)} at k={each.k}" for each in some) for name, some in named.items()
    }
    return f"{metric}: {'; '.join(f'{name}{behind_name} {figures}' for name, figures in words.items())}."


def _draw_against_compression(
    figure: Any, series: Mapping[str, Mapping[str, list[Point]]], own_ticks: bool = True
) -> None:
    """metric -> series' name -> points; own_ticks: whether all series share their compressions, which are marked."""
    axes_of = _gap_axes(figure, series)
    for metric, axes in axes_of.items():
        named = series[metric]
        xs = [point.compression for some in named.values() for point in some]
        step = 0.013 * math.log(max(xs) / min(xs)) or 0.01
        for place, (name, some) in enumerate(named.items()):
            shift = math.exp(step * (place - (len(named) - 1) / 2))
            _line(axes, [point.compression * shift for point in some], some, shortened(name, 120), _style(name, named))
        axes.set_xscale("log")
        marks = {each.compression: f"{each.compression:.1f}x\nk={each.k}" for some in named.values() for each in some}
        _log_ticks(axes, marks if own_ticks else {}, "x")
    _legend(figure, axes_of, "compression: prompt tokens ÷ k")


def _draw_against_bytes(figure: Any, series: Mapping[str, Mapping[str, list[Point]]], full: int, none: int) -> None:
    """metric -> series' name -> points; full, none: bytes of the controls."""
    axes_of = _gap_axes(figure, series)
    for metric, axes in axes_of.items():
        for name, some in series[metric].items():
            places = [point.kv_bytes / 1024 for point in some]
            _line(axes, places, some, name, _style(name, series[metric]))
            for x, point in zip(places, some, strict=True) if name == "gist" else ():
                spot = {"xytext": (5, -12), "textcoords": "offset points", "fontsize": _SMALL, "color": _COLOURS[0]}
                axes.annotate(f"k={point.k}", (x, _inside(100 * point.gap_closed)), **spot)
        controls = {"full prompt": (full, 100, "*", 14), "no prompt": (none, 0, "o", 8)}
        for name, (size, height, marker, width) in controls.items():
            look = {"marker": marker, "markersize": width, "color": _GREY, "linestyle": "", "label": name}
            axes.plot([size / 1024] if size > 0 else [], [height] if size > 0 else [], fillstyle="none", **look)
        axes.axvline(full / 1024, color=_GREY, linewidth=0.8, linestyle="--")
        axes.set_xscale("log")
        axes.margins(x=0.15)
        _log_ticks(axes, {}, "")
    _legend(figure, axes_of, "KiB of keys and values a prompt")


def _draw_against_length(figure: Any, groups: Mapping[str, Mapping[str, list[LengthGroup]]]) -> None:
    """metric -> gist's label -> groups of rows, shortest first."""
    from matplotlib import colormaps

    axes_of, most = _gap_axes(figure, groups), max(map(len, groups.values()))
    colours = [colormaps["viridis"](0.85 * place / max(1, most - 1)) for place in range(most)]  # ordered in grey too
    for metric, axes in axes_of.items():
        for place, (name, some) in enumerate(groups[metric].items()):
            style = {"color": colours[place], "marker": _MARKERS[place % len(_MARKERS)], "linewidth": 1.6}
            shift = 0.06 * (place - (len(groups[metric]) - 1) / 2)
            _line(axes, [spot + shift for spot in range(len(some))], some, name, style)
        some = next(iter(groups[metric].values()))
        labels = [f"{each.lengths}\n{each.rows} rows" for each in some]
        axes.set_xticks(range(len(some)), labels, fontsize=_SMALL)
        axes.set_xlim(-0.5, len(some) - 0.5)
    _legend(figure, axes_of, "prompt length, tokens")


def _draw_retained(
    figure: Any, kinds: Sequence[str], conditions: Sequence[str], scores: Mapping[tuple[str, str], Score]
) -> None:
    """A heat map of right answers, with their numbers in it."""
    axes = figure.subplots()
    right = [
        [100 * scores[kind, each].accuracy if (kind, each) in scores else math.nan for each in conditions]
        for kind in kinds
    ]
    image = axes.imshow(right, cmap="cividis", vmin=0, vmax=100, aspect="auto")
    axes.set_xticks(range(len(conditions)), [shortened(each, 16) for each in conditions])
    axes.set_yticks(range(len(kinds)), [shortened(kind, 24) for kind in kinds])
    axes.tick_params(length=0)
    for row, kind in enumerate(kinds):
        for column, each in enumerate(conditions):
            if score := scores.get((kind, each)):
                colour = "black" if score.accuracy > 0.45 else "white"
                text = f"{score.correct} of {score.n}"
                axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=9)
    figure.colorbar(image, ax=axes, label="right answers, %", pad=0.01)


def _draw_judged(figure: Any, entries: Sequence[Mapping[str, Any]]) -> None:
    """Bars of win rates with intervals."""
    axes = figure.subplots()
    for place, entry in enumerate(entries):
        rate, (low, high) = entry["win_rate"], entry["win_rate_95"]
        error = [[100 * max(0.0, rate - low)], [100 * max(0.0, high - rate)]]
        axes.barh(place, 100 * rate, xerr=error, capsize=3, color=_COLOURS[5], edgecolor=_COLOURS[0], height=0.6)
    names = [shortened(f"{entry['condition']} against {entry['against']}", 40) for entry in entries]
    axes.set_yticks(range(len(entries)), names)
    axes.invert_yaxis()
    axes.axvline(50, color=_GREY, linewidth=0.8, linestyle="--")
    axes.set_xlim(0, 100)
    axes.set_xlabel("win rate, %")
    axes.grid(alpha=0.25, axis="x")


def _gap_axes(figure: Any, series: Mapping[str, Mapping[str, Sequence[Point | LengthGroup]]]) -> dict[str, Any]:
    """metric -> axes, with lines for both controls and room for everything that is drawn."""
    row = figure.subplots(1, len(series), squeeze=False, sharey=True)[0]
    bottom, top = _limits([each for named in series.values() for some in named.values() for each in some])
    for axes, metric in zip(row, series, strict=True):
        axes.axhline(100, color=_GREY, linewidth=0.8, linestyle="--")
        axes.axhline(0, color=_GREY, linewidth=0.8, linestyle=":")
        axes.set_title(_TITLES[metric], fontsize=10)
        axes.tick_params(labelsize=_SMALL)
        axes.grid(alpha=0.25)
        axes.set_ylim(bottom, top)
    spot = {"xycoords": ("axes fraction", "data"), "va": "center", "color": _GREY, "fontsize": _SMALL}
    for height, name in ((100, "full prompt"), (0, "no prompt")):
        row[-1].annotate(name, (1.01, height), **spot)
    row[0].set_ylabel("gap closed, %")
    return dict(zip(series, row, strict=True))


def _limits(drawn: Sequence[Point | LengthGroup]) -> tuple[float, float]:
    """Room for both controls, all gaps closed, and intervals that are not all too long; per cent."""
    heights = [100 * each.gap_closed for each in drawn if each.gap_closed is not None]
    ends = [100 * end for each in drawn for end in each.interval or ()]
    low = min([-8, *(height - 8 for height in heights), *(max(-40, end - 4) for end in ends)])
    high = max([112, *(height + 8 for height in heights), *(min(160, end + 4) for end in ends)])
    return max(_LOWEST - 8, low), min(_HIGHEST + 8, high)


def _line(axes: Any, places: Sequence[float], drawn: Sequence[Point | LengthGroup], name: str, style: Any) -> None:
    """Gaps closed with their intervals."""
    heights = [math.nan if each.gap_closed is None else 100 * each.gap_closed for each in drawn]
    ends = [each.interval or (each.gap_closed or 0.0,) * 2 for each in drawn]
    below = [max(0.0, _inside(height) - 100 * low) for height, (low, _) in zip(heights, ends, strict=True)]
    above = [max(0.0, 100 * high - _inside(height)) for height, (_, high) in zip(heights, ends, strict=True)]
    shown = f" {name}" if name.startswith("_") else name  # matplotlib hides names that begin so
    axes.errorbar(places, [*map(_inside, heights)], yerr=[below, above], label=shown, capsize=2, markersize=5, **style)
    for place, height in zip(places, heights, strict=True):
        if height != _inside(height) and not math.isnan(height):
            spot = {"xytext": (0, 9 if height < _LOWEST else -16), "textcoords": "offset points", "ha": "center"}
            axes.annotate(f"{height:,.0f} %", (place, _inside(height)), fontsize=_SMALL, color=style["color"], **spot)


def _inside(height: float) -> float:
    return height if math.isnan(height) else min(_HIGHEST, max(_LOWEST, height))


def _style(name: str, names: Mapping[str, Any]) -> dict[str, Any]:
    """Colour, marker and line of a series: a baseline has its own wherever it is drawn, all else by its place."""
    place = _NAMES.index(name) if name in _NAMES else list(names).index(name)
    strong = name == "gist" or name not in _NAMES
    return {
        "color": _COLOURS[place % len(_COLOURS)],
        "marker": _MARKERS[place % len(_MARKERS)],
        "linestyle": _LINES[place // len(_COLOURS) % len(_LINES)],
        "linewidth": 2.2 if strong else 1.1,
        "zorder": 3 if strong else 2,
    }


def _log_ticks(axes: Any, marks: Mapping[float, str], unit: str) -> None:
    """Ticks at the marks that do not crowd each other, or at round numbers where none is given."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

    low, high = (math.log(edge) for edge in axes.get_xlim())
    kept: list[float] = []
    for place in sorted(marks):
        if not kept or math.log(place / kept[-1]) > 0.1 * (high - low):
            kept.append(place)
    if kept:
        axes.set_xticks(kept, [marks[place] for place in kept], fontsize=_SMALL)
        axes.xaxis.set_minor_locator(NullLocator())
        return
    subs = (1.0, 1.5, 2.0, 3.0, 5.0, 7.0) if high - low < 3 else (1.0, 2.0, 5.0) if high - low < 7 else (1.0,)
    axes.xaxis.set_major_locator(LogLocator(subs=subs))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.6g}{unit}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _legend(figure: Any, axes_of: Mapping[str, Any], along: str) -> None:
    """What all axes have along them, and all their series beneath them."""
    found: dict[str, Any] = {}
    for axes in axes_of.values():
        axes.set_xlabel(along, fontsize=9)
        marks, labels = axes.get_legend_handles_labels()
        found |= dict(zip(labels, marks, strict=True))
    longest = max(map(len, found), default=0)
    columns = max(1, min(len(found), 120 // (longest + 8)))
    figure.legend(found.values(), found, loc="outside lower center", ncols=columns, frameon=False, fontsize=9)
