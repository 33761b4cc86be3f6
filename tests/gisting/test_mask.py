"""The mask against a definition written from the paper's text, one query and one key at a time."""

from __future__ import annotations

import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gistlm.gisting import mask
from gistlm.gisting.mask import additive, cross_attention_mask, decoder_mask, encoder_mask
from gistlm.gisting.placement import Condition, Part

LETTERS = {"o": Part.OPENING, "p": Part.PROMPT, "g": Part.GIST, "r": Part.REST, "-": Part.PAD}


def may_see(query: Part, key: Part, condition: str, encoder: bool) -> bool:
    """Mu et al. 2023, section 3, with the opening that DESIGN keeps raw."""
    if query == Part.PAD or key == Part.PAD:
        return False
    if query == Part.OPENING:  # the first thing in the sequence: it reads itself
        return key == Part.OPENING
    if (
        query == Part.PROMPT
    ):  # ordinary text with its own copy of the opening; an encoder also lets it read what follows
        return key == Part.PROMPT or (encoder and key == (Part.REST if condition == "positive" else Part.GIST))
    if query == Part.GIST:  # gist tokens read the prompt
        return key in (Part.PROMPT, Part.GIST)
    if condition == "positive":  # as if there were no compression: everything but the gist
        return key in (Part.PROMPT, Part.REST)
    if condition == "negative":  # as if there were no prompt
        return key in (Part.OPENING, Part.REST)
    return key != Part.PROMPT  # "masking out attention to the prompt": what follows the gist cannot see it


def letters_of(layout: str) -> list[Part]:
    return [LETTERS[letter] for letter in layout]


@st.composite
def layouts(draw: st.DrawFn) -> list[Part]:
    """One row: opening, prompt, gist, rest, of any size, with padding anywhere between and around them."""
    padding = st.integers(0, 2).map("-".__mul__)
    return letters_of("".join(draw(padding) + letter * draw(st.integers(0, 4)) for letter in "opgr") + draw(padding))


@st.composite
def batches(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor]:
    """Parts and positions [batch, S] of rows padded to one length on either side."""
    rows = draw(st.lists(layouts(), min_size=1, max_size=3))
    width = max(1, *map(len, rows))
    padded = [
        [Part.PAD] * (width - len(row)) + row if draw(st.booleans()) else row + [Part.PAD] * (width - len(row))
        for row in rows
    ]
    first = draw(st.integers(-20, 20))
    steps = st.lists(st.integers(0, 3), min_size=width, max_size=width)
    positions = [torch.tensor(draw(steps)).cumsum(0) + first for _ in rows]
    return torch.tensor([[int(part) for part in row] for row in padded]), torch.stack(positions)


@given(batches(), st.sampled_from(Condition), st.none() | st.integers(1, 12))
def test_a_decoders_mask_is_the_papers_definition(
    batch: tuple[torch.Tensor, torch.Tensor], condition: Condition, window: int | None
) -> None:
    parts, positions = batch
    made = decoder_mask(parts, positions, condition, window)
    rows, width = parts.shape
    assert made.shape == (rows, width, width) and made.dtype == torch.bool
    for row in range(rows):
        for i in range(width):
            for j in range(width):
                seen = may_see(Part(int(parts[row, i])), Part(int(parts[row, j])), condition.value, encoder=False)
                seen = seen and j <= i
                if window is not None:
                    seen = seen and int(positions[row, i]) - int(positions[row, j]) < window
                assert bool(made[row, i, j]) == seen, (row, i, j)


@given(batches(), st.sampled_from(Condition))
def test_an_encoders_mask_is_the_papers_definition(
    batch: tuple[torch.Tensor, torch.Tensor], condition: Condition
) -> None:
    parts, _ = batch
    made = encoder_mask(parts, condition)
    for row in range(parts.shape[0]):
        for i, query in enumerate(parts[row].tolist()):
            for j, key in enumerate(parts[row].tolist()):
                seen = may_see(Part(query), Part(key), condition.value, encoder=True)
                assert bool(made[row, i, j]) == seen, (row, i, j)


@given(batches(), st.sampled_from(Condition))
def test_a_decoder_sees_of_the_encoder_what_the_rest_sees(
    batch: tuple[torch.Tensor, torch.Tensor], condition: Condition
) -> None:
    parts, _ = batch
    made = cross_attention_mask(parts, condition)
    for row in range(parts.shape[0]):
        for j, key in enumerate(parts[row].tolist()):
            assert bool(made[row, j]) == may_see(Part.REST, Part(key), condition.value, encoder=True)


def drawing() -> tuple[list[Part], torch.Tensor]:
    """Parts and mask as drawn in the module's docstring."""
    lines = re.findall(r"^ {4}(?:query)? +([opgr]) {2,}((?:[1.] *){8})", mask.__doc__ or "", re.MULTILINE)
    drawn = torch.tensor([[sign == "1" for sign in signs.split()] for _, signs in lines])
    return letters_of("".join(letter for letter, _ in lines)), drawn


def test_the_drawn_mask_is_the_mask() -> None:
    parts, drawn = drawing()
    assert parts == letters_of("opppggrr")
    columns = torch.tensor([parts])
    assert torch.equal(decoder_mask(columns, torch.arange(8)[None])[0], drawn)


def test_the_drawn_mask_reads_as_the_papers_figure() -> None:
    expected = """
        1.......
        .1......
        .11.....
        .111....
        .1111...
        .11111..
        1...111.
        1...1111
    """
    rows = [[sign == "1" for sign in line] for line in expected.split()]
    assert torch.equal(drawing()[1], torch.tensor(rows))


@pytest.mark.parametrize(
    ("condition", "seen"),
    [(Condition.GIST, "o...ggr"), (Condition.POSITIVE, ".ppp..r"), (Condition.NEGATIVE, "o.....r")],
)
def test_each_condition_shows_the_rest_its_own_part(condition: Condition, seen: str) -> None:
    parts = torch.tensor([letters_of("opppggr")])
    last = decoder_mask(parts, torch.arange(7)[None], condition)[0, -1]
    assert last.tolist() == [letter != "." for letter in seen]


def test_a_window_counts_positions_not_columns() -> None:
    parts = torch.tensor([letters_of("ppr--r")])
    positions = torch.tensor([[0, 1, 2, 2, 2, 3]])
    last = decoder_mask(parts, positions, Condition.POSITIVE, window=3)[0, -1]
    assert last.tolist() == [False, True, True, False, False, True]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_an_additive_mask_is_zero_where_visible_and_the_least_number_elsewhere(dtype: torch.dtype) -> None:
    made = additive(torch.tensor([[[True, False]]]), dtype)
    assert made.dtype == dtype and made.shape == (1, 1, 1, 2)
    assert made.flatten().tolist() == [0.0, torch.finfo(dtype).min]
