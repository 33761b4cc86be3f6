"""A tokenizer.json read by `tokenizers` alone, for checks that are to be quick; loads no transformers.

It has the few methods that `prompt.PromptTokenizer` calls, and gives the ids that transformers' tokenizer gives. Only
tokenizers whose files say all are read: transformers' own classes for one model or another add tokens and rules.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer

from gistlm.files import read_json

_PLAIN_CLASSES = ("TokenizersBackend", "PreTrainedTokenizerFast")
"""What tokenizer_config.json names where transformers takes tokenizer.json as it is."""


class TokenizerFile:
    """A stock tokenizer's vocabulary and ids."""

    def __init__(self, backend: Tokenizer, unk_token: str | None) -> None:
        backend.encode_special_tokens = True  # what looks like a special token in a text is text
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        self.unk_token_id = None if unk_token is None else backend.token_to_id(unk_token)
        self.added_tokens_decoder: dict[int, AddedToken] = backend.get_added_tokens_decoder()

    @classmethod
    def load(cls, folder: Path) -> TokenizerFile | None:
        """The tokenizer of a model's folder; None where tokenizer.json does not hold all that transformers reads."""
        try:
            config = read_json(folder / "tokenizer_config.json")
            if config.get("tokenizer_class") not in _PLAIN_CLASSES:
                return None
            backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
            complete = set(backend.get_vocab(with_added_tokens=True)).issuperset(_named_tokens(folder))
            unk_token = _content(config.get("unk_token"))
        except Exception:  # tokenizers raises a bare Exception; whoever loads the model says what is wrong
            return None
        return cls(backend, unk_token if isinstance(unk_token, str) else None) if complete else None

    def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
        """The text's ids, as transformers gives them without special tokens."""
        return {"input_ids": self._backend.encode(text, add_special_tokens=False).ids}

    def convert_tokens_to_ids(self, token: str) -> int | None:
        """A token's id."""
        found: int | None = self._backend.token_to_id(token)
        return self.unk_token_id if found is None else found

    def get_vocab(self) -> dict[str, int]:
        """Every token and its id."""
        vocabulary: dict[str, int] = self._backend.get_vocab(with_added_tokens=True)
        return vocabulary

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Ids back to text."""
        return str(self._backend.decode(ids, skip_special_tokens=skip_special_tokens))


def _named_tokens(folder: Path) -> Iterator[object]:
    """Every token that one of a tokenizer's other files names."""
    if (added := folder / "added_tokens.json").exists():
        yield from read_json(added)
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        values = read_json(folder / name) if (folder / name).exists() else {}
        for key, value in values.items():
            if key in ("added_tokens_decoder", "additional_special_tokens", "extra_special_tokens"):
                yield from map(_content, value.values() if isinstance(value, dict) else value or [])
            elif key.endswith("_token") and isinstance(value, str | dict):
                yield _content(value)


def _content(token: Any) -> object:
    return token.get("content") if isinstance(token, dict) else token
