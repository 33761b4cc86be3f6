"""An answer with what it took, and a gist's beside the full prompt's; knows no options."""

from __future__ import annotations

import time
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

from gistlm.cli.show import byte_count, duration, print_table
from gistlm.engines.base import Request
from gistlm.errors import GistMismatchError

if TYPE_CHECKING:
    from gistlm.engines.base import Engine
    from gistlm.gist import Gist


def answer(engine: Engine, request: Request) -> dict[str, Any]:
    """One answer with what it took, as plain values."""
    begin = time.perf_counter()
    completion = engine.complete([request])[0]
    seconds = time.perf_counter() - begin
    gist = request.gist.id if request.gist is not None else None
    condition = "gist" if gist else "full prompt" if request.prompt else "none"
    return {"condition": condition, "gist": gist, **asdict(completion), "seconds": round(seconds, 4)}


def compare_answers(engine: Engine, request: Request, prompt: str) -> dict[str, Any]:
    """Both answers as plain values; ``request`` is the gist's. Raises `GistMismatchError` for another prompt."""
    gist = request.gist
    assert gist is not None
    full = Request(request.input, prompt=prompt, sampling=request.sampling)
    one = request.sampling.replace(max_new_tokens=1)
    for warm_up in (request, full):
        engine.complete([replace(warm_up, sampling=one)])
    check_made_of(engine, gist, prompt)
    info = gist.info()
    sizes = {"gist": (info["k"], info["nbytes"]), "full": (info["prompt_tokens"], info["prompt_nbytes"])}
    report = {}
    for name, each in (("gist", request), ("full", full)):
        tokens, nbytes = sizes[name]
        begin = time.perf_counter()
        engine.complete([replace(each, sampling=one)])
        first = round(time.perf_counter() - begin, 4)
        measured = answer(engine, each)
        report[name] = {**measured, "first_token_seconds": first, "prompt_tokens": tokens, "kv_nbytes": nbytes}
    return report


def check_made_of(engine: Engine, gist: Gist, prompt: str) -> None:
    """Raise `GistMismatchError` unless the gist was made of this prompt."""
    made, given = gist.provenance, engine.compress(prompt, 1).provenance
    if made.prompt_sha256 != given.prompt_sha256:
        raise GistMismatchError(
            f"the gist was made of another prompt ({made.prompt_tokens:,} tokens) than the one given "
            f"({given.prompt_tokens:,} tokens); give the file that it was made of, or compress this one first"
        )


def print_comparison(report: dict[str, Any]) -> None:
    """Figures and answers side by side."""
    full, gist = report["full"], report["gist"]

    def row(name: str, show: Any, field: str) -> list[str]:
        return [name, show(full[field]), show(gist[field])]

    print_table(
        [
            row("prompt's tokens", "{:,}".format, "prompt_tokens"),
            row("prompt's KV cache", byte_count, "kv_nbytes"),
            row("tokens encoded", "{:,}".format, "fresh_tokens"),
            row("tokens generated", "{:,}".format, "new_tokens"),
            row("time to first token", duration, "first_token_seconds"),
            row("total time", duration, "seconds"),
            row("answer", str.strip, "text"),
        ],
        header=["", "full prompt", "gist"],
    )
