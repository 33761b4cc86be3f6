"""A gist checkpoint: base model, gist adapter, gist embeddings and prompt format, loaded and saved together.

Two models share the base's weights in memory. The *reader* is the stock model: it encodes prompts and
answers over gists. The *writer* turns gist tokens into keys and values. Under the `frozen` recipe the writer
carries a LoRA adapter and the reader is the untouched base; under `paper` both are the same tuned model.
Knows nothing of prompts, gists or generation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
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
from gistlm.gisting.kept_tokens import check_observable, leaves_few
from gistlm.gisting.mask import Part
from gistlm.models.adapter import AdapterOnLast, LoraModules, adapter_weights, add_lora, load_lora
from gistlm.models.architecture import TESTED, Architecture, inspect_architecture
from gistlm.models.config import (
    EMBEDDINGS,
    GIST_TOKEN,
    CheckpointConfig,
    Recipe,
    read_config,
    reader_fingerprint,
    write_config,
)
from gistlm.models.embeddings import anchor_ids, embedding_weight, initial_embeddings
from gistlm.models.loading import fingerprint_weights, load_base
from gistlm.prompt import PromptTokenizer, default_format

FITTED = 0.5
"""Where training of `Checkpoint.fitted` starts from."""
ADAPTER = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"


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
        """trained: "fitted" and "observers" where there are such (see the attributes)."""
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
            check_kept(self.architecture, reader)
        found, device = trained if trained and config.kept else {}, reader.device
        shape = (self.architecture.layers if config.kept else 0, 2)
        self.fitted = _parameter("fitted", found.get("fitted", torch.full(shape, FITTED)), shape, device)
        """[layers, 2]: how far the first learned gist token's key and value are fitted (see `observe`); [0, 2] where
        no tokens are kept"""
        hidden = int(gist_embeddings.shape[1])
        observers = found.get("observers", torch.zeros(0, hidden))
        self.observers = _parameter("observers", observers, (*observers.shape[:1], hidden), device)
        """[observers, hidden]: embeddings of learned observers (see `observe`)"""

    @property
    def max_k(self) -> int:
        """The most tokens that one gist can have, learned and kept."""
        return self.learned + self.config.kept

    @property
    def learned(self) -> int:
        """The most gist tokens that are learned; what a gist has beyond them are kept tokens of the prompt."""
        return int(self.gist_embeddings.shape[0])

    def learned_columns(self, k: int) -> int:
        """Learned gist tokens that are run for gists of at most k: all where observers stand behind and see them."""
        return self.learned if self.config.kept else min(k, self.learned)

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
            anchors = anchor_ids(tokens, self.is_own(parts), k)
            inputs = inputs + self.reader.get_input_embeddings()(anchors.clamp_min(0)) * (anchors >= 0)[:, :, None]
        return inputs.to(self.reader.dtype)

    def is_own(self, parts: Tensor) -> Tensor:
        """bool [batch, N]: which columns hold the prompt's own tokens, not padding and not the template's opening."""
        return self._is_behind(len(self.prompts.opening_ids), parts)

    def may_be_kept(self, parts: Tensor) -> Tensor:
        """bool [batch, N]: which columns a gist can keep, those that are not visible beside it anyway."""
        return self._is_behind(self.opening_tokens, parts)

    def _is_behind(self, first: int, parts: Tensor) -> Tensor:
        is_prompt = parts == Part.PROMPT
        return is_prompt & (is_prompt.cumsum(dim=1) > first)

    def held(self, parts: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """How many learned and how many kept tokens, both [batch], gists of at most k [batch] tokens have.

        parts: of the prompts [batch, N]. Where k tokens `leaves_few` out, all are kept ones.
        """
        if not self.config.kept:
            return k, torch.zeros_like(k)
        tokens, learned = self.may_be_kept(parts).sum(dim=1), k.clamp_max(self.learned)
        few = leaves_few(tokens, k)
        return torch.where(few, 0, learned), torch.where(few, torch.minimum(tokens, k), k - learned)

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
        return reader_fingerprint(
            self.config, self.adapter_fingerprint, self.prompts.tokenizer.get_vocab(), self.prompts.format
        )

    @cached_property
    def adapter_fingerprint(self) -> str:
        """Of what writes a gist: adapter, gist embeddings, shares of fitting and observers."""
        adapter = {name.replace(".default", ""): tensor for name, tensor in adapter_weights(self.writer).items()}
        return self._adapter_fingerprint({**self._own_weights, **adapter})

    @property
    def _own_weights(self) -> dict[str, Tensor]:
        own: dict[str, Tensor] = {"gist_embeddings": self.gist_embeddings}
        if self.config.kept:
            own["fitted"] = self.fitted
        return own | ({"observers": self.observers} if len(self.observers) else {})

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
        learned = options.max_k - options.kept
        embeddings = initial_embeddings(reader, learned, options.seed, anchored=options.anchored)
        frozen = options.recipe == Recipe.FROZEN
        prompt_format = default_format(tokenizer, reader.config.is_encoder_decoder)
        prompts = PromptTokenizer(tokenizer, replace(prompt_format, opening_visible=frozen))
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
        config, prompt_format = read_config(folder)
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
        made = cls(config, reader, writer, embeddings, PromptTokenizer(tokenizer, prompt_format), trained)
        own = made._own_weights  # for what the files have not, or have and do not use
        used = {name: tensor for name, tensor in trained.items() if name in own or "lora_" in name}
        made.adapter_fingerprint = made._adapter_fingerprint(own | used)  # as the files hold it
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
        own = {name: tensor.detach().cpu().contiguous() for name, tensor in self._own_weights.items()}
        own["gist_embeddings"] = own["gist_embeddings"].to(self.reader.dtype)
        save_file(own, folder / EMBEDDINGS)
        write_config(folder, config, self.prompts.format)
        if card is not None:
            write_atomically(folder / "README.md", card.encode())
        return folder


def _parameter(name: str, tensor: Tensor, shape: tuple[int, ...], device: torch.device) -> nn.Parameter:
    if tensor.shape != shape:
        raise ModelError(f"the checkpoint's {name!r} is {[*tensor.shape]}; for this base it must be {[*shape]}")
    return nn.Parameter(tensor.float().to(device), requires_grad=False)


def check_kept(architecture: Architecture, model: PreTrainedModel) -> None:
    """Raise `UnsupportedModelError` unless a gist can keep tokens of the prompt."""
    if architecture.encodes:
        raise UnsupportedModelError(
            "an encoder's tokens cannot be kept: gist and prompt are read as one; set kept to 0"
        )
    if architecture.window is not None:
        raise UnsupportedModelError("kept tokens may fall out of this model's sliding windows; set kept to 0")
    check_observable(model.get_decoder())
