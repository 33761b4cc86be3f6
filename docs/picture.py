"""Draws docs/cache.svg: what is cached with a full prompt and with a gist. Knows nothing of gistlm.

Run: python docs/picture.py [--check]      --check fails when the file is not what would be written
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

PICTURE = Path(__file__).with_name("cache.svg")

WIDTH, HEIGHT, PANEL = 900, 408, 436
CELL, STEP, GAP, LAYERS = 11, 13, 9, 4
PROMPT, OPENING, GIST, INPUT, ANSWER = 20, 2, 3, 5, 4
"""Columns drawn of each part."""

STYLE = """
  text { font-family: -apple-system, "Segoe UI", Roboto, "DejaVu Sans", Helvetica, Arial, sans-serif; }
  .card { fill: #ffffff; stroke: #d0d7de; }
  .title { fill: #1f2328; font-size: 18px; font-weight: 600; }
  .when { fill: #1f2328; font-size: 13.5px; font-weight: 600; }
  .note { fill: #59636e; font-size: 13px; }
  .line { fill: none; stroke: #59636e; stroke-width: 1.5; }
  .tip { fill: #59636e; }
  .file { fill: #fff4e5; stroke: #d9730d; stroke-width: 1.5; }
  .name { fill: #1f2328; font-size: 12.5px; font-family: ui-monospace, Menlo, "DejaVu Sans Mono", monospace; }
  .prompt { fill: #3b78c3; }
  .gone { fill: #3b78c3; fill-opacity: 0.2; }
  .opening { fill: #8a63d2; }
  .gist { fill: #e07b12; }
  .input { fill: #8c959f; }
  .answer { fill: #2c9a4b; }
  @media (prefers-color-scheme: dark) {
    .card { fill: #0d1117; stroke: #3d444d; }
    .title, .when, .name { fill: #f0f6fc; }
    .note, .tip { fill: #a9b3bf; }
    .line { stroke: #a9b3bf; }
    .file { fill: #2e2010; stroke: #f0983a; }
    .prompt { fill: #5b9bea; }
    .gone { fill: #5b9bea; fill-opacity: 0.28; }
    .opening { fill: #a98bea; }
    .gist { fill: #f0983a; }
    .answer { fill: #46b866; }
  }
"""

Columns = tuple[tuple[str, str, int], ...]
"""Parts of a sequence: style, label, columns."""


def main() -> None:
    """Write the picture, or say that it is stale."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; fail when the file is stale")
    picture = draw()
    if not parser.parse_args().check:
        PICTURE.write_text(picture, encoding="utf-8")
    elif not PICTURE.exists() or PICTURE.read_text(encoding="utf-8") != picture:
        sys.exit(f"docs/{PICTURE.name} is stale; write it with: make docs")


def draw() -> str:
    """The whole SVG."""
    body = [*full_prompt(8), *with_gist(WIDTH - PANEL - 8)]
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" '
            f'viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-labelledby="title desc">',
            '<title id="title">What is cached: a full prompt against a gist</title>',
            '<desc id="desc">Left: every request carries the keys and values of all n prompt tokens in every layer, '
            "encoded again or kept in memory. Right: the prompt is read once by k gist tokens; only their keys and "
            "values are kept, in a .gist file; every request is opening, gist and input, then the answer.</desc>",
            f"<style>{STYLE}</style>",
            *body,
            "</svg>",
            "",
        ]
    )


def full_prompt(x: int) -> list[str]:
    """The left panel."""
    left, upper, lower = x + 30, 78, 276
    once: Columns = (("prompt", "prompt: n tokens", PROMPT),)
    request: Columns = (*once, ("input", "input", INPUT), ("answer", "answer", ANSWER))
    middle = left + PROMPT * STEP // 2
    return [
        *panel(x, "With the full prompt"),
        text(left, upper - 12, "when", "Encode the prompt"),
        *grid(left, upper, once),
        *arrow([(middle, upper + 82), (middle, lower - 32)]),
        text(middle + 12, upper + 110, "note", "all n columns are kept in memory,"),
        text(middle + 12, upper + 128, "note", "or encoded again for each request"),
        text(left, lower - 12, "when", "Every request"),
        *grid(left, lower, request),
        text(left, lower + 106, "note", "before the input: n columns, more for a longer prompt"),
    ]


def with_gist(x: int) -> list[str]:
    """The right panel."""
    left, upper, lower = x + 30, 78, 276
    once: Columns = (("gone", "prompt: n tokens, dropped", PROMPT), ("gist", "gist: k", GIST))
    request: Columns = (
        ("opening", "h", OPENING),
        ("gist", "k", GIST),
        ("input", "input", INPUT),
        ("answer", "answer", ANSWER),
    )
    column = left + PROMPT * STEP + GAP + (GIST * STEP - 2) // 2
    cached = left + OPENING * STEP + GAP + (GIST * STEP - 2) // 2
    file = upper + 98
    return [
        *panel(x, "With a gist"),
        text(left, upper - 12, "when", "Once: k gist tokens read the prompt"),
        *grid(left, upper, once),
        *arrow([(column, upper + 82), (column, file)]),
        f'<path class="file" d="M{column - 58} {file + 4}h104l12 12v24h-116z"/>',
        text(column, file + 27, "name", "prompt.gist", "middle"),
        *arrow([(column - 60, file + 22), (cached, file + 22), (cached, lower - 32)]),
        text(cached + 12, file + 14, "note", "only k columns are kept"),
        text(left, lower - 12, "when", "Every request"),
        *grid(left, lower, request),
        text(left + 226, lower + 13, "note", "h: the opening tokens"),
        text(left + 226, lower + 31, "note", "of the template, the"),
        text(left + 226, lower + 49, "note", "same for every prompt"),
        text(left, lower + 106, "note", "before the input: h + k columns, for a prompt of any length"),
    ]


def panel(x: int, title: str) -> list[str]:
    """A card with its title."""
    return [
        f'<rect class="card" x="{x}" y="8" width="{PANEL}" height="{HEIGHT - 16}" rx="10"/>',
        text(x + PANEL // 2, 38, "title", title, "middle"),
    ]


def grid(x: int, y: int, parts: Columns) -> list[str]:
    """Keys and values: a column a token, a row a layer, the parts' labels beneath."""
    middle = y + LAYERS * STEP // 2
    drawn = [f'<text class="note" x="0" y="0" text-anchor="middle" transform="translate({x - 9} {middle}) '
             f'rotate(-90)">layers</text>']  # fmt: skip
    for style, label, columns in parts:
        drawn += [
            f'<rect class="{style}" x="{x + column * STEP}" y="{y + layer * STEP}" '
            f'width="{CELL}" height="{CELL}" rx="2"/>'
            for layer in range(LAYERS)
            for column in range(columns)
        ]
        width = columns * STEP - 2
        drawn.append(f'<path class="line" d="M{x} {y + 56}v5h{width}v-5"/>')
        drawn.append(text(x + width // 2, y + 76, "note", label, "middle"))
        x += columns * STEP + GAP
    return drawn


def arrow(points: list[tuple[int, int]]) -> list[str]:
    """A line through the points with a tip at its end, which must point downwards."""
    (x, y), path = points[-1], "L".join(f"{x} {y}" for x, y in points)
    return [f'<path class="line" d="M{path}"/>', f'<path class="tip" d="M{x - 5} {y - 4}h10l-5 8z"/>']


def text(x: int, y: int, style: str, words: str, anchor: str = "start") -> str:
    """One line of text."""
    return f'<text class="{style}" x="{x}" y="{y}" text-anchor="{anchor}">{words}</text>'


if __name__ == "__main__":
    main()
