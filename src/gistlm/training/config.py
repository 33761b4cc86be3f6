"""The options of a training run, read from a YAML recipe; knows nothing of how a run goes.

A recipe is a mapping with the fields of `TrainConfig`; `data` is a list of mappings with the fields of
`data.DataSource`.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import MISSING, asdict, dataclass, field, fields
from enum import StrEnum
from pathlib import Path
from typing import Any

from gistlm.data.limits import Allowed, check_fields
from gistlm.data.sources import DataSource
from gistlm.errors import DataError, InputError
from gistlm.gist import DTYPES
from gistlm.gisting.placement import Condition
from gistlm.models.adapter import LoraModules
from gistlm.models.checkpoint import CheckpointOptions
from gistlm.models.config import Recipe
from gistlm.models.embeddings import Initial
from gistlm.training.objectives import Weights
from gistlm.training.recipe_file import read_recipe_file

_WEIGHTS = (
    "distillation_weight",
    "input_weight",
    "cross_entropy_weight",
    "full_prompt_weight",
    "reconstruction_weight",
    "observation_weight",
)
_OF_FROZEN = ("distillation_weight", "input_weight", "cross_entropy_weight", "reconstruction_weight", "teacher_cache")
_WHOLE, _SOME = Allowed(int, 1), Allowed(int, 1, optional=True)
_WEIGHT, _FLAG = Allowed(float, 0), Allowed(bool, optional=True)
_ALLOWED = {
    **dict.fromkeys(("base", "output"), Allowed(str)),
    **dict.fromkeys(("start", "device", "dtype", "teacher_cache"), Allowed(str, optional=True)),
    **dict.fromkeys(("max_k", "steps", "batch_size", "max_tokens", "save_every"), _WHOLE),
    **dict.fromkeys(("lora_rank", "stop_after", "max_rest_tokens", "threads"), _SOME),
    **dict.fromkeys(("learning_rate", "gist_learning_rate"), _WEIGHT),
    **dict.fromkeys(_WEIGHTS, _WEIGHT),
    **dict.fromkeys(("anchored", "opening_visible"), _FLAG),
    "compile": Allowed(bool),
    "warmup": Allowed(float, 0, 1),
    **dict.fromkeys(("validation_rows", "kept", "observers"), Allowed(int, 0)),
    "seed": Allowed(int, 0, 2**32 - 1),
}
_NUMBERS = [name for name, allowed in _ALLOWED.items() if allowed.kind is float]


@dataclass(frozen=True)
class TrainConfig:
    """One training run."""

    base: str
    """Model to train on: a folder, a hub id, or package:NAME/FILE.gguf."""
    output: str
    """Folder for the checkpoint; the run's own state goes to its subfolder `run`."""
    data: list[DataSource] = field(default_factory=list)
    """Where the rows come from."""
    exclude: list[str] | None = None
    """Evaluation data, a list of paths like a source's: rows that are in it, or nearly, are left out of training."""
    name: str = ""
    """The checkpoint's name; the base's by default."""
    recipe: Recipe = Recipe.FROZEN
    """frozen: adapter on gist tokens, distilled. paper: the model itself, under the gist mask."""
    condition: Condition = Condition.GIST
    """paper only: gist, or one of the controls positive and negative."""
    max_k: int = 16
    """Most gist tokens."""
    k: list[int] | None = None
    """What each row's number of gist tokens is drawn from; a number given twice is drawn twice as often. By default 1,
    2, 4, ... up to max_k, for an encoder-decoder every number."""
    kept: int = 0
    """frozen only: so many of the max_k tokens are not learned but the prompt's own keys and values (see `observe`).
    The fewest gist tokens that are learned is 1."""
    anchored: bool | None = None
    """Start each gist token from one of the prompt's rarest tokens; by default `frozen` does, `paper` does not."""
    opening_visible: bool | None = None
    """Leave the template's constant opening visible beside the gist; by default `frozen` does, `paper` does not."""
    initial: Initial | None = None
    """Start of the gist embeddings: spread, mean, words or small; by default small beside anchors, else spread."""
    start: str | None = None
    """A checkpoint of the same make whose adapter and gist embeddings training goes on from; untrained ones if null."""
    lora_rank: int | None = 32
    """Rank of the adapter; null (paper only) tunes every weight."""
    lora_modules: LoraModules = LoraModules.ATTENTION
    """Layers that the adapter is put on: attention (queries, keys, values, outputs) or all (every linear layer)."""
    steps: int = 1000
    """Optimiser steps, over which the learning rates fall to zero."""
    stop_after: int | None = None
    """End after this many steps; the learning rates are those of the full number of steps."""
    batch_size: int = 16
    """Rows a step and process."""
    max_tokens: int = 512
    """Longer rows are left out."""
    max_rest_tokens: int | None = None
    """Rows whose input and output are longer than this are left out: they cost most and teach least of the prompt."""
    learning_rate: float = 3e-4
    """Peak, after warm-up; then cosine decay to zero."""
    gist_learning_rate: float = 3e-3
    """The same for the gist embeddings, the shares of fitting and the learned observers."""
    warmup: float = 0.03
    """Share of the steps."""
    input_weight: float = 0.0
    """frozen only, and decoder-only models: weight of an input token's KL beside an output token's 1."""
    distillation_weight: float = 1.0
    """frozen only: weight of the KL to the full-prompt model."""
    cross_entropy_weight: float = 0.0
    """frozen only: weight of the outputs' cross-entropy added to the KL."""
    full_prompt_weight: float = 0.0
    """paper only: weight of the same loss under the full prompt, so that the model goes on to answer full prompts."""
    teacher_cache: str | None = None
    """frozen only: a folder for what the full prompt teaches of each row: later passes and runs read it there."""
    reconstruction_weight: float = 0.0
    """frozen only: weight of the cross-entropy of the prompt's first 64 tokens, read out of the gist."""
    observation_weight: float = 0.0
    """Where tokens are kept: weight of what the observers miss, the KL of their attention to the rest's own."""
    observers: int = 0
    """Where tokens are kept: learned observers, beside the prompt's last tokens (see `observe`)."""
    validation_rows: int = 64
    """Up to so many rows, held out by prompt and, where tasks fill half of it, by task; measured at every save."""
    save_every: int = 50
    """Steps between two saves; a killed run resumes from the last."""
    seed: int = 0
    """Of data order, k, and initial weights."""
    dtype: str | None = None
    """float32, bfloat16 or float16; the base's own by default."""
    matmul_precision: str = "highest"
    """How float32 matrices are multiplied: highest, high or medium, which may be faster (torch's own words)."""
    device: str | None = None
    """The first accelerator by default."""
    threads: int | None = None
    """CPU threads; all by default."""
    compile: bool = False
    """Put the parts of a layer beside attention through torch.compile, which on CPUs needs a C++ compiler."""

    def __post_init__(self) -> None:
        check_fields(self, _ALLOWED)
        if not isinstance(self.name, str):
            raise InputError(f"name must be a text, got {self.name!r}")
        if self.stop_after is not None and self.stop_after > self.steps:
            raise InputError(f"stop_after must be from 1 to steps={self.steps}, got {self.stop_after}")
        if self.k is not None and not (isinstance(self.k, list) and self.k and all(map(self._may_draw, self.k))):
            raise InputError(f"k must be a list of whole numbers from 1 to max_k={self.max_k}, or null, got {self.k!r}")
        if self.k is not None and not self.kept and max(self.k) < self.max_k:
            raise InputError(f"max_k={self.max_k} has gist tokens that k={self.k} never trains; make it {max(self.k)}")
        if self.kept >= self.max_k:
            raise InputError(f"kept must be from 0 to max_k - 1 = {self.max_k - 1}, got {self.kept}")
        if self.kept and self.recipe != Recipe.FROZEN:
            raise InputError("tokens are kept under the frozen recipe only; set kept to 0")
        ignored = [
            each.name for each in fields(self) if each.name in _OF_FROZEN and vars(self)[each.name] != each.default
        ]
        if self.recipe != Recipe.FROZEN and ignored:
            raise InputError(f"{ignored[0]} is for the frozen recipe; paper's loss is cross-entropy: leave it out")
        if self.recipe != Recipe.FROZEN and any(source.cross_entropy_weight for source in self.data):
            raise InputError("a source's cross_entropy_weight is for the frozen recipe; paper's loss is cross-entropy")
        if not self.kept and (self.observers or self.observation_weight):
            raise InputError("observers choose kept tokens; set observers and observation_weight to 0, or keep some")
        if self.recipe == Recipe.FROZEN and (self.lora_rank is None or self.condition != Condition.GIST):
            raise InputError("the frozen recipe needs a lora_rank and trains the condition gist only")
        if self.full_prompt_weight and (self.recipe, self.condition) != (Recipe.PAPER, Condition.GIST):
            raise InputError("full_prompt_weight is for the paper recipe under the condition gist; leave it at 0")
        if self.recipe == Recipe.FROZEN and not self.weights.train_something:
            raise InputError("the weights of the frozen recipe's loss are all 0; set one, such as distillation")
        if self.dtype not in (None, *DTYPES):
            raise InputError(f"dtype must be one of {', '.join(DTYPES)}, or null, got {self.dtype!r}")
        if self.matmul_precision not in ("highest", "high", "medium"):
            raise InputError(f"matmul_precision must be highest, high or medium, got {self.matmul_precision!r}")
        paths = [] if self.exclude is None else self.exclude
        if not isinstance(paths, list) or not all(isinstance(path, str) and path for path in paths):
            raise InputError(f"exclude must be a list of files or of hf:owner/name, got {self.exclude!r}")
        if not self.data:
            raise InputError("a recipe needs data: a list of mappings with at least a path")

    def _may_draw(self, k: object) -> bool:
        return Allowed(int, 1, self.max_k).holds(k)

    @property
    def has_anchors(self) -> bool:
        """`anchored`, or what the recipe does by default."""
        return self.recipe == Recipe.FROZEN if self.anchored is None else self.anchored

    @property
    def sees_opening(self) -> bool:
        """`opening_visible`, or what the recipe does by default."""
        return self.recipe == Recipe.FROZEN if self.opening_visible is None else self.opening_visible

    @property
    def checkpoint_options(self) -> CheckpointOptions:
        """Of the untrained checkpoint."""
        return CheckpointOptions(
            recipe=self.recipe,
            max_k=self.max_k,
            kept=self.kept,
            lora_rank=self.lora_rank,
            lora_modules=self.lora_modules,
            anchored=self.has_anchors,
            opening_visible=self.sees_opening,
            initial=self.initial,
            seed=self.seed,
        )

    @property
    def weights(self) -> Weights:
        """Of the frozen recipe's loss."""
        return Weights(
            self.distillation_weight,
            self.input_weight,
            self.cross_entropy_weight,
            self.reconstruction_weight,
            self.observation_weight,
        )

    @property
    def last_step(self) -> int:
        """The step after which the run ends."""
        return self.stop_after or self.steps

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for YAML and for telling one run from another."""
        return {
            **asdict(self),
            "recipe": self.recipe.value,
            "condition": self.condition.value,
            "lora_modules": self.lora_modules.value,
            "initial": self.initial and self.initial.value,
        }


def read_config(path: str | Path, overrides: dict[str, Any] | None = None) -> TrainConfig:
    """Read a recipe; ``overrides`` replace its fields. Raises `DataError` or `InputError` in one sentence."""
    return parse_config({**read_recipe_file(path), **(overrides or {})}, str(path))


def parse_config(values: dict[str, Any], name: str = "the recipe") -> TrainConfig:
    """Plain values to a checked `TrainConfig`."""
    _check_keys(values, TrainConfig, name)
    sources = values.get("data", [])
    if not isinstance(sources, list) or not all(isinstance(source, dict) for source in sources):
        raise DataError(f"{name}: data must be a list of mappings with at least a path")
    for source in sources:
        _check_keys(source, DataSource, f"{name}, data")
    sources = [DataSource(**_with_numbers(source, ["cross_entropy_weight"])) for source in sources]
    made = {**_with_numbers(values, _NUMBERS), "data": sources}
    for key, kind in _CHOICES.items():
        if key in values and (key, values[key]) != ("initial", None):
            made[key] = _choice(key, kind, values[key])
    try:
        return TrainConfig(**made)
    except TypeError as error:
        raise InputError(f"{name}: {error}") from error


_CHOICES: dict[str, type[StrEnum]] = {
    "recipe": Recipe, "condition": Condition, "lora_modules": LoraModules, "initial": Initial,
}  # fmt: skip


def _with_numbers(values: dict[str, Any], names: list[str]) -> dict[str, Any]:
    """The values, those of that name as numbers: YAML 1.1 takes 1e-4 for a word."""
    return {**values, **{name: _number(name, values[name]) for name in names if name in values}}


def _number(name: str, value: object) -> float:
    if isinstance(value, int | float | str) and not isinstance(value, bool):
        with suppress(ValueError):
            return float(value)
    raise InputError(f"{name} must be a number, got {value!r}")


def _choice(name: str, kind: type[StrEnum], value: object) -> StrEnum:
    try:
        return kind(value)  # type: ignore[arg-type]
    except ValueError:
        raise InputError(f"{name} must be one of {', '.join(kind)}, got {value!r}") from None


def _check_keys(values: dict[str, Any], kind: Any, name: str) -> None:
    for item in fields(kind):
        if item.default is MISSING and item.default_factory is MISSING and item.name not in values:
            raise DataError(f"{name} lacks the option {item.name!r}")
    allowed = [item.name for item in fields(kind)]
    unknown = sorted(set(map(str, values)) - set(allowed))
    if unknown:
        raise DataError(f"{name} has no option {unknown[0]!r}; the options are {', '.join(allowed)}")
