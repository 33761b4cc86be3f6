"""A report's plots: which there are, what they say, and their pictures; `panels` draws them with matplotlib.

Pictures of one result are the same to the byte each time: no dates and no software versions are in them, and the
user's own matplotlib style is left out.
"""

from __future__ import annotations

import importlib
import io
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from gistlm.errors import DataError, MissingDependencyError
from gistlm.evaluation import panels, report
from gistlm.evaluation.lengths import Bin, by_length
from gistlm.evaluation.report import Result, Values, percent

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
    if report.drawn_metrics(values):
        bins = {metric: some for metric in report.drawn_metrics(values) if (some := by_length(values, metric))}
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
        metric: {each.title: found for each in results if (found := report.points(each.values, metric).get("gist"))}
        for metric in report.DRAWN
    }
    gists = {metric: series for metric, series in gists.items() if len(series) > 1}
    if not gists:
        return None
    words = "; ".join(f"{name}: {_in_words(some)}" for name, some in gists[next(iter(gists))].items())
    return Plot(
        "Gists of all results",
        f"{_GAP} Compression is a mean over a result's own prompts.",
        f"Lines of the gap closed against compression. {next(iter(gists))}: {words}.",
        lambda figure: panels.against_compression(figure, gists, own_ticks=False),
        4.4 + 0.25 * len(results),
    )


def draw(plot: Plot) -> bytes:
    """One plot as PNG. Raises `MissingDependencyError` without matplotlib."""
    with _style():
        figure = _figure(plot.height)
        plot.draw(figure)
        return _png(figure)


def draw_all(results: Sequence[Result]) -> bytes:
    """Every plot of every result in one PNG, one under the other. Raises `DataError` where there is none."""
    parts = [
        (plot, [plot.name, result.title, report.origin_line(result)]) for result in results for plot in plots_of(result)
    ]
    if together := comparison(results):
        parts.insert(0, (together, [together.name]))
    if not parts:
        raise DataError("these results hold no figures to draw; run `gistlm eval` with --data or --probe")
    heights = [plot.height + 0.25 * len(lines) for plot, lines in parts]
    with _style():
        figure = _figure(sum(heights))
        below = figure.subfigures(len(parts), 1, squeeze=False, height_ratios=heights)[:, 0]
        for part, (plot, lines) in zip(below, parts, strict=True):
            part.suptitle("\n".join(panels.shortened(line, 120) for line in lines), fontsize=10)
            plot.draw(part)
        return _png(figure)


def _against_compression(values: Values) -> Plot:
    series = {metric: report.points(values, metric) for metric in report.drawn_metrics(values)}
    return Plot(
        "Quality against compression",
        f"{_GAP} Conditions of the same k stand beside each other so that their intervals can be seen.",
        f"Lines of the gap closed against compression. {_in_words_by_name(series)}",
        lambda figure: panels.against_compression(figure, series),
    )


def _against_bytes(values: Values) -> Plot:
    series = {metric: report.points(values, metric) for metric in report.drawn_metrics(values)}
    full, none = report.control_bytes(values, "full"), report.control_bytes(values, "none")
    opening = values["model"]["opening_tokens"]
    kept = f", the {opening} tokens of the template's opening included" if opening else ""
    return Plot(
        "Cost against quality",
        f"The same against the keys and values that stand in the prompt's place{kept}; means over prompts. The star "
        f"and the dashed upright are the full prompt, the ring is no prompt. Less memory and "
        "more of the gap is better: up and to the left.",
        f"The gap closed against memory; the full prompt takes {full:,} bytes. {_in_words_by_name(series)}",
        lambda figure: panels.against_bytes(figure, series, full, none),
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
        lambda figure: panels.against_length(figure, bins),
        4.8,
    )


def _retained(values: Values) -> Plot:
    probed = report.retention(values)
    assert probed is not None
    kinds, conditions, scores = probed
    means = {name: [score.share for (_, each), score in scores.items() if each == name] for name in conditions}
    words = ", ".join(f"{name} {percent(sum(some) / len(some))}" for name, some in means.items())
    return Plot(
        "What is retained",
        "Right answers to questions for what short prompts say, by kind of content; more is better. Intervals are in "
        "the table.",
        f"Heat map of right answers by kind of content and condition. Means over kinds: {words}.",
        lambda figure: panels.retained(figure, kinds, conditions, scores),
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
        lambda figure: panels.judged(figure, entries),
        1.4 + 0.4 * len(entries),
    )


def _in_words_by_name(series: dict[str, dict[str, list[report.Point]]]) -> str:
    """The first metric's figures as a sentence."""
    metric, found = next(iter(series.items()))
    return f"{metric}: " + "; ".join(f"{name} {_in_words(some)}" for name, some in found.items()) + "."


def _in_words(points: Sequence[report.Point]) -> str:
    return ", ".join(f"{percent(point.share)} at k={point.k}" for point in points)


@contextmanager
def _style() -> Iterator[None]:
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
