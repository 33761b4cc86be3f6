"""Options that several commands share, and loading the engine that they name; knows no command."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from gistlm.errors import InputError

if TYPE_CHECKING:
    from gistlm.cli.preflight import Preflight
    from gistlm.engines.base import Engine as LoadedEngine
    from gistlm.engines.sampling import Sampling
    from gistlm.gist_file import GistFile

DEFAULT_MODEL = "smollm2-135m"
READS_CHECKPOINTS = ("transformers",)
"""Engines that run a checkpoint of `gistlm models`."""

Model = Annotated[
    str,
    typer.Option(
        "--model", "-m", envvar="GISTLM_MODEL", help="Checkpoint: a name from `gistlm models`, a folder, or a hub id."
    ),
]
Base = Annotated[
    str | None,
    typer.Option("--base", help="Base model (folder or hub id) in place of the one that the checkpoint names."),
]
Device = Annotated[
    str | None, typer.Option("--device", help="cpu, cuda, cuda:1, ...; the first accelerator by default.")
]
Dtype = Annotated[
    str | None,
    typer.Option("--dtype", help="float32, bfloat16 or float16; by default that of a given gist, or else the model's."),
]
Engine = Annotated[str, typer.Option("--engine", envvar="GISTLM_ENGINE", hidden=True)]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]

MaxNewTokens = Annotated[int, typer.Option("--max-new-tokens", "-n", help="Maximum number of tokens to generate.")]
Temperature = Annotated[
    float,
    typer.Option("--temperature", "-t", help="0, or below 1e-5, takes the likeliest token; higher is more varied."),
]
TopP = Annotated[
    float, typer.Option("--top-p", help="Sample from the likeliest tokens that together have this probability.")
]
TopK = Annotated[int, typer.Option("--top-k", help="Sample from this many likeliest tokens; 0 is all.")]
Stop = Annotated[
    list[str] | None, typer.Option("--stop", help="String at which the answer ends; may be given several times.")
]
Seed = Annotated[int | None, typer.Option("--seed", help="Makes sampling repeatable.")]


@dataclass(frozen=True)
class EngineOptions:
    """Which engine, on which model."""

    engine: str
    model: str
    base: str | None
    device: str | None
    dtype: str | None

    def preflight(self, gist: GistFile | None = None) -> Preflight | None:
        """What can be refused before the engine is loaded; None where that takes the engine itself.

        Raises `GistlmError` where the model or the dtype cannot be had, or is not that of the gist.
        """
        from gistlm.cli.preflight import Preflight
        from gistlm.gist_file import DTYPES, check_dtype

        if self.dtype is not None and self.dtype not in DTYPES:
            raise InputError(f"dtype must be one of {', '.join(DTYPES)}, got {self.dtype!r}")
        known = Preflight.of(self.model, self.base) if self.engine in READS_CHECKPOINTS else None
        if known is not None and gist is not None:
            known.check_gist(gist)
        if gist is not None and self.dtype is not None:
            check_dtype(gist.dtype, self.dtype)
        return known

    def load(self, gist: GistFile | None = None) -> LoadedEngine:
        """The engine; without a dtype of its own, in the dtype of the gist that it is to read."""
        from gistlm.cli.imports import without_unneeded
        from gistlm.engines.base import load_engine

        dtype = self.dtype or (gist.dtype if gist is not None else None)
        with without_unneeded():
            return load_engine(self.engine, self.model, base=self.base, device=self.device, dtype=dtype)


def sampling(
    max_new_tokens: int, temperature: float, top_p: float, top_k: int, stop: list[str] | None, seed: int | None
) -> Sampling:
    """The options of that name as one, checked."""
    from gistlm.engines.sampling import Sampling

    return Sampling(
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        stop=tuple(stop or ()),
        seed=seed,
    )
