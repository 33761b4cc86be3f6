"""How many tokens a gist has, of which kind, and at which position each part stands; takes plain values, no model.

    positions   h-n ....... h-1   0 ... h-1   h ..... h+l-1   h+l ..........     relative numbering
                prompt            opening     learned         rest
                0 ........... n-1 0 ... h-1   n ..... n+l-1   n+l ..........     absolute numbering, or l = 0

h: tokens of the template's opening that stay visible beside the gist; they are the prompt's first too, and encoded once
for all prompts. n: tokens of the prompt, opening included. A gist of k tokens has l learned gist tokens and, where the
checkpoint keeps tokens, k - l kept tokens: keys and values of the prompt's own tokens, which keep the prompt's
positions. A prompt that k tokens hold nearly whole is kept and nothing is learned (l = 0).

Only this file decides counts and positions. Loads no torch before it places tensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from typing import TYPE_CHECKING, Any, NamedTuple

from gistlm.errors import InputError, ModelError, PromptTooLongError

if TYPE_CHECKING:
    from torch import Tensor

READ_AGAIN = 8
"""Most of a prompt's tokens that are read once more behind the gist tokens, as probe queries."""
FEW = 4
"""With kept tokens alone, a gist may drop at most so many tokens,"""
FEW_PART = 4
"""and at most one for every so many that it keeps."""


class Part(IntEnum):
    """What a column of the sequence is."""

    PAD = 0
    OPENING = 1
    PROMPT = 2
    GIST = 3
    REST = 4


class Condition(StrEnum):
    """What the rest may see in the prompt's place."""

    GIST = "gist"
    POSITIVE = "positive"
    NEGATIVE = "negative"


class Placed(NamedTuple):
    """Where the parts of each row stand, and how many tokens its gist has; all [batch]."""

    learned: Tensor
    kept: Tensor
    prompt_start: Tensor
    """Position of the prompt's first token."""
    gist_start: Tensor
    """Position of the first learned gist token, behind the prompt's last token."""

    @property
    def rest_start(self) -> Tensor:
        """Position of the rest's first token, [batch]."""
        return self.gist_start + self.learned


@dataclass(frozen=True)
class Placement:
    """How a checkpoint places gists."""

    numbering: str
    """"relative": only differences of positions count; "absolute": positions are learned, and the full prompt's."""
    opening: int
    """Tokens of the template's opening that stay visible beside the gist."""
    learned: int
    """Most learned gist tokens."""
    kept: int = 0
    """Most kept tokens; 0 where a gist has learned tokens alone."""
    limits: tuple[int, int] | None = None
    """Fewest and most tokens of a gist; from 1 to all by default."""

    def __post_init__(self) -> None:
        if self.limits and not 1 <= self.limits[0] <= self.limits[1] <= self.learned + self.kept:
            raise ModelError(
                f"the checkpoint says that k is from {self.limits[0]} to {self.limits[1]}, and it has "
                f"{self.learned + self.kept} gist tokens; it is damaged"
            )

    @property
    def max_k(self) -> int:
        """Most tokens of a gist."""
        return self.limits[1] if self.limits else self.learned + self.kept

    def check_k(self, k: object) -> None:
        """Raise `InputError` unless gists of at most k tokens can be made."""
        least = self.limits[0] if self.limits else 1
        if not isinstance(k, int) or isinstance(k, bool) or not least <= k <= self.max_k:
            raise InputError(
                f"k is the number of gist tokens, from {least} to {self.max_k} for this checkpoint; got {k!r}"
            )

    def check_length(self, tokens: int, k: int, probes: int, context: int) -> None:
        """Raise `PromptTooLongError` where a prompt of so many tokens leaves no room for its gist.

        probes: columns that are run behind the gist tokens where tokens are kept; context: positions of the model.
        """
        behind = self.learned + READ_AGAIN + probes if self.kept else 0
        limit = context - max(k, behind) - 1
        if tokens > limit:
            raise PromptTooLongError(tokens, limit)

    def learned_columns(self, k: int) -> int:
        """Learned gist tokens that are run for gists of at most k: all where probe queries stand behind them."""
        return self.learned if self.kept else min(k, self.learned)

    def gist_start(self, prompt_tokens: int, learned: int) -> int:
        """The position at which the model reads a gist with so many learned tokens."""
        return prompt_tokens if self.numbering == "absolute" or not learned else self.opening

    def place(self, lengths: Tensor, k: Tensor) -> Placed:
        """Prompts of these lengths, opening included, and gists of at most k tokens; both int [batch]."""
        if self.kept:
            tokens = (lengths - self.opening).clamp_min(0)
            few = leaves_few(tokens, k)
            learned = k.clamp_max(self.learned).masked_fill(few, 0)
            kept = (k - learned).minimum(tokens)
        else:
            learned, kept = k, k * 0
        starts = lengths if self.numbering == "absolute" else (lengths * 0 + self.opening).where(learned > 0, lengths)
        return Placed(learned, kept, starts - lengths, starts)

    def columns(
        self,
        prompt_parts: Tensor,
        rest_parts: Tensor,
        placed: Placed,
        condition: Condition,
        gist: tuple[int, int] = (0, 0),
    ) -> tuple[Tensor, Tensor]:
        """Parts and positions [batch, h + N + g + R] of opening, prompt, gist and rest.

        prompt_parts [batch, N], rest_parts [batch, R]: left-padded. gist: columns of learned and behind them of kept
        tokens. In the positive control the rest follows the prompt, in the negative control the opening.
        """
        import torch

        rows, device = len(rest_parts), rest_parts.device
        rest_start = {
            Condition.GIST: placed.rest_start,
            Condition.POSITIVE: placed.gist_start,
            Condition.NEGATIVE: torch.full_like(placed.gist_start, self.opening),
        }[condition]
        opening = torch.arange(self.opening, device=device).expand(rows, -1)
        gist_parts, gist_positions = _gist_columns(placed, *gist)
        parts = [torch.full_like(opening, int(Part.OPENING)), prompt_parts, gist_parts, rest_parts]
        positions = [
            opening,
            left_positions(prompt_parts, placed.prompt_start),
            gist_positions,
            left_positions(rest_parts, rest_start),
        ]
        return torch.cat(parts, dim=1), torch.cat(positions, dim=1)

    def cached_columns(
        self, gists: Sequence[tuple[int, int, int] | None], device: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Parts and positions [batch, C] of opening and gist, left-padded, and where each rest begins [batch].

        gists: of each row (start, learned, kept), or None for a row without one.
        """
        import torch

        parts: list[list[int]] = []
        positions: list[list[int]] = []
        for gist in gists:
            start, learned, kept = gist or (0, 0, 0)
            opening = self.opening if gist else 0
            parts.append([int(Part.OPENING)] * opening + [int(Part.GIST)] * (learned + kept))
            positions.append([*range(opening), *range(start, start + learned), *[max(0, start - 1)] * kept])
        width = max(map(len, parts))
        padded = [[[int(Part.PAD)] * (width - len(row)) + row for row in rows] for rows in (parts, positions)]
        starts = [gist[0] + gist[1] if gist else 0 for gist in gists]
        made = [torch.tensor(rows, dtype=torch.long, device=device) for rows in (*padded, starts)]
        return made[0], made[1], made[2]


def leaves_few(tokens: Any, k: Any) -> Any:
    """Whether k kept tokens, of so many, drop so few that a learned one would not be worth its place.

    Both are ints, or integer tensors of one shape.
    """
    dropped = tokens - k
    return (dropped <= FEW) & (dropped * FEW_PART <= k)


def left_positions(parts: Tensor, starts: Tensor) -> Tensor:
    """[batch, S] positions that count from ``starts`` [batch] at each row's first token; padding repeats the start."""
    return starts[:, None] + ((parts != Part.PAD).cumsum(dim=1) - 1).clamp_min(0)


def behind(parts: Tensor, first: int) -> Tensor:
    """bool [batch, N]: which columns hold a prompt's tokens behind its first so many. parts: [batch, N] of `Part`."""
    is_prompt = parts == Part.PROMPT
    return is_prompt & (is_prompt.cumsum(dim=1) > first)


def _gist_columns(placed: Placed, learned: int, kept: int) -> tuple[Tensor, Tensor]:
    """Parts and positions [batch, learned + kept] of gists in so many columns of either kind, filled from the left.

    A kept token stands before the gist: only a sliding window would ask where.
    """
    import torch

    column = torch.arange(learned + kept, device=placed.gist_start.device)
    is_learned, start = column < learned, placed.gist_start[:, None]
    held = torch.where(is_learned, column < placed.learned[:, None], column - learned < placed.kept[:, None])
    parts = torch.where(held, int(Part.GIST), int(Part.PAD))
    return parts, torch.where(is_learned, start + column, (start - 1).clamp_min(0))
