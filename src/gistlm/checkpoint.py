"""A gist checkpoint: base model, gist adapter, gist embeddings and prompt format, loaded and saved together.

Two models share the base's weights in memory. The *reader* is the stock model: it encodes prompts and
answers over gists. The *writer* turns gist tokens into keys and values. Under the `frozen` recipe the writer
carries a LoRA adapter and the reader is the untouched base; under `paper` both are the same tuned model.
Knows nothing of prompts, gists or generation.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields, replace
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from gistlm.adapter import AdapterOnLast, LoraModules, adapter_weights, add_lora, load_lora
from gistlm.anchors import NONE, anchor_ids, kept_columns
from gistlm.architecture import TESTED, Architecture, inspect_architecture
from gistlm.base import fingerprint_tokenizer, fingerprint_weights, load_base
from gistlm.errors import ModelError, ModelNotFoundError, UnsupportedModelError
from gistlm.files import sha256, write_atomically
from gistlm.initial import Initial, default_initial, embedding_weight, initial_embeddings
from gistlm.mask import Part
from gistlm.prompt import PromptFormat, PromptTokenizer, default_format

CONFIG = "gistlm.json"
EMBEDDINGS = "gist_embeddings.safetensors"
ADAPTER = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
GIST_TOKEN = "<GIST>"
"""The original project's gist token, an entry of its vocabularies."""
VERSION = 1
MOST_KEPT = 1 << 16
_MAX_CONFIG_BYTES = 1 << 20


class Recipe(StrEnum):
    """How a checkpoint was trained."""

    FROZEN = "frozen"
    """The base is bit-identical; only gist tokens pass through the adapter."""
    PAPER = "paper"
    """The whole model, or a LoRA merged into it, was tuned under the gist mask."""


@dataclass(frozen=True)
class CheckpointConfig:
    """What `gistlm.json` says."""

    base: str
    """Folder, hub id or package file of the model underneath; "." when it lies in the checkpoint's own folder."""
    recipe: Recipe
    base_fingerprint: str
    """Of the base's weights: those trained on, and once loaded those in use."""
    name: str
    """For people."""
    anchored: bool = False
    """Whether each gist token starts from a token of the prompt (see `anchors`) beside its own embedding."""
    kept: int = 0
    """Most tokens of the prompt whose own keys and values a gist keeps behind its learned gist tokens."""

    def __post_init__(self) -> None:
        for field in fields(self):
            kind = {"anchored": bool, "kept": int}.get(field.name, str)
            value = getattr(self, field.name)
            if not isinstance(value, kind) or (kind is int and type(value) is not int):
                raise ModelError(f"a checkpoint's {field.name!r} must be {kind.__name__}: {value!r}")
        if not 0 <= self.kept <= MOST_KEPT:
            raise ModelError(f"a checkpoint's 'kept' must be from 0 to {MOST_KEPT:,}: {self.kept!r}")


@dataclass(frozen=True)
class CheckpointOptions:
    """What an untrained checkpoint is made of."""

    recipe: Recipe
    max_k: int = 16
    kept: int = 0
    """So many of the max_k tokens are the prompt's own, the others learned gist tokens."""
    lora_rank: int | None = 32
    """None (`paper` only) trains every weight."""
    lora_modules: LoraModules = LoraModules.ATTENTION
    anchored: bool = False
    opening_visible: bool | None = None
    """Whether the template's opening stays visible beside the gist; by default under `frozen`."""
    initial: Initial | None = None
    """Where gist embeddings start: `SMALL` beside anchors by default, else `SPREAD`."""
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
    ) -> None:
        self.config = config
        # peft froze the tensors that reader and writer share, and torch multiplies the last token's slice by frozen
        # weights as a batch of products: its logits took 20 to 80 times as long. Training chooses for itself.
        self.reader = reader.requires_grad_(True)
        self.writer: Any = writer
        """A `PeftModel`, or the reader itself."""
        self.gist_embeddings = nn.Parameter(gist_embeddings.to(reader.device), requires_grad=False)
        """[learned, hidden]"""
        self.prompts = prompts
        added = prompts.tokenizer.added_tokens_decoder.items()
        self.gist_token_ids = tuple(index for index, token in added if token.content == GIST_TOKEN)
        """Gist tokens that the vocabulary contains, never to be emitted; ours lie outside it."""
        self.architecture: Architecture = inspect_architecture(reader)
        if config.kept:
            check_kept(self.architecture)

    @property
    def max_k(self) -> int:
        """The most tokens that one gist can have, learned and kept."""
        return self.learned + self.config.kept

    @property
    def learned(self) -> int:
        """The most gist tokens that are learned; what a gist has beyond them are kept tokens of the prompt."""
        return int(self.gist_embeddings.shape[0])

    @property
    def opening_tokens(self) -> int:
        """Opening tokens that stay visible to the rest."""
        return len(self.visible_opening_ids)

    @property
    def visible_opening_ids(self) -> list[int]:
        """Their ids."""
        return self.prompts.opening_ids if self.prompts.format.opening_visible else []

    @property
    def writer_decoder(self) -> nn.Module:
        """The writer without its language-model head."""
        decoder: nn.Module = self._bare_writer.get_decoder()
        return decoder

    @property
    def writer_encoder(self) -> nn.Module:
        """The writer's encoder, of an encoder-decoder model."""
        encoder: nn.Module = self._bare_writer.get_encoder()
        return encoder

    @property
    def _bare_writer(self) -> Any:
        return self.writer.get_base_model() if hasattr(self.writer, "get_base_model") else self.writer

    def gist_inputs(self, tokens: Tensor, parts: Tensor, k: int) -> Tensor:
        """The input embeddings of k gist tokens behind each prompt: [batch, k, hidden].

        tokens, parts: ids and `Part`s of the prompts, opening included, [batch, N].
        """
        inputs = self.gist_embeddings[:k].expand(len(tokens), -1, -1)
        if self.config.anchored:
            anchors = anchor_ids(tokens, self._is_own(parts), k)
            inputs = inputs + self.reader.get_input_embeddings()(anchors.clamp_min(0)) * (anchors >= 0)[:, :, None]
        return inputs.to(self.reader.dtype)

    def _is_own(self, parts: Tensor) -> Tensor:
        """[batch, N]: which columns hold the prompt's own tokens, not padding and not the template's opening."""
        is_prompt = parts == Part.PROMPT
        return is_prompt & (is_prompt.cumsum(dim=1) > len(self.prompts.opening_ids))

    def kept_columns(self, tokens: Tensor, parts: Tensor, most: int) -> Tensor:
        """Columns [batch, most] of the prompts' tokens to be kept, the weightiest first; `NONE` where they are used up.

        tokens, parts as in `gist_inputs`. Tokens with digits come first, since no model guesses a number; then the
        rarest.
        """
        ranks = tokens + self._has_digit[tokens] * len(self._has_digit)
        return kept_columns(ranks, self._is_own(parts), most)

    def sizes(self, parts: Tensor, k: Tensor) -> Tensor:
        """Tokens that gists of at most k [batch] have: no more than there are learned ones and tokens of the prompt."""
        if not self.config.kept:
            return k
        return torch.minimum(k, self.learned + self._is_own(parts).sum(dim=1))

    def visible_parts(self, tokens: Tensor, parts: Tensor, k: Tensor) -> Tensor:
        """The prompts' ``parts`` [batch, N] with those columns as `Part.KEPT` that gists of k [batch] tokens keep."""
        most = int(k.max()) - self.learned
        if most <= 0:
            return parts
        columns = self.kept_columns(tokens, parts, most)
        wanted = (columns != NONE) & (torch.arange(most, device=k.device) < (k - self.learned)[:, None])
        is_kept = torch.zeros_like(parts).scatter_add(1, columns.clamp_min(0), wanted.long())
        return parts.masked_fill(is_kept > 0, int(Part.KEPT))

    @cached_property
    def _has_digit(self) -> Tensor:
        """[vocabulary], bool."""
        size = embedding_weight(self.reader).shape[0]
        found = torch.zeros(size, dtype=torch.bool, device=self.reader.device)
        numbers = [
            index
            for token, index in self.prompts.tokenizer.get_vocab().items()
            if index < size and any(character.isdigit() for character in token)
        ]
        found[torch.tensor(numbers, dtype=torch.long, device=found.device)] = True
        return found

    @cached_property
    def adapter_on_last(self) -> AdapterOnLast:
        """For one pass of prompt and gist tokens together."""
        return AdapterOnLast(self.writer)

    @property
    def adapts_columns(self) -> bool:
        """Whether `adapter_on_last` is exact: where the prompt passes the bare base, in architectures whose linear
        layers are known to take [batch, tokens, channels]. A `paper` model reads the prompt with its adapter.
        """
        known = self.architecture.name in TESTED or self.architecture.encodes
        frozen_and_known = self.config.recipe == Recipe.FROZEN and known
        return frozen_and_known or not self.adapter_on_last

    @cached_property
    def fingerprint(self) -> str:
        """Of what reads a gist: the reader's weights, the tokenizer and the prompt format."""
        return sha256(
            self.config.base_fingerprint.encode(),
            self.adapter_fingerprint.encode() if self.config.recipe == Recipe.PAPER else b"",
            fingerprint_tokenizer(self.prompts.tokenizer).encode(),
            json.dumps(self.prompts.format.to_dict(), sort_keys=True).encode(),
        )

    @cached_property
    def adapter_fingerprint(self) -> str:
        """Of what writes a gist: adapter and gist embeddings."""
        adapter = {name.replace(".default", ""): tensor for name, tensor in adapter_weights(self.writer).items()}
        return self._adapter_fingerprint({"gist_embeddings": self.gist_embeddings, **adapter})

    def _adapter_fingerprint(self, tensors: dict[str, Tensor]) -> str:
        return sha256(
            fingerprint_weights(tensors).encode(),
            b"anchored" if self.config.anchored else b"",
            b"kept" if self.config.kept else b"",
        )

    @classmethod
    def create(
        cls, base: str, options: CheckpointOptions, device: str | None = None, dtype: torch.dtype | None = None
    ) -> Checkpoint:
        """An untrained checkpoint over a stock model."""
        reader, tokenizer, fingerprint = load_base(base, device, dtype)
        config = CheckpointConfig(base, options.recipe, fingerprint, Path(base).stem, options.anchored, options.kept)
        initial = options.initial or default_initial(options.anchored)
        embeddings = initial_embeddings(reader, options.max_k - options.kept, options.seed, initial)
        frozen = options.recipe == Recipe.FROZEN
        visible = frozen if options.opening_visible is None else options.opening_visible
        prompt_format = default_format(tokenizer, reader.config.is_encoder_decoder)
        prompts = PromptTokenizer(tokenizer, replace(prompt_format, opening_visible=visible))
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
        """Read a checkpoint folder. ``base`` replaces the recorded one (its weights may then differ).

        Raises `ModelNotFoundError` or `ModelError`.
        """
        config, prompt_format = _read_config(folder)
        where = base or (str(folder) if config.base == "." else config.base)
        reader, tokenizer, fingerprint = load_base(where, device, dtype)
        if base is None and fingerprint != config.base_fingerprint:
            raise ModelError(
                f"{where} has other weights than the base that {folder} was trained on; name one with base="
            )
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
        config = replace(config, base_fingerprint=fingerprint)
        made = cls(config, reader, writer, embeddings, PromptTokenizer(tokenizer, prompt_format))
        made.adapter_fingerprint = made._adapter_fingerprint(trained)  # as the files hold it
        return made

    def save_pretrained(self, folder: str | Path, card: str | None = None) -> Path:
        """Write a hub-shaped folder: adapter or model, gist embeddings, `gistlm.json`, and a model card if given."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        config = asdict(self.config)
        if self.writer is not self.reader:
            self.writer.peft_config["default"].base_model_name_or_path = self.config.base  # not a path of this machine
            tensors = {name: tensor.to(self.reader.dtype) for name, tensor in adapter_weights(self.writer).items()}
            self.writer.save_pretrained(folder, state_dict=tensors)
            (folder / "README.md").unlink(missing_ok=True)
        elif self.config.recipe == Recipe.PAPER:
            config["base"] = "."
            config["base_fingerprint"] = fingerprint_weights(dict(self.reader.named_parameters()))
            self.reader.save_pretrained(folder)
            self.prompts.tokenizer.save_pretrained(folder)
        embeddings = self.gist_embeddings.detach().to("cpu", self.reader.dtype).contiguous()
        save_file({"gist_embeddings": embeddings}, folder / EMBEDDINGS)
        record = {"version": VERSION, **config, "prompt_format": self.prompts.format.to_dict()}
        write_atomically(folder / CONFIG, (json.dumps(record, indent=2, ensure_ascii=False) + "\n").encode())
        if card is not None:
            write_atomically(folder / "README.md", card.encode())
        return folder


def check_kept(architecture: Architecture) -> None:
    """Raise `UnsupportedModelError` unless the model can read kept tokens of a prompt."""
    if architecture.encodes:
        raise UnsupportedModelError(
            "an encoder's tokens cannot be kept: gist and prompt are read as one; set kept to 0"
        )
    if architecture.window is not None:
        raise UnsupportedModelError("kept tokens may fall out of this model's sliding windows; set kept to 0")


def _read_config(folder: Path) -> tuple[CheckpointConfig, PromptFormat]:
    path = folder / CONFIG
    if not path.is_file():
        raise ModelNotFoundError(f"{folder} is not a gist checkpoint: it has no {CONFIG}")
    try:
        if path.stat().st_size > _MAX_CONFIG_BYTES:
            raise ModelError(f"{path} has {path.stat().st_size:,} bytes; {_MAX_CONFIG_BYTES:,} are allowed")
        record = json.loads(path.read_text(encoding="utf-8"))
        version = record.pop("version")
        prompt_format = PromptFormat.from_dict(record.pop("prompt_format"))
        record["recipe"] = Recipe(record["recipe"])
        config = CheckpointConfig(**record)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, ModelError) as error:
        raise ModelError(f"{path} is damaged: {error}") from error
    if version != VERSION:
        raise ModelError(f"{path} has checkpoint version {version}; this gistlm reads version {VERSION}")
    return config, prompt_format
