"""What can be refused before a model is loaded: an impossible k, too long a text, a gist of another model.

Reads small files of a checkpoint and its base, and loads no torch and no transformers. What these files do not tell is
left to the loaded model: nothing is refused here that it would take.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from safetensors import SafetensorError, safe_open

from gistlm.errors import PromptTooLongError
from gistlm.files import read_json
from gistlm.gist_file import GistFile
from gistlm.gisting.placement import Placement
from gistlm.messages import Input
from gistlm.models.base_files import folder_here
from gistlm.models.catalog import find_checkpoint
from gistlm.models.config import CONFIG, EMBEDDINGS, PROBES, CheckpointConfig, Recipe, read_config, reader_fingerprints
from gistlm.models.tokenizer_file import TokenizerFile
from gistlm.prompt import PromptFormat, PromptTokenizer


@dataclass(frozen=True)
class Preflight:
    """A checkpoint by its files alone."""

    config: CheckpointConfig
    prompt_format: PromptFormat
    learned: int
    """Maximum number of learned gist tokens."""
    probes: int
    """Learned probe queries."""
    base: Path | None
    """The base's folder, if it is here."""
    own_base: bool
    """Whether it is the base that the checkpoint names."""

    @classmethod
    def of(cls, name: str, base: str | None = None) -> Preflight | None:
        """The checkpoint of that name; None where its files are not here, or of another kind.

        base: in place of the one that the checkpoint names. Raises `ModelNotFoundError`, `ModelError` or
        `MissingDependencyError`.
        """
        folder = find_checkpoint(name)
        if folder is None or not (folder / CONFIG).is_file():
            return None
        config, prompt_format = read_config(folder)
        shapes = embedding_shapes(folder)
        if shapes is None:
            return None
        where = base or (str(folder) if config.base == "." else config.base)
        return cls(config, prompt_format, *shapes, folder_here(where), base is None)

    @property
    def placement(self) -> Placement:
        """How many tokens a gist may have, and how long its prompt may be; says nothing of positions."""
        k = self.config.k
        return Placement("", 0, self.learned, self.config.kept, (k.least, k.most) if k else None)

    def check_prompt(self, prompt: str, k: int) -> None:
        """Raise `InputError` unless the prompt can be compressed into k tokens."""
        self.placement.check_k(k)
        if self.prompts is None:
            return
        tokens = len(self.prompts.prompt_ids(prompt))
        if self._context is None:
            return
        probes = self.probes or len(self.prompts.empty_rest_ids)
        self.placement.check_length(tokens, k, probes, self._context)

    def check_request(self, text: Input, prompt: str | None, gist: GistFile | None, room: int) -> None:
        """Raise `InputError` unless an input fits into the context after a prompt and after a gist, whichever are
        given, before ``room`` tokens of an answer.
        """
        if self.prompts is None or self._context is None:
            return
        counts = [] if gist is None else [gist.end + len(self.prompts.rest_ids(text))]
        if gist is None or prompt is not None:
            counts.append(len(self.prompts.request_ids(prompt, text)))
        tokens = max(counts) + room
        if tokens > self._context:
            raise PromptTooLongError(tokens, self._context, "request with room for its answer")

    def check_gist(self, gist: GistFile) -> None:
        """Raise `GistMismatchError` unless the model can read the gist, by what the checkpoint's file records of it."""
        if self.tokenizer is None or not self.own_base:
            return
        made_by, base = gist.provenance, self.config.bases[0]
        tuned = made_by.adapter if self.config.recipe == Recipe.PAPER else ""
        known = reader_fingerprints(base, tuned, self.tokenizer.get_vocab(), self.prompt_format)
        own = known.get(made_by.version)
        if own is None:  # a checkpoint of version 1 does not record the base's settings
            return
        if self.config.recipe == Recipe.FROZEN:
            made_by.check_model(known, self.config.name)
        elif made_by.model != own:  # a model tuned under `paper` is also known by its adapter, which was not read
            raise made_by.mismatch(self.config.name, "which has another")

    @cached_property
    def tokenizer(self) -> TokenizerFile | None:
        """The base's tokenizer, where its files are here and say all."""
        return None if self.base is None else TokenizerFile.load(self.base)

    @cached_property
    def prompts(self) -> PromptTokenizer | None:
        """The same with the checkpoint's prompt format."""
        return None if self.tokenizer is None else PromptTokenizer(self.tokenizer, self.prompt_format)

    @cached_property
    def _context(self) -> int | None:
        """Positions of a decoder-only model, where its configuration says how many."""
        try:
            config = read_json((self.base or Path()) / "config.json")
        except (OSError, ValueError):
            return None
        if config.get("is_encoder_decoder") or "num_decoder_layers" in config:
            return None
        text = config.get("text_config")
        text = text if isinstance(text, dict) else config
        found = text.get("max_position_embeddings", text.get("n_positions"))
        return found if isinstance(found, int) and found > 0 else None


def embedding_shapes(folder: Path) -> tuple[int, int] | None:
    """How many gist tokens and probe queries a checkpoint has learned, from its file's header; None without one."""
    try:
        with safe_open(folder / EMBEDDINGS, "numpy") as file:
            rows = {name: int(file.get_slice(name).get_shape()[0]) for name in file.keys()}  # noqa: SIM118
        return rows["gist_embeddings"], rows.get(PROBES, 0)
    except (OSError, SafetensorError, LookupError):
        return None
