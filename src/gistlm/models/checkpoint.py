"""A gist checkpoint: base model, gist adapter, gist embeddings and prompt format, loaded and saved together.

Two models share the base's weights in memory. The *reader* encodes prompts and answers over gists; the *writer* turns
gist tokens into keys and values. Under the recipe `frozen` the reader is the unchanged base, and the writer is the base
plus LoRA; under `paper` one fine-tuned model is both. Runs no prompt, makes no gist and generates nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from gistlm.errors import ModelError, UnsupportedModelError
from gistlm.files import sha256, write_atomically
from gistlm.gisting.kept_tokens import check_probeable
from gistlm.gisting.placement import Placement
from gistlm.models.adapter import AdapterOnLast, LoraModules, adapter_weights, add_lora, load_lora
from gistlm.models.architecture import Architecture, inspect_architecture
from gistlm.models.config import (
    EMBEDDINGS,
    FIT_STRENGTHS,
    GIST_TOKEN,
    PROBES,
    Base,
    CheckpointConfig,
    Range,
    Recipe,
    read_config,
    reader_fingerprints,
    settings_fingerprint,
    write_config,
)
from gistlm.models.embeddings import embedding_weight, initial_embeddings
from gistlm.models.loading import fingerprint_weights, load_base
from gistlm.prompt import PromptTokenizer, default_format

logger = logging.getLogger(__name__)

INITIAL_STRENGTH = 0.5
"""Value of every one of `Checkpoint.fit_strengths` before training."""
ADAPTER = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"


@dataclass(frozen=True)
class CheckpointOptions:
    """Options of an untrained checkpoint."""

    recipe: Recipe
    max_k: int = 16
    kept: int = 0
    """Maximum number of kept tokens in a gist; the other max_k - kept tokens are learned."""
    lora_rank: int | None = 32
    """None (`paper` only) trains every weight."""
    lora_modules: LoraModules = LoraModules.ATTENTION
    anchored: bool = False
    seed: int = 0


class Checkpoint:
    """Base model, adapter, gist embeddings and prompt format. Make one with `load` or `create`."""

    def __init__(
        self,
        config: CheckpointConfig,
        reader: PreTrainedModel,
        writer: Any,
        gist_embeddings: Tensor,
        prompts: PromptTokenizer,
        trained: Mapping[str, Tensor] | None = None,
    ) -> None:
        """trained: fit strengths and probe embeddings by their names in the file, `FIT_STRENGTHS` and `PROBES`, if the
        checkpoint has them; see the attributes. Other names are ignored.
        """
        self.config = config
        # peft sets requires_grad=False on the shared tensors; torch then takes a slow path for the last token's logits
        # (20 to 80 times slower). Turn it on again; training sets its own.
        self.reader = reader.requires_grad_(True)
        self.writer: Any = writer
        """A `PeftModel`, or the reader itself."""
        self.gist_embeddings = nn.Parameter(gist_embeddings.to(reader.device), requires_grad=False)
        """[learned, hidden]"""
        self.prompts = prompts
        added = prompts.tokenizer.added_tokens_decoder.items()
        self.gist_token_ids = tuple(index for index, token in added if token.content == GIST_TOKEN)
        """Ids of gist tokens in the vocabulary (the original project added one), which must never be generated. This
        project's gist tokens are not in the vocabulary."""
        self.architecture: Architecture = inspect_architecture(reader)
        if config.kept:
            check_kept(self.architecture, reader)
        found, device = trained if trained and config.kept else {}, reader.device
        shape = (self.architecture.layers if config.kept else 0, 2)
        fit_strengths = found.get(FIT_STRENGTHS, torch.full(shape, INITIAL_STRENGTH))
        self.fit_strengths = _parameter(FIT_STRENGTHS, fit_strengths, shape, device)
        """[layers, 2]: how far the first learned gist token's key and value move to the fitted ones (see
        `kept_tokens.fit`); [0, 2] if no tokens are kept"""
        hidden = int(gist_embeddings.shape[1])
        probes = found.get(PROBES, torch.zeros(0, hidden))
        self.probe_embeddings = _parameter(PROBES, probes, (*probes.shape[:1], hidden), device)
        """[probes, hidden]: trained input embeddings of probe queries (see `kept_tokens`)"""

    @property
    def placement(self) -> Placement:
        """How this checkpoint places gists."""
        learned = int(self.gist_embeddings.shape[0])
        k_range, opening = self.config.k, len(self.visible_opening_ids)
        limits = (k_range.least, k_range.most) if k_range else None
        return Placement(self.architecture.numbering, opening, learned, self.config.kept, limits)

    @property
    def visible_opening_ids(self) -> list[int]:
        """Ids of the template's opening tokens if they stay visible to the rest, else none."""
        return self.prompts.opening_ids if self.prompts.format.opening_visible else []

    @property
    def writer_decoder(self) -> nn.Module:
        """The writer without its language-model head."""
        decoder: nn.Module = self._bare_writer.get_decoder()
        return decoder

    @property
    def writer_encoder(self) -> nn.Module:
        """The writer's encoder; for encoder-decoder models only."""
        encoder: nn.Module = self._bare_writer.get_encoder()
        return encoder

    @property
    def _bare_writer(self) -> Any:
        return self.writer.get_base_model() if hasattr(self.writer, "get_base_model") else self.writer

    @cached_property
    def adapter_on_last(self) -> AdapterOnLast:
        """Keeps the adapter off the prompt's columns where prompt and gist tokens go through the writer in one pass."""
        return AdapterOnLast(self.writer)

    @property
    def fingerprint(self) -> str:
        """Fingerprint of what reads a gist: the reader's weights and settings, the tokenizer and the prompt format."""
        return self.fingerprints[max(self.fingerprints)]

    @cached_property
    def fingerprints(self) -> dict[int, str]:
        """Fingerprints of the reader by version of the gist files that hold them; `fingerprint` is the newest."""
        tuned = self.adapter_fingerprint if self.config.recipe == Recipe.PAPER else ""
        vocabulary = self.prompts.tokenizer.get_vocab()
        return reader_fingerprints(self.config.bases[0], tuned, vocabulary, self.prompts.format)

    @cached_property
    def adapter_fingerprint(self) -> str:
        """Fingerprint of what writes a gist: adapter, gist embeddings, fit strengths and probe embeddings."""
        adapter = {name.replace(".default", ""): tensor for name, tensor in adapter_weights(self.writer).items()}
        return self._adapter_fingerprint({**self._gist_tensors, **adapter})

    @property
    def _gist_tensors(self) -> dict[str, Tensor]:
        """The tensors that `EMBEDDINGS` holds, by their names there."""
        found: dict[str, Tensor] = {"gist_embeddings": self.gist_embeddings}
        if self.config.kept:
            found[FIT_STRENGTHS] = self.fit_strengths
        return found | ({PROBES: self.probe_embeddings} if len(self.probe_embeddings) else {})

    def _adapter_fingerprint(self, tensors: dict[str, Tensor]) -> str:
        return sha256(
            fingerprint_weights(tensors).encode(),
            b"anchored" if self.config.anchored else b"",
            b"kept" if self.config.kept else b"",
        )

    def without_adapter(self, name: str, config: CheckpointConfig, gist_embeddings: Tensor) -> Checkpoint:
        """A checkpoint with the same reader, no adapter and other gist embeddings [learned, hidden].

        Either reads the other's gists. ``name`` is hashed into the new checkpoint's adapter fingerprint, which tells
        their gists apart.
        """
        made = Checkpoint(config, self.reader, self.reader, gist_embeddings, self.prompts)
        made.adapter_fingerprint, made.fingerprints = sha256(name.encode()), self.fingerprints
        return made

    @classmethod
    def create(
        cls, base: str, options: CheckpointOptions, device: str | None = None, dtype: torch.dtype | None = None
    ) -> Checkpoint:
        """Make an untrained checkpoint on a stock model."""
        reader, tokenizer, fingerprint = load_base(base, device, dtype)
        config = CheckpointConfig(
            name=Path(base).stem,
            recipe=options.recipe,
            bases=[describe_base(base, reader, fingerprint)],
            anchored=options.anchored,
            kept=options.kept,
        )
        learned = options.max_k - options.kept
        embeddings = initial_embeddings(reader, learned, options.seed, anchored=options.anchored)
        frozen = options.recipe == Recipe.FROZEN
        prompt_format = default_format(tokenizer, reader.config.is_encoder_decoder)
        prompts = PromptTokenizer(tokenizer, prompt_format.replace(opening_visible=frozen))
        writer: Any = reader
        if options.lora_rank:
            with torch.random.fork_rng():
                torch.manual_seed(options.seed)
                writer = add_lora(reader, options.lora_rank, share=frozen, modules=options.lora_modules)
        return cls(config, reader, writer, embeddings, prompts)

    @classmethod
    def load(
        cls, folder: Path, base: str | None = None, device: str | None = None, dtype: torch.dtype | None = None
    ) -> Checkpoint:
        """Read a checkpoint folder. base: a model to use in place of the recorded one; if it is not known to fit, a
        warning is logged.

        Raises `ModelNotFoundError` or `ModelError`.
        """
        config, prompt_format = read_config(folder)
        where = base or (str(folder) if config.base == "." else config.base)
        reader, tokenizer, fingerprint = load_base(where, device, dtype)
        used = describe_base(config.base if base is None else base, reader, fingerprint)
        _check_base(folder, config, used, where, is_named=base is not None)
        try:
            trained = load_file(folder / EMBEDDINGS)
            embeddings = trained["gist_embeddings"].to(reader.dtype)
            if (folder / ADAPTER).exists():
                trained |= load_file(folder / ADAPTER_WEIGHTS)
        except (OSError, SafetensorError, KeyError) as error:
            raise ModelError(f"{folder} has no usable {EMBEDDINGS} or {ADAPTER_WEIGHTS}: {error}") from error
        if embeddings.dim() != 2 or embeddings.shape[1] != embedding_weight(reader).shape[1]:
            raise ModelError(f"{folder}/{EMBEDDINGS} is {[*embeddings.shape]}, which does not fit {where}")
        writer: Any = reader
        if (folder / ADAPTER).exists():
            writer = load_lora(reader, folder, share=config.recipe == Recipe.FROZEN)
            if config.recipe == Recipe.PAPER:
                reader = writer = writer.merge_and_unload().eval()
        others = [known for known in config.bases if not _is_same(known, used)]
        made = cls(
            config.replace(bases=[used, *others]),
            reader,
            writer,
            embeddings,
            PromptTokenizer(tokenizer, prompt_format),
            trained,
        )
        # fingerprint the tensors in the dtype the files hold; for those the files lack, use the defaults; ignore those
        # this checkpoint does not use
        defaults = made._gist_tensors
        held = {name: tensor for name, tensor in trained.items() if name in defaults or "lora_" in name}
        made.adapter_fingerprint = made._adapter_fingerprint(defaults | held)
        return made

    def save_pretrained(self, folder: str | Path, card: str | None = None) -> Path:
        """Write a folder as model hubs expect it: adapter or model, gist embeddings, `gistlm.json`, and the text of a
        model card if given.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        k_range = self.config.k or Range(most=self.placement.max_k)
        config = self.config.replace(k=k_range)
        if self.writer is not self.reader:
            self.writer.peft_config["default"].base_model_name_or_path = self.config.base  # not a path of this machine
            tensors = {name: tensor.to(self.reader.dtype) for name, tensor in adapter_weights(self.writer).items()}
            self.writer.save_pretrained(folder, state_dict=tensors)
            (folder / "README.md").unlink(missing_ok=True)
        elif self.config.recipe == Recipe.PAPER:
            weights = fingerprint_weights(dict(self.reader.named_parameters()))
            config = config.replace(bases=[describe_base(".", self.reader, weights)])
            self.reader.save_pretrained(folder)
            self.prompts.tokenizer.save_pretrained(folder)
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in self._gist_tensors.items()}
        tensors["gist_embeddings"] = tensors["gist_embeddings"].to(self.reader.dtype)
        save_file(tensors, folder / EMBEDDINGS)
        write_config(folder, config, self.prompts.format)
        if card is not None:
            write_atomically(folder / "README.md", card.encode())
        return folder


def describe_base(name: str, model: PreTrainedModel, weights: str) -> Base:
    """The record of a loaded base. name: where it is; weights: the fingerprint of its weights."""
    config = model.config if model.config.is_encoder_decoder else model.config.get_text_config(decoder=True)
    return Base(base=name, weights=weights, settings=settings_fingerprint(config.to_dict()))


def _check_base(folder: Path, config: CheckpointConfig, used: Base, where: str, is_named: bool) -> None:
    """Raise `ModelError` if the recorded base has changed. If the user named another base that is not known to fit
    (``is_named``), log a warning instead. used: the base in use; where: its path or hub id.
    """
    known = config.bases if is_named else config.bases[:1]
    if any(_is_same(each, used) for each in known):
        return
    if is_named:
        logger.warning("%s was not trained for %s and is not known to fit it; measure its gists", folder, where)
        return
    what = "settings" if used.weights == known[0].weights else "weights"
    raise ModelError(f"{where} has other {what} than the base that {folder} was trained on; name one with base=")


def _is_same(known: Base, used: Base) -> bool:
    """Whether a recorded base is the one in use; version 1 of `gistlm.json` records no settings."""
    return known.weights == used.weights and known.settings in ("", used.settings)


def _parameter(name: str, tensor: Tensor, shape: tuple[int, ...], device: torch.device) -> nn.Parameter:
    if tensor.shape != shape:
        raise ModelError(f"the checkpoint's {name!r} is {[*tensor.shape]}; for this base it must be {[*shape]}")
    return nn.Parameter(tensor.float().to(device), requires_grad=False)


def check_kept(architecture: Architecture, model: PreTrainedModel) -> None:
    """Raise `UnsupportedModelError` unless gists of this model can keep tokens of the prompt."""
    if architecture.encodes:
        raise UnsupportedModelError(
            "an encoder's tokens cannot be kept: gist and prompt are read as one; set kept to 0"
        )
    if architecture.window is not None:
        raise UnsupportedModelError("kept tokens may fall out of this model's sliding windows; set kept to 0")
    check_probeable(model.get_decoder())
