"""The options of a training run, read from a YAML recipe; knows nothing of how a run goes, and loads no torch.

A recipe is a mapping with the fields of `TrainConfig`; `data` is a list of mappings with the fields of
`data.sources.DataSource`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from gistlm.data.sources import DataSource
from gistlm.errors import DataError
from gistlm.models.config import Recipe
from gistlm.options import Number, Options, Text

_MAX_BYTES = 1 << 20


class TrainConfig(Options):
    """One training run."""

    base: Text
    """Model to train on: a folder, a hub id, or package:NAME/FILE.gguf."""
    output: Text
    """Folder for the checkpoint; the run's own state goes to its subfolder `run`."""
    data: list[Annotated[DataSource, Field(strict=False)]]
    """Where the rows come from."""
    exclude: list[Text] | None = None
    """Evaluation data, a list of paths like a source's: rows that are in it, or nearly, are left out of training."""
    name: str = ""
    """The checkpoint's name; the base's by default."""
    recipe: Annotated[Recipe, Field(strict=False)] = Recipe.FROZEN
    """frozen: adapter on gist tokens, distilled. paper: the model itself, under the gist mask."""
    condition: Literal["gist", "positive", "negative"] = "gist"
    """paper only: gist, or one of the controls positive and negative."""
    max_k: PositiveInt = 16
    """Maximum number of a gist's tokens."""
    k: list[PositiveInt] | None = None
    """What each row's number of gist tokens is drawn from; a number given twice is drawn twice as often. By default 1,
    2, 4, ... up to max_k, for an encoder-decoder every number."""
    kept: NonNegativeInt = 0
    """frozen only: maximum number of kept tokens, the prompt's own keys and values (`kept_tokens`). The other
    max_k - kept tokens, at least 1, are learned."""
    anchored: bool | None = None
    """Start each gist token from one of the prompt's rarest tokens; by default `frozen` does, `paper` does not."""
    start: Text | None = None
    """A checkpoint of the same make whose adapter and gist embeddings training goes on from; untrained ones if null."""
    lora_rank: PositiveInt | None = 32
    """Rank of the adapter; null (paper only) tunes every weight."""
    lora_modules: Literal["attention", "all"] = "attention"
    """Layers that the adapter is put on: attention (queries, keys, values, outputs) or all (every linear layer)."""
    steps: PositiveInt = 1000
    """Optimiser steps, over which the learning rates fall to zero."""
    batch_size: PositiveInt = 16
    """Number of rows per step and process."""
    max_tokens: PositiveInt = 512
    """Rows with more tokens, prompt, input and output together, are left out."""
    max_rest_tokens: PositiveInt | None = None
    """Rows whose input and output are longer than this are left out: they cost most and teach least of the prompt."""
    learning_rate: Number = 3e-4
    """Peak learning rate, after warm-up; then cosine decay to zero."""
    gist_learning_rate: Number = 3e-3
    """Peak learning rate of gist embeddings, fit strengths and probe embeddings."""
    warmup: Annotated[Number, Field(le=1)] = 0.03
    """Fraction of the steps over which the learning rates rise to their peak."""
    cross_entropy_weight: Number = 0.0
    """frozen only: weight of the outputs' cross-entropy added to the KL."""
    full_prompt_weight: Number = 0.0
    """paper only: weight of the same loss under the full prompt, so that the model goes on to answer full prompts."""
    teacher_cache: Text | None = None
    """frozen only: a folder to cache the full-prompt model's results in, for later passes and runs."""
    probe_weight: Number = 0.0
    """With kept tokens only: weight of KL(target attention, probe attention), which trains the probe queries."""
    probes: NonNegativeInt = 0
    """With kept tokens only: number of trained probe queries, beside the prompt's last tokens (see `kept_tokens`)."""
    validation_rows: NonNegativeInt = 64
    """Maximum number of rows held out by prompt and, if tasks fill half of it, by task; measured at every save."""
    save_every: PositiveInt = 50
    """Number of steps between two saves; a killed run resumes from the last."""
    seed: Annotated[NonNegativeInt, Field(lt=2**32)] = 0
    """Seed of the data's order, of k and of initial weights."""
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """float32, bfloat16 or float16; the base's own by default."""
    matmul_precision: Literal["highest", "high", "medium"] = "highest"
    """Precision of float32 matrix products, as torch names it: highest, high or medium, which may be faster."""
    device: Text | None = None
    """The first accelerator by default."""
    threads: PositiveInt | None = None
    """CPU threads; all by default."""

    @model_validator(mode="after")
    def _options_agree(self) -> Self:
        frozen, is_gist = self.recipe == Recipe.FROZEN, self.condition == "gist"
        most = max(self.k or [self.max_k])
        for wrong, sentence in (
            (not self.data, "a recipe needs data: a list of mappings with at least a path"),
            (
                self.k == [] or most > self.max_k,
                f"k must be a list of whole numbers from 1 to max_k={self.max_k}, or null, got {self.k}",
            ),
            (
                most < self.max_k and not self.kept,
                f"max_k={self.max_k} has gist tokens that k={self.k} never trains; make it {most}",
            ),
            (self.kept >= self.max_k, f"kept must be from 0 to max_k - 1 = {self.max_k - 1}, got {self.kept}"),
            (self.kept and not frozen, "tokens are kept under the frozen recipe only; set kept to 0"),
            (
                not frozen and (self.cross_entropy_weight or any(source.cross_entropy_weight for source in self.data)),
                "cross_entropy_weight is for the frozen recipe; paper's loss is cross-entropy: leave it out",
            ),
            (not frozen and self.teacher_cache, "teacher_cache is for the frozen recipe; leave it out"),
            (
                not self.kept and (self.probes or self.probe_weight),
                "probe queries choose kept tokens; set probes and probe_weight to 0, or keep some",
            ),
            (
                frozen and (self.lora_rank is None or not is_gist),
                "the frozen recipe needs a lora_rank and trains the condition gist only",
            ),
            (
                self.full_prompt_weight and (frozen or not is_gist),
                "full_prompt_weight is for the paper recipe under the condition gist; leave it at 0",
            ),
        ):
            if wrong:
                raise ValueError(sentence)
        return self

    @property
    def has_anchors(self) -> bool:
        """`anchored`, or what the recipe does by default."""
        return self.recipe == Recipe.FROZEN if self.anchored is None else self.anchored

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for YAML and for telling one run from another."""
        return self.model_dump(mode="json")


def read_config(path: str | Path, overrides: dict[str, Any] | None = None) -> TrainConfig:
    """Read a recipe; ``overrides`` replace its options. Raises `DataError` or `InputError` in one sentence."""
    path = Path(path)
    try:
        if path.exists() and not (path.is_file() and path.stat().st_size <= _MAX_BYTES):
            raise DataError(f"the recipe {path} is no file of at most {_MAX_BYTES:,} bytes; give a YAML file")
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"there is no recipe at {path}; recipes/ has examples") from None
    except (OSError, ValueError, yaml.YAMLError) as error:  # ValueError: wrong UTF-8, or a NUL in the path
        raise DataError(f"cannot read the recipe {path}: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise DataError(f"the recipe {path} must be a mapping of options, got {type(values).__name__}")
    return TrainConfig.parse({**values, **(overrides or {})}, str(path))
