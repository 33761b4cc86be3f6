"""Exactness on a GPU: the exactness tests' random batches, against one pass under the mask on the CPU in float32.

    python benchmarks/gpu/exactness.py --json exactness.json          about 3 minutes; needs the repository alone

Decoders (with and without kept tokens, sliding windows) and T5, in float32 and bfloat16: logits, greedy answers,
streams and scores; numbers that are not finite; the memory that compressing 64 prompts of 2,000 tokens takes. In
float32, logits must be within 1e-3 of the reference and all answers equal. In bfloat16, they are compared with the same
code on the CPU in bfloat16, in standard deviations of the logits.
"""

from __future__ import annotations

import copy
import math
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from card import ROOT, find_card, parser, peak_bytes, write_figures
from rich import box
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(ROOT / "tests"))

import test_encoder_exactness as encoders
import test_exactness as decoders
from tiny import save_tiny

from gistlm.engines.base import Request, with_sampling
from gistlm.engines.sampling import Sampling
from gistlm.engines.transformers import GistModel
from gistlm.models.catalog import load_checkpoint
from gistlm.models.checkpoint import Checkpoint, CheckpointOptions

OUTPUT = "an answer"
SAMPLING = Sampling(max_new_tokens=8)
TOLERANCE = 1e-3
"""Of float32 logits: a GPU sums in another order."""
ROUNDED = 0.25
"""Most that bfloat16 logits may be away from those of the CPU, in standard deviations, on average over a case."""
CASES = [
    ("llama", "frozen", True, 0), ("llama", "paper", False, 0), ("llama", "frozen", True, decoders.KEPT),
    ("qwen3", "frozen", False, 0), ("mistral", "frozen", True, 0), ("gemma3_text", "frozen", True, 0),
    ("gpt_neox", "frozen", True, decoders.KEPT), ("gpt2", "frozen", True, 0), ("phi3", "paper", True, 0),
    ("t5", "frozen", False, 0), ("umt5", "paper", False, 0),
]  # fmt: skip


def main() -> None:
    """Every case in both dtypes, then the memory."""
    options = arguments()
    device = find_card(options, gib=8)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    rows = []
    for case in CASES[:: 4 if options.cpu else 1]:
        for dtype in (torch.float32, torch.bfloat16):
            rows.append(measure(case, dtype, device, options))
    memory = peak_of_compression(device, options)
    write_figures(options, device, {"cases": rows, "compression_peak_bytes": memory})
    show(rows, memory)
    wrong = [row for row in rows if not row["passed"]]
    if wrong:
        sys.exit(f"exactness.py: {len(wrong)} of {len(rows)} cases are not exact; the first is {wrong[0]['case']}")


def measure(case: tuple[str, str, bool, int], dtype: torch.dtype, device: torch.device, options: Any) -> dict[str, Any]:
    """One checkpoint, in one dtype: its worst difference, and whether all that was checked is right."""
    kind, recipe, opening, kept = case
    encodes = kind in encoders.ENCODER_DECODERS
    host, one_pass = encoders.loaded(kind, recipe) if encodes else decoders.loaded(kind, recipe, opening, kept)
    generator = torch.Generator().manual_seed(options.seed)
    errors, answers, finite = [], 0, True
    with on_card(host, kind, dtype, device) as model, on_card(host, kind, dtype, torch.device("cpu")) as again:
        for _ in range(2 if options.cpu else options.batches):
            if encodes:
                requests, prompts = encoders.random_requests(model, generator)
            else:
                requests, prompts = decoders.random_requests(model, kind, generator)
            found = [logits.float().cpu() for logits in model.logits(requests, [OUTPUT] * len(requests))]
            wanted = reference(one_pass, again, requests, prompts, dtype, encodes)
            finite &= all(bool(logits.isfinite().all()) for logits in found)
            errors += [difference(one, other, dtype) for one, other in zip(found, wanted, strict=True)]
            answers += other_answers(model, again, requests) if dtype == torch.float32 else 0
        score = float(model.score("hi", OUTPUT, model.compress("be brief and kind", 3)).sum())
    worst, mean = max(errors), sum(errors) / len(errors)
    exact = worst < TOLERANCE and answers == 0 if dtype == torch.float32 else mean < ROUNDED
    return {
        "case": f"{kind} {recipe}{', kept tokens' if kept else ''}{', opening hidden' if not opening else ''}",
        "dtype": str(dtype).removeprefix("torch."),
        "worst": worst,
        "mean": mean,
        "other_answers": answers,
        "finite": finite,
        "passed": exact and finite and math.isfinite(score),
    }


@contextmanager
def on_card(host: GistModel, kind: str, dtype: torch.dtype, device: torch.device) -> Iterator[GistModel]:
    """The same checkpoint, written and loaded again on a device and in a dtype, as a user's is."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = host.checkpoint.config
        base = config.bases[0].replace(base=str(save_tiny(folder / "base", kind)))
        host.checkpoint.config = config.replace(bases=[base])
        host.checkpoint.save_pretrained(folder / "checkpoint")
        model = GistModel(load_checkpoint(str(folder / "checkpoint"), None, str(device), dtype), batch_size=16)
        model.checkpoint.prompts.decode = host.checkpoint.prompts.decode  # numbers: equal texts are equal tokens
        yield model


def reference(
    one_pass: Any, again: GistModel, requests: list[Request], rows: list[Any], dtype: torch.dtype, encodes: bool
) -> list[torch.Tensor]:
    """The outputs' logits of every request: of one pass under the mask, or in bfloat16 of the same code on the CPU.

    rows: what the tests' own `random_requests` says of the requests, prompts for an encoder.
    """
    if dtype != torch.float32:
        return [logits.float() for logits in again.logits(requests, [OUTPUT] * len(requests))]
    ids = again.checkpoint.prompts.output_ids(OUTPUT)
    if encodes:
        states = [one_pass.states(request, prompt) for request, prompt in zip(requests, rows, strict=True)]
        return [one_pass.logits(state, ids) for state in states]
    longer = copy.deepcopy(rows)
    for row in longer:
        row.rest += ids
    return [logits[-len(ids) - 1 : -1] for logits in one_pass.logits(longer, "right")]


def difference(found: torch.Tensor, wanted: torch.Tensor, dtype: torch.dtype) -> float:
    """Of logits [tokens, vocabulary]: the largest in float32, else the mean in standard deviations."""
    apart = (found - wanted).abs()
    return float(apart.max() if dtype == torch.float32 else apart.mean() / wanted.std())


def other_answers(model: GistModel, again: GistModel, requests: list[Request]) -> int:
    """How many greedy answers are not those of the CPU, and whether the first is streamed otherwise."""
    pairs = zip(
        model.complete(with_sampling(requests, SAMPLING)),
        again.complete(with_sampling(requests, SAMPLING)),
        strict=True,
    )
    first = requests[0]
    streamed = "".join(
        model.stream(first.input, first.gist, prompt=first.prompt, max_new_tokens=SAMPLING.max_new_tokens)
    )
    alone = model.generate([first.input], [first.gist], prompts=[first.prompt], max_new_tokens=SAMPLING.max_new_tokens)
    return sum(mine.text != theirs.text for mine, theirs in pairs) + (streamed != alone[0])


def peak_of_compression(device: torch.device, options: Any) -> int | None:
    """Bytes that compressing 64 prompts of 2,000 tokens takes on the GPU, a tiny Llama in bfloat16."""
    rows, tokens = (2, 100) if options.cpu else (64, 2000)
    host, _ = decoders.loaded("llama", "frozen", True, decoders.KEPT)
    with tempfile.TemporaryDirectory() as name:
        base = save_tiny(Path(name) / "base", max_position_embeddings=4096, hidden_size=512, num_hidden_layers=8)
        made_of = CheckpointOptions(host.checkpoint.config.recipe, max_k=16, kept=decoders.KEPT, lora_rank=4)
        model = GistModel(Checkpoint.create(str(base), made_of, str(device), torch.bfloat16))
    return peak_bytes(device, lambda: model.compress(["x" * tokens] * rows, 16))


def show(rows: list[dict[str, Any]], memory: int | None) -> None:
    """A row for each case and dtype."""
    table = Table("case", "dtype", "worst", "mean", "other answers", "finite", "passed", box=box.MARKDOWN)
    for row in rows:
        numbers = (f"{row['worst']:.1e}", f"{row['mean']:.1e}", str(row["other_answers"]))
        table.add_row(
            row["case"], row["dtype"], *numbers, *("yes" if row[key] else "NO" for key in ("finite", "passed"))
        )
    console = Console(width=120)
    console.print(table)
    if memory is not None:
        console.print(f"compressing 64 prompts of 2,000 tokens took {memory / 1e9:.2f} GB above the model")


def arguments() -> Any:
    """The command line."""
    made = parser(__doc__)
    made.add_argument("--batches", type=int, default=8, help="random batches of each case and dtype")
    return made.parse_args()


if __name__ == "__main__":
    main()
