"""How many tokens a gist has, of which kind, and at which position each part stands.

    positions   h-n ....... h-1   0 ... h-1   h ..... h+l-1   h+l ..........     relative numbering
                prompt            opening     learned         rest
                0 ........... n-1 0 ... h-1   n ..... n+l-1   n+l ..........     absolute numbering, or l = 0

h: tokens of the template's opening that stay visible beside the gist. n: tokens of the prompt, opening included.

The visible opening is in the cache once for all prompts. Every prompt also begins with the same h tokens; that second
copy is hidden from the rest. In relative numbering the prompt ends at h-1, so it starts below zero.

A gist has at most k tokens: first l = min(k, maximum) learned ones, then, if the checkpoint keeps tokens, up to k - l
kept ones: keys and values of the prompt's own tokens. If k tokens hold all but a few of the prompt, l = 0 and all the
gist's tokens are kept ones. Kept keys already carry the rotary position that they had in the prompt; the position given
to a kept column here is only a placeholder before the first learned token (sliding windows, which would ask for it, are
refused).

Only this file decides counts and positions. It takes counts and tensors, never a model, and imports torch only in the
functions that make tensors.
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
"""Maximum number of the prompt's last tokens that run once more after the gist tokens, as probe queries."""
MAX_DROPPED = 4
KEPT_PER_DROPPED = 4
"""Nothing is learned if at most MAX_DROPPED prompt tokens would be dropped, and at most one for every KEPT_PER_DROPPED
kept."""


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
    """Only the gist."""
    POSITIVE = "positive"
    """Control with the full prompt."""
    NEGATIVE = "negative"
    """Control with neither prompt nor gist."""


class Placed(NamedTuple):
    """Where the parts of each row stand, and how many tokens its gist has; all int [batch]."""

    learned: Tensor
    """Number of learned gist tokens."""
    kept: Tensor
    """Number of kept tokens."""
    prompt_start: Tensor
    """Position of the prompt's first token."""
    gist_start: Tensor
    """Position of the first learned gist token: the one after the prompt's last token."""

    @property
    def rest_start(self) -> Tensor:
        """Position of the rest's first token, [batch]."""
        return self.gist_start + self.learned


@dataclass(frozen=True)
class Placement:
    """How a checkpoint places gists."""

    numbering: str
    """"relative": attention depends only on differences of positions. "absolute": position embeddings are learned, so a
    gist stands where it would after the full prompt."""
    opening: int
    """Tokens of the template's opening that stay visible beside the gist."""
    learned: int
    """Maximum number of learned gist tokens."""
    kept: int = 0
    """Maximum number of kept tokens; 0: gists have learned tokens only."""
    limits: tuple[int, int] | None = None
    """Minimum and maximum number of a gist's tokens; by default from 1 to learned + kept."""

    def __post_init__(self) -> None:
        if self.limits and not 1 <= self.limits[0] <= self.limits[1] <= self.learned + self.kept:
            raise ModelError(
                f"the checkpoint says that k is from {self.limits[0]} to {self.limits[1]}, and it has "
                f"{self.learned + self.kept} gist tokens; it is damaged"
            )

    @property
    def max_k(self) -> int:
        """Maximum number of a gist's tokens."""
        return self.limits[1] if self.limits else self.learned + self.kept

    def check_k(self, k: object) -> None:
        """Raise `InputError` unless gists of at most k tokens can be made."""
        least = self.limits[0] if self.limits else 1
        if not isinstance(k, int) or isinstance(k, bool) or not least <= k <= self.max_k:
            raise InputError(
                f"k is the number of gist tokens, from {least} to {self.max_k} for this checkpoint; got {k!r}"
            )

    def check_length(self, tokens: int, k: int, probes: int, context: int) -> None:
        """Raise `PromptTooLongError` if a prompt of ``tokens`` tokens leaves no room for its gist and the rest.

        probes: number of probe queries that are the same for every prompt; they run only if the checkpoint keeps
        tokens. context: number of the model's positions.
        """
        columns_after = self.learned + READ_AGAIN + probes if self.kept else 0
        limit = context - max(k, columns_after) - 1  # one position is left for the rest
        if tokens > limit:
            raise PromptTooLongError(tokens, limit)

    def learned_columns(self, k: int) -> int:
        """Number of learned gist tokens to run for gists of at most k tokens.

        It is all of them if the checkpoint keeps tokens, so that probe queries attend to the same tokens for every k.
        """
        return self.learned if self.kept else min(k, self.learned)

    def gist_start(self, prompt_tokens: int, learned: int) -> int:
        """The position of the first of ``learned`` gist tokens, or of the rest if ``learned`` is 0."""
        return prompt_tokens if self.numbering == "absolute" or not learned else self.opening

    def place(self, lengths: Tensor, k: Tensor) -> Placed:
        """Place prompts of these lengths, opening included, and their gists of at most k tokens; both int [batch]."""
        if self.kept:
            tokens = (lengths - self.opening).clamp_min(0)
            few = leaves_few(tokens, k)
            learned = k.clamp_max(self.learned).masked_fill(few, 0)
            kept = (k - learned).minimum(tokens)
        else:
            learned, kept = k, k * 0
        relative = (lengths * 0 + self.opening).where(learned > 0, lengths)
        gist_start = lengths if self.numbering == "absolute" else relative
        return Placed(learned, kept, gist_start - lengths, gist_start)

    def columns(
        self,
        prompt_parts: Tensor,
        rest_parts: Tensor,
        placed: Placed,
        condition: Condition,
        gist_columns: tuple[int, int] = (0, 0),
    ) -> tuple[Tensor, Tensor]:
        """Parts and positions [batch, h + N + g + R] of opening, prompt, gist and rest.

        prompt_parts [batch, N], rest_parts [batch, R]: left-padded. gist_columns: number of columns for learned tokens,
        and number of columns for kept tokens after them; g is their sum. In the positive control the rest's positions
        follow the prompt's, in the negative control the opening's.
        """
        import torch

        rows, device = len(rest_parts), rest_parts.device
        rest_start = {
            Condition.GIST: placed.rest_start,
            Condition.POSITIVE: placed.gist_start,
            Condition.NEGATIVE: torch.full_like(placed.gist_start, self.opening),
        }[condition]
        opening = torch.arange(self.opening, device=device).expand(rows, -1)
        gist_parts, gist_positions = _gist_columns(placed, *gist_columns)
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
        """Parts and positions [batch, C] of opening and gist, left-padded, and the rests' first positions [batch].

        gists: for each row (start, learned, kept), or None for a row without a gist. start: position of the first
        learned token. Rows without a gist have an empty cache: their tokens, opening included, are all encoded anew.
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
        rest_starts = [gist[0] + gist[1] if gist else 0 for gist in gists]
        made = [torch.tensor(rows, dtype=torch.long, device=device) for rows in (*padded, rest_starts)]
        return made[0], made[1], made[2]


def leaves_few(tokens: Any, k: Any) -> Any:
    """Whether keeping k of ``tokens`` prompt tokens leaves too few out for a learned token to be worth its place; also
    true if tokens <= k. Both are ints, or integer tensors of one shape.
    """
    dropped = tokens - k
    return (dropped <= MAX_DROPPED) & (dropped * KEPT_PER_DROPPED <= k)


def left_positions(parts: Tensor, starts: Tensor) -> Tensor:
    """Positions [batch, S] of left-padded rows, counted from ``starts`` [batch] at each row's first token.

    parts: [batch, S] of `Part`. Padding gets the row's start.
    """
    return starts[:, None] + ((parts != Part.PAD).cumsum(dim=1) - 1).clamp_min(0)


def after_opening(parts: Tensor, opening: int) -> Tensor:
    """bool [batch, N]: which columns hold prompt tokens after the first ``opening`` ones. parts: `Part`s [batch, N]."""
    is_prompt = parts == Part.PROMPT
    return is_prompt & (is_prompt.cumsum(dim=1) > opening)


def _gist_columns(placed: Placed, learned: int, kept: int) -> tuple[Tensor, Tensor]:
    """Parts and positions [batch, learned + kept] of gists in ``learned`` columns, then ``kept`` columns.

    Each row fills both groups of columns from the left. Kept columns get the placeholder position.
    """
    import torch

    column = torch.arange(learned + kept, device=placed.gist_start.device)
    is_learned, start = column < learned, placed.gist_start[:, None]
    held = torch.where(is_learned, column < placed.learned[:, None], column - learned < placed.kept[:, None])
    parts = torch.where(held, int(Part.GIST), int(Part.PAD))
    return parts, torch.where(is_learned, start + column, (start - 1).clamp_min(0))
