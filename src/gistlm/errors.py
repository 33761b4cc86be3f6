"""The exceptions a user can meet, as one tree; knows nothing of models, files or the command line.

GistlmError
├── InputError              a prompt, an input or an option cannot be used as given
│   └── PromptTooLongError  the text does not fit into the model's context
├── ModelError              a model or checkpoint cannot be loaded
│   ├── ModelNotFoundError  there is no such model or checkpoint
│   └── UnsupportedModelError  this architecture cannot be gisted exactly
├── GistFileError           a file is not a gist, is damaged, or is of another version
├── GistMismatchError       a gist and the model that should read it do not fit
├── StoreError              a gist store cannot be read or written
├── DataError               a data file or row cannot be used for training
├── JudgeError              a judging model cannot be reached, or refuses to answer
└── MissingDependencyError  an optional package is not installed

A message says what was given, what is allowed, and what to do next.
"""

from __future__ import annotations


class GistlmError(Exception):
    """Base of every error that gistlm raises on purpose."""


class InputError(GistlmError, ValueError):
    """A prompt, an input or an option cannot be used as given."""


class PromptTooLongError(InputError):
    """The text does not fit into the model's context."""

    def __init__(self, tokens: int, limit: int, what: str = "prompt") -> None:
        super().__init__(
            f"the {what} has {tokens:,} tokens, but this model has room for {limit:,}; "
            f"shorten it, or use a model with a longer context"
        )
        self.tokens = tokens
        self.limit = limit


class ModelError(GistlmError):
    """A model or checkpoint cannot be loaded."""


class ModelNotFoundError(ModelError):
    """There is no such model or checkpoint."""


class UnsupportedModelError(ModelError):
    """This architecture cannot be gisted exactly; the message names the reason."""


class GistFileError(GistlmError):
    """A file is not a gist, is damaged, or is of another format version."""


class GistMismatchError(GistlmError):
    """A gist and the model that should read it do not fit."""


class StoreError(GistlmError):
    """A gist store cannot be read or written."""


class DataError(GistlmError):
    """A data file or row cannot be used."""


class JudgeError(GistlmError):
    """A judging model cannot be reached, or refuses to answer."""


class MissingDependencyError(GistlmError, ImportError):
    """An optional package is not installed; the message says what to install."""

    def __init__(self, package: str, feature: str, install: str) -> None:
        super().__init__(f"{feature} needs the package {package!r}; install it with: {install}")
        self.package = package
