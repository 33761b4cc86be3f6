"""Where a gist comes from and who may read it; knows plain values only."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields

from gistlm.errors import GistFileError, GistMismatchError

MAX_POSITION = 1 << 31


@dataclass(frozen=True)
class GistInfo:
    """Where a gist comes from and who may read it."""

    model: str
    """Fingerprint of the model that reads it: weights, tokenizer and prompt format."""
    adapter: str
    """Fingerprint of what wrote it: adapter, gist embeddings, shares of fitting and observers."""
    base: str
    """The model's name, for people."""
    prompt_sha256: str
    """Hash of the prompt's token ids."""
    prompt_tokens: int
    """Length of the prompt in tokens, opening included."""
    start: int
    """Position of the first gist token."""
    kept: int = 0
    """So many of the gist's last tokens are the prompt's own: they stand before ``start``, and take no position of
    those that follow it. They may be all of a gist's."""

    def __post_init__(self) -> None:
        for field in fields(self):
            kind = int if field.name in ("prompt_tokens", "start", "kept") else str
            if type(getattr(self, field.name)) is not kind:
                raise GistFileError(
                    f"a gist's {field.name!r} must be {kind.__name__}, got {getattr(self, field.name)!r}"
                )
        if not all(0 <= number < MAX_POSITION for number in (self.prompt_tokens, self.start, self.kept)):
            raise GistFileError(f"a gist's prompt_tokens, start and kept are from 0 to {MAX_POSITION - 1:,}")

    def check_model(self, fingerprint: str, name: str) -> None:
        """Raise `GistMismatchError` unless a model with this fingerprint can read the gist; ``name`` is for people."""
        if self.model != fingerprint:
            raise self.mismatch(name, fingerprint[:12])

    def mismatch(self, name: str, fingerprint: str) -> GistMismatchError:
        """The error for a gist that a model of that name cannot read; both texts are for people."""
        return GistMismatchError(
            f"this gist was made for {self.base} (fingerprint {self.model[:12]}), not for {name} "
            f"({fingerprint}); compress the prompt again with this model"
        )

    def to_json(self) -> str:
        """As a gist's file holds it."""
        own = asdict(self)
        if not self.kept:
            del own["kept"]  # as in files from before there were kept tokens, whose ids stay as they are
        return json.dumps(own, sort_keys=True)
