"""A tokenizer's files read by `tokenizers` and jinja2 alone, for checks that are to be quick; loads no transformers.

It has the few methods that `prompt.PromptTokenizer` calls, and gives the ids that transformers' tokenizer gives. Only
tokenizers whose files say all are read: transformers' own classes for one model or another add tokens and rules.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import jinja2
import jinja2.ext
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import AddedToken, Tokenizer

from gistlm.files import read_json

_PLAIN_CLASSES = ("TokenizersBackend", "PreTrainedTokenizerFast")
"""What tokenizer_config.json names where transformers takes tokenizer.json as it is."""


class TokenizerFile:
    """A stock tokenizer's vocabulary and ids."""

    def __init__(self, backend: Tokenizer, names: dict[str, str], template: str | None) -> None:
        """names: of the special tokens, such as bos_token; template: the chat template."""
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        self._names = names
        self._template = None if template is None else _compiled(template)
        self.eos_token = names.get("eos_token")
        self.unk_token_id = backend.token_to_id(names["unk_token"]) if "unk_token" in names else None
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
            return cls(backend, _names(folder, config), _chat_template(folder, config)) if complete else None
        except Exception:  # tokenizers raises a bare Exception; whoever loads the model says what is wrong
            return None

    def __call__(self, text: str, split_special_tokens: bool = False, **_: Any) -> dict[str, list[int]]:
        """The text's ids, as transformers gives them without special tokens of its own."""
        self._backend.encode_special_tokens = split_special_tokens
        return {"input_ids": self._backend.encode(text, add_special_tokens=False).ids}

    def apply_chat_template(self, messages: Sequence[Any], tokenize: bool, **variables: Any) -> str:
        """The chat template's text. Raises what the template does, and `ValueError` where there is none."""
        if self._template is None or tokenize:
            raise ValueError("there is no chat template, or ids were asked for")
        return self._template.render(messages=messages, tools=None, documents=None, **self._names, **variables)

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


def _names(folder: Path, config: dict[str, Any]) -> dict[str, str]:
    """Special tokens by their names. Raises `ValueError` where two files differ."""
    path = folder / "special_tokens_map.json"
    read = [
        {name: str(_content(token)) for name, token in values.items() if name.endswith("_token") and token}
        for values in (read_json(path) if path.exists() else {}, config)
    ]
    if any(read[1].get(name, token) != token for name, token in read[0].items()):
        raise ValueError("two files name different special tokens")
    return read[0] | read[1]


def _chat_template(folder: Path, config: dict[str, Any]) -> str | None:
    """The chat template, if any. Raises `ValueError` where there are several."""
    path, found = folder / "chat_template.jinja", config.get("chat_template")
    if (folder / "additional_chat_templates").exists():
        raise ValueError("there are several chat templates")
    if path.exists():
        return path.read_text(encoding="utf-8")
    if not isinstance(found, str | None):
        raise ValueError("there are several chat templates")
    return found


def _compiled(template: str) -> jinja2.Template:
    """A chat template with what transformers lets it use; the day's date is its caller's."""
    made = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols])
    made.filters["tojson"] = _to_json
    made.globals["raise_exception"] = _refuse
    return made.from_string(template)


def _to_json(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, **options)


def _refuse(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _content(token: Any) -> object:
    return token.get("content") if isinstance(token, dict) else token
