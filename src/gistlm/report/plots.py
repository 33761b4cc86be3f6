"""A report's plots: which there are, what they say, and their pictures; computes no figure.

Pictures of one result are the same to the byte each time: no dates and no software versions are in them, and the
user's own matplotlib style is left out.
"""

from __future__ import annotations

import importlib
import io
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from gistlm.errors import DataError, MissingDependencyError
from gistlm.evaluation.statistics import Bin, by_length
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


def against_compression(figure: Any, series: Mapping[str, Mapping[str, list[Point]]], own_ticks: bool = True) -> None:
    """metric -> series' name -> points; own_ticks: whether all series share their compressions, which are marked."""
    panels = _gap_panels(
        figure, series, [point for found in series.values() for some in found.values() for point in some]
    )
    for axes, metric in panels:
        named = series[metric]
        xs = [point.compression for some in named.values() for point in some]
        step = 0.013 * math.log(max(xs) / min(xs)) or 0.01
        for place, (name, some) in enumerate(named.items()):
            shift = math.exp(step * (place - (len(named) - 1) / 2))
            _line(axes, [point.compression * shift for point in some], some, shortened(name, 120), _style(name, named))
        axes.set_xscale("log")
        marks = {
            point.compression: f"{point.compression:.1f}x\nk={point.k}" for some in named.values() for point in some
        }
        _log_ticks(axes, marks if own_ticks else {}, "x")
    _legend(figure, panels, "compression: prompt tokens ÷ k")


def against_bytes(figure: Any, series: Mapping[str, Mapping[str, list[Point]]], full: int, none: int) -> None:
    """metric -> series' name -> points; full, none: bytes of the controls."""
    panels = _gap_panels(
        figure, series, [point for found in series.values() for some in found.values() for point in some]
    )
    for axes, metric in panels:
        for name, some in series[metric].items():
            places = [point.kv_bytes / 1024 for point in some]
            _line(axes, places, some, name, _style(name, series[metric]))
            for x, point in zip(places, some, strict=True) if name == "gist" else ():
                spot = {"xytext": (5, -12), "textcoords": "offset points", "fontsize": _SMALL, "color": _COLOURS[0]}
                axes.annotate(f"k={point.k}", (x, _inside(100 * point.share)), **spot)
        controls = {"full prompt": (full, 100, "*", 14), "no prompt": (none, 0, "o", 8)}
        for name, (size, share, marker, width) in controls.items():
            look = {"marker": marker, "markersize": width, "color": _GREY, "linestyle": "", "label": name}
            axes.plot([size / 1024] if size > 0 else [], [share] if size > 0 else [], fillstyle="none", **look)
        axes.axvline(full / 1024, color=_GREY, linewidth=0.8, linestyle="--")
        axes.set_xscale("log")
        axes.margins(x=0.15)
        _log_ticks(axes, {}, "")
    _legend(figure, panels, "KiB of keys and values a prompt")


def against_length(figure: Any, bins: Mapping[str, Mapping[str, list[Bin]]]) -> None:
    """metric -> gist's label -> groups of rows, shortest first."""
    panels = _gap_panels(figure, bins, [each for found in bins.values() for some in found.values() for each in some])
    colours = _scale(max(map(len, bins.values())))
    for axes, metric in panels:
        for place, (name, some) in enumerate(bins[metric].items()):
            style = {"color": colours[place], "marker": _MARKERS[place % len(_MARKERS)], "linewidth": 1.6}
            shift = 0.06 * (place - (len(bins[metric]) - 1) / 2)
            _line(axes, [spot + shift for spot in range(len(some))], some, name, style)
        some = next(iter(bins[metric].values()))
        labels = [f"{each.lengths}\n{each.rows} rows" for each in some]
        axes.set_xticks(range(len(some)), labels, fontsize=_SMALL)
        axes.set_xlim(-0.5, len(some) - 0.5)
    _legend(figure, panels, "prompt length, tokens")


def retained(
    figure: Any, kinds: Sequence[str], conditions: Sequence[str], scores: Mapping[tuple[str, str], Score]
) -> None:
    """A heat map of right answers, with their numbers in it."""
    axes = figure.subplots()
    shares = [
        [100 * scores[kind, each].share if (kind, each) in scores else math.nan for each in conditions]
        for kind in kinds
    ]
    image = axes.imshow(shares, cmap="cividis", vmin=0, vmax=100, aspect="auto")
    axes.set_xticks(range(len(conditions)), [shortened(each, 16) for each in conditions])
    axes.set_yticks(range(len(kinds)), [shortened(kind, 24) for kind in kinds])
    axes.tick_params(length=0)
    for row, kind in enumerate(kinds):
        for column, each in enumerate(conditions):
            if score := scores.get((kind, each)):
                colour = "black" if score.share > 0.45 else "white"
                text = f"{score.correct} of {score.n}"
                axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=9)
    figure.colorbar(image, ax=axes, label="right answers, %", pad=0.01)


def judged(figure: Any, entries: Sequence[Mapping[str, Any]]) -> None:
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


def shortened(text: str, most: int = 60) -> str:
    """On one line, with its middle left out where it is too long."""
    text = " ".join(text.split())
    half = (most - 1) // 2
    return text if len(text) <= most else f"{text[:half]}…{text[-half:]}"


def _gap_panels(figure: Any, metrics: Mapping[str, Any], drawn: Sequence[Point | Bin]) -> list[tuple[Any, str]]:
    """An axes for each metric, with lines for both controls and room for everything that is drawn."""
    row = figure.subplots(1, len(metrics), squeeze=False, sharey=True)[0]
    bottom, top = _limits(drawn)
    for axes, metric in zip(row, metrics, strict=True):
        axes.axhline(100, color=_GREY, linewidth=0.8, linestyle="--")
        axes.axhline(0, color=_GREY, linewidth=0.8, linestyle=":")
        axes.set_title(_TITLES[metric], fontsize=10)
        axes.tick_params(labelsize=_SMALL)
        axes.grid(alpha=0.25)
        axes.set_ylim(bottom, top)
    for height, name in ((100, "full prompt"), (0, "no prompt")):
        row[-1].annotate(
            name, (1.01, height), xycoords=("axes fraction", "data"), va="center", color=_GREY, fontsize=_SMALL
        )
    row[0].set_ylabel("gap closed, %")
    return list(zip(row, metrics, strict=True))


def _limits(drawn: Sequence[Point | Bin]) -> tuple[float, float]:
    """Room for both controls, all shares, and intervals that are not all too long; per cent."""
    shares = [100 * each.share for each in drawn if each.share is not None]
    ends = [100 * end for each in drawn for end in each.interval or ()]
    low = min([-8, *(share - 8 for share in shares), *(max(-40, end - 4) for end in ends)])
    high = max([112, *(share + 8 for share in shares), *(min(160, end + 4) for end in ends)])
    return max(_LOWEST - 8, low), min(_HIGHEST + 8, high)


def _line(axes: Any, places: Sequence[float], drawn: Sequence[Point] | Sequence[Bin], name: str, style: Any) -> None:
    """Shares with their intervals."""
    shares = [math.nan if each.share is None else 100 * each.share for each in drawn]
    ends = [each.interval or (each.share or 0.0,) * 2 for each in drawn]
    below = [max(0.0, _inside(share) - 100 * low) for share, (low, _) in zip(shares, ends, strict=True)]
    above = [max(0.0, 100 * high - _inside(share)) for share, (_, high) in zip(shares, ends, strict=True)]
    shown = f" {name}" if name.startswith("_") else name  # matplotlib hides names that begin so
    axes.errorbar(places, [*map(_inside, shares)], yerr=[below, above], label=shown, capsize=2, markersize=5, **style)
    for place, share in zip(places, shares, strict=True):
        if share != _inside(share) and not math.isnan(share):
            spot = {"xytext": (0, 9 if share < _LOWEST else -16), "textcoords": "offset points", "ha": "center"}
            axes.annotate(f"{share:,.0f} %", (place, _inside(share)), fontsize=_SMALL, color=style["color"], **spot)


def _inside(share: float) -> float:
    return share if math.isnan(share) else min(_HIGHEST, max(_LOWEST, share))


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


def _scale(colours: int) -> list[Any]:
    """Colours in order, dark to light, told apart in grey too."""
    from matplotlib import colormaps

    return [colormaps["viridis"](0.85 * place / max(1, colours - 1)) for place in range(colours)]


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


def _legend(figure: Any, panels: Sequence[tuple[Any, str]], along: str) -> None:
    """What is drawn along each panel, and all series of all panels beneath them."""
    for axes, _ in panels:
        axes.set_xlabel(along, fontsize=9)
    found = {label: mark for axes, _ in panels for mark, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    longest = max(map(len, found), default=0)
    columns = max(1, min(len(found), 120 // (longest + 8)))
    figure.legend(found.values(), found, loc="outside lower center", ncols=columns, frameon=False, fontsize=9)


_WIDTH, _DPI = 11.0, 110
_GAP = (
    "The share of the gap between no prompt (0 %) and full prompt (100 %) that is closed, with 95 % intervals from a "
    "paired bootstrap over rows; more is better."
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
    if tables.drawn_metrics(values):
        bins = {metric: some for metric in tables.drawn_metrics(values) if (some := by_length(values, metric))}
        found.append(_against_compression(values))
        found += [_against_length(values, bins)] if bins else []
        found.append(_against_bytes(values))
    if values["retention"]:
        found.append(_retained(values))
    if values["judge"]:
        found.append(_judged(values))
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
    words = "; ".join(f"{name}: {_in_words(some)}" for name, some in gists[next(iter(gists))].items())
    return Plot(
        "Gists of all results",
        f"{_GAP} Compression is a mean over a result's own prompts.",
        f"Lines of the gap closed against compression. {next(iter(gists))}: {words}.",
        lambda figure: against_compression(figure, gists, own_ticks=False),
        4.4 + 0.25 * len(results),
    )


def draw(plot: Plot) -> bytes:
    """One plot as PNG. Raises `MissingDependencyError` without matplotlib."""
    with _fixed_style():
        figure = _figure(plot.height)
        plot.draw(figure)
        return _png(figure)


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
    with _fixed_style():
        figure = _figure(sum(heights))
        below = figure.subfigures(len(parts), 1, squeeze=False, height_ratios=heights)[:, 0]
        for part, (plot, lines) in zip(below, parts, strict=True):
            part.suptitle("\n".join(shortened(line, 120) for line in lines), fontsize=10)
            plot.draw(part)
        return _png(figure)


def _against_compression(values: Values) -> Plot:
    series = {metric: tables.points(values, metric) for metric in tables.drawn_metrics(values)}
    return Plot(
        "Quality against compression",
        f"{_GAP} Conditions of the same k stand beside each other so that their intervals can be seen.",
        f"Lines of the gap closed against compression. {_in_words_by_name(series)}",
        lambda figure: against_compression(figure, series),
    )


def _against_bytes(values: Values) -> Plot:
    series = {metric: tables.points(values, metric) for metric in tables.drawn_metrics(values)}
    full, none = tables.control_bytes(values, "full"), tables.control_bytes(values, "none")
    opening = values["model"]["opening_tokens"]
    kept = f", the {opening} tokens of the template's opening included" if opening else ""
    return Plot(
        "Cost against quality",
        f"The same against the keys and values that stand in the prompt's place{kept}; means over prompts. The star "
        f"and the dashed upright are the full prompt, the ring is no prompt. Less memory and "
        "more of the gap is better: up and to the left.",
        f"The gap closed against memory; the full prompt takes {full:,} bytes. {_in_words_by_name(series)}",
        lambda figure: against_bytes(figure, series, full, none),
    )


def _against_length(values: Values, bins: dict[str, dict[str, list[Bin]]]) -> Plot:
    opening = values["model"]["opening_tokens"]
    kept = f"; the {opening} tokens of the template's opening are counted" if opening else ""
    lines = [
        f"{name}: {', '.join('no gap' if each.share is None else percent(each.share) for each in some)}"
        for name, some in next(iter(bins.values())).items()
    ]
    return Plot(
        "Quality against prompt length",
        f"The gist's share of the gap over rows whose prompts are of like length{kept}. A group's figures are pooled "
        f"as those of all rows are: over tokens, so that longer outputs weigh more. {_GAP}",
        f"Lines of the gap closed by prompt length. {next(iter(bins))}, shortest first: {'; '.join(lines)}.",
        lambda figure: against_length(figure, bins),
        4.8,
    )


def _retained(values: Values) -> Plot:
    probed = tables.retention(values)
    assert probed is not None
    kinds, conditions, scores = probed
    means = {name: [score.share for (_, each), score in scores.items() if each == name] for name in conditions}
    words = ", ".join(f"{name} {percent(sum(some) / len(some))}" for name, some in means.items())
    return Plot(
        "What is retained",
        "Right answers to questions for what short prompts say, by kind of content; more is better. Intervals are in "
        "the table.",
        f"Heat map of right answers by kind of content and condition. Means over kinds: {words}.",
        lambda figure: retained(figure, kinds, conditions, scores),
        1.2 + 0.32 * len(kinds),
    )


def _judged(values: Values) -> Plot:
    entries = values["judge"]
    words = ", ".join(f"{entry['condition']} {percent(entry['win_rate'])}" for entry in entries)
    return Plot(
        "Judged answers",
        "How often a judging model prefers a condition's answer to the other's, a tie being half a win, with 95 % "
        "intervals; at 50 % both are as good.",
        f"Bars of win rates: {words}.",
        lambda figure: judged(figure, entries),
        1.4 + 0.4 * len(entries),
    )


def _in_words_by_name(series: dict[str, dict[str, list[tables.Point]]]) -> str:
    """The first metric's figures as a sentence."""
    metric, found = next(iter(series.items()))
    return f"{metric}: " + "; ".join(f"{name} {_in_words(some)}" for name, some in found.items()) + "."


def _in_words(points: Sequence[tables.Point]) -> str:
    return ", ".join(f"{percent(point.share)} at k={point.k}" for point in points)


@contextmanager
def _fixed_style() -> Iterator[None]:
    """matplotlib's own style, whatever the user's is, with names of files drawn as they stand."""
    try:
        style = importlib.import_module("matplotlib.style")
    except ImportError as error:
        install = "pip install 'gistlm[eval]'"
        raise MissingDependencyError("matplotlib", "the plots of a report", install) from error
    with warnings.catch_warnings(), style.context(["default", {"text.parse_math": False}]):
        warnings.filterwarnings("ignore", "Glyph")  # a name in a script that the font lacks is drawn as boxes
        yield


def _figure(height: float) -> Any:
    figure: Any = importlib.import_module("matplotlib.figure")
    return figure.Figure(figsize=(_WIDTH, height), dpi=_DPI, layout="constrained")


def _png(figure: Any) -> bytes:
    target = io.BytesIO()
    figure.savefig(target, format="png", metadata={"Software": None})
    return target.getvalue()
