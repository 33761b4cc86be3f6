"""Trains the shipped checkpoint further on a GPU, as `train.yaml` says, for as many minutes as there are.

    python benchmarks/gpu/train.py --minutes 8 --calls 2 --json train.json
        all the minutes; needs the parts that `prepare.py` made, carried to --work before

The first call tries a few steps and plans as many as fit into the minutes of all calls, over which the learning rates
fall to zero; the next ones go on with the run in --work. At its end every call writes the checkpoint to --out; on
another GPU, `--start` goes on from it, with new moments of Adam and a new plan.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import math
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch
from card import FOLDER, PARTS, ROOT, find_card, need_files, parser, write_figures
from rich import box
from rich.console import Console
from rich.table import Table
from transformers import TrainerCallback

sys.path.insert(0, str(ROOT / "tests"))

from tiny import save_tiny

from gistlm.errors import GistlmError, InputError
from gistlm.files import check_target, read_json, write_atomically
from gistlm.models.catalog import find_checkpoint
from gistlm.models.config import CONFIG
from gistlm.training.config import TrainConfig, read_config
from gistlm.training.loop import train
from gistlm.training.start import create_checkpoint
from gistlm.training.tokenized import Texts, Tokenized

TRIED, WARMING = 40, 5
"""Steps that a plan is made from, and those of them that are not timed."""
PLANNED = 0.85
"""Of the time that is left; the rest is for validations and for later calls' loading."""
RESERVE = 40
"""Seconds of a call for the last validation and for writing."""


def main() -> None:
    """The script, with mistakes as sentences."""
    options = arguments()
    try:
        run(options)
    except GistlmError as error:
        sys.exit(f"train.py: {error}")
    except torch.OutOfMemoryError:
        sys.exit("train.py: the GPU's memory is too small for a step; give fewer rows of a step with --batch")


def run(options: Any) -> None:
    """Unpack, plan, train, show."""
    began = time.monotonic()
    device = find_card(options, gib=60)
    check(options)
    if options.cpu:
        options.minutes, options.reserve, options.work = 0.1, 0, Path(tempfile.mkdtemp())
        config, tokens = tiny_run(options.work)
    else:
        unpack(options.work)
        config = read_config(FOLDER / "train.yaml").replace(start=options.start, output=str(options.work / "run"))
        tokens = Tokenized.load(options.work / "rows.safetensors")
    config = config.replace(batch_size=options.batch or config.batch_size)
    config, plan = planned(config, tokens, options, began)
    clock = Clock(began + 60 * options.minutes - options.reserve)
    folder = train(config, [clock], tokens)
    figures = {"plan": plan, **measured(folder, clock, device)}
    copy_checkpoint(folder, options.out)
    write_figures(options, device, figures)
    show(figures)


def arguments() -> Any:
    """The command line."""
    made = parser(__doc__)
    made.add_argument("--minutes", type=float, default=8.0, help="of this call, loading included")
    made.add_argument("--calls", type=int, default=1, help="calls like this one that the run is planned for")
    made.add_argument("--batch", type=int, help="rows of a step; train.yaml's by default")
    made.add_argument("--start", default="smollm2-135m", help="checkpoint to go on from; the shipped one by default")
    made.add_argument("--work", type=Path, default=Path("/tmp/gistlm-card"), help="folder with the parts and the run")
    made.add_argument("--out", type=Path, default=Path("runs/card"), help="folder for the checkpoint")
    made.set_defaults(reserve=RESERVE)
    return made.parse_args()


def check(options: Any) -> None:
    """Raise `GistlmError` for what would fail after minutes."""
    if options.batch is not None and options.batch < 1:
        raise InputError(f"--batch must be 1 or more, got {options.batch}")
    if find_checkpoint(options.start) is None:  # a hub's, which cannot be reached
        raise InputError(f"--start: there is no folder {options.start}; carry it, or name a shipped checkpoint")
    check_target(options.out / CONFIG)


def unpack(work: Path) -> None:
    """Rows and wheels out of the parts, once. Ends the script with a sentence where a part is missing or damaged."""
    need_files([PARTS], "carry it, as benchmarks/gpu/README.md says; prepare.py makes it")
    sums, done = read_sums(), work / "unpacked"
    if not done.exists() or done.read_bytes() != PARTS.read_bytes():
        need_files(
            [work / name for name in sums], "carry each part and copy it there, as benchmarks/gpu/README.md says"
        )
        parts = [(work / name).read_bytes() for name in sums]
        for (name, digest), part in zip(sums.items(), parts, strict=True):
            if hashlib.sha256(part).hexdigest() != digest:
                sys.exit(f"train.py: {work / name} is not what prepare.py made; carry it again")
        with tarfile.open(fileobj=io.BytesIO(b"".join(parts))) as tar:
            tar.extractall(work, filter="data")
            wheels = [str(work / name) for name in tar.getnames() if name.endswith(".whl")]
        if wheels:
            install(wheels, work / "site")
        done.write_bytes(PARTS.read_bytes())
    sys.path.insert(0, str(work / "site"))


def read_sums() -> dict[str, str]:
    """The parts' SHA-256 by name."""
    try:
        return {str(name): str(digest) for name, digest in read_json(PARTS).items()}
    except (OSError, ValueError):
        sys.exit(f"train.py: {PARTS} is damaged; carry it again")


def install(wheels: list[str], site: Path) -> None:
    """Put packages into a folder, without a network."""
    offline = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--upgrade"]
    if subprocess.run([*offline, "--target", str(site), *wheels]).returncode:
        sys.exit(f"train.py: pip cannot install {', '.join(Path(wheel).name for wheel in wheels)}, as said above")


def planned(config: TrainConfig, tokens: Tokenized, options: Any, began: float) -> tuple[TrainConfig, dict[str, Any]]:
    """The recipe with its number of steps: of the plan in --work, or of one from the time that some steps take."""
    path = options.work / "plan.json"
    given = {"batch": config.batch_size, "minutes": options.minutes, "calls": options.calls}
    plan: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    if any(plan.get(name) != value for name, value in given.items()):
        if plan and any((options.work / "run" / "run").glob("checkpoint-*")):
            was = " ".join(f"--{name} {plan.get(name)}" for name in given)
            raise InputError(
                f"the run in {options.work} was planned with {was}; give the same, or for a new plan move "
                f"{options.work / 'run'} elsewhere and name it with --start"
            )
        plan = {**given, **measure_steps(config, tokens, options, began)}
        write_atomically(path, (json.dumps(plan) + "\n").encode())
    return config.replace(steps=plan["steps"]), plan


def measure_steps(config: TrainConfig, tokens: Tokenized, options: Any, began: float) -> dict[str, Any]:
    """How many steps fit into all calls, by the time that some take."""
    clock, tried = Clock(math.inf), options.work / "tried"
    shutil.rmtree(tried, ignore_errors=True)  # of a call that was cut off: it would go on with that
    trial = config.replace(output=str(tried), steps=TRIED, save_every=TRIED)
    train(trial, [clock], tokens._replace(validation=tokens.validation.of([])))
    examples = tokens.training.examples
    tokens_per_step = config.batch_size * sum(example.tokens for example in examples) / len(examples)
    speed = clock.tokens_per_second(WARMING)
    assert speed is not None
    seconds = tokens_per_step / speed
    left = options.calls * (60 * options.minutes - options.reserve) - (time.monotonic() - began)
    return {"steps": max(TRIED, int(PLANNED * left / seconds)), "seconds_per_step": seconds}


class Clock(TrainerCallback):
    """Takes the time of every step, and ends the run with a save when its time is up."""

    def __init__(self, end: float) -> None:
        self.end = end
        self.seen: list[tuple[float, int]] = []
        """Time and tokens at the beginning and after every step."""

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Trainer's hook."""
        self.seen.append((time.monotonic(), model.tokens))

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """Trainer's hook."""
        now = time.monotonic()
        self.seen.append((now, model.tokens))
        if now >= self.end:
            control.should_save = control.should_training_stop = True

    def tokens_per_second(self, skipped: int = 0) -> float | None:
        """Over all steps but the first ones; None where there are no more."""
        if len(self.seen) <= skipped + 1:
            return None
        (begin, before), (end, after) = self.seen[skipped], self.seen[-1]
        return (after - before) / (end - begin)

    @property
    def seconds(self) -> list[float]:
        """Of every step."""
        return [after - before for (before, _), (after, _) in itertools.pairwise(self.seen)]


def measured(folder: Path, clock: Clock, device: torch.device) -> dict[str, Any]:
    """What the call did, from the run's figures and the clock."""
    run = json.loads((folder / "training.json").read_text())
    return {
        "steps": len(run["losses"]),
        "steps_of_this_call": len(clock.seconds),
        "seconds_per_step": median(clock.seconds) if clock.seconds else None,
        "tokens": run["tokens"],
        "tokens_per_second": clock.tokens_per_second(),
        "loss_first_and_last": [mean(run["losses"][:20]), mean(run["losses"][-20:])],
        "validation": run["validation"],
        "peak_bytes": torch.cuda.max_memory_allocated() if device.type == "cuda" else None,
    }


def copy_checkpoint(folder: Path, out: Path) -> None:
    """The checkpoint's own files, without the run's saves."""
    out.mkdir(parents=True, exist_ok=True)
    for path in folder.iterdir():
        if path.is_file():
            (out / path.name).write_bytes(path.read_bytes())


def tiny_run(work: Path) -> tuple[TrainConfig, Tokenized]:
    """A run that a CPU ends in seconds, on rows from disk as on a GPU."""
    rows = work / "rows.jsonl"
    texts = [f"Write about the number {number} as often as you can" for number in range(24)]
    rows.write_text(
        "".join(json.dumps({"prompt": text, "input": "now?", "output": "at once"}) + "\n" for text in texts)
    )
    config = read_config(FOLDER / "train.yaml", {"data": [{"path": str(rows)}], "exclude": None}).replace(
        base=str(save_tiny(work / "base", "llama")),
        start=None,
        output=str(work / "run"),
        lora_rank=4,
        max_k=8,
        k=[1, 8],
        kept=7,
        batch_size=4,
        validation_rows=4,
    )
    prompts = create_checkpoint(config).prompts
    Texts.read(config).tokenize(config, prompts).save(work / "rows.safetensors")
    return config, Tokenized.load(work / "rows.safetensors")


def show(figures: dict[str, Any]) -> None:
    """The call in one row, and the held-out rows under it."""
    table = Table(box=box.MARKDOWN)
    for name in ("steps", "tokens", "tokens/s", "s a step", "loss, first and last", "KL gap closed"):
        table.add_column(name, no_wrap=True)
    last = figures["validation"][-1] if figures["validation"] else {}
    closed = [f"{name} {value['kl_gap_closed']:.1%}" for name, value in last.items() if name.startswith("k=")]
    table.add_row(
        f"{figures['steps']:,} of {figures['plan']['steps']:,}",
        f"{figures['tokens']:,}",
        f"{figures['tokens_per_second']:,.0f}" if figures["tokens_per_second"] else "",
        f"{figures['seconds_per_step']:.3f}" if figures["seconds_per_step"] else "",
        " ".join(f"{loss:.3f}" for loss in figures["loss_first_and_last"]),
        ", ".join(closed),
    )
    Console(width=160).print(table)


if __name__ == "__main__":
    main()
