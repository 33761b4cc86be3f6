"""Small gists, and real processes that write them and may be killed; knows no model."""

from __future__ import annotations

import multiprocessing
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import count as count_up
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from gistlm.gist import Gist
from gistlm.gist_file import Provenance
from gistlm.store.disk import DiskStore

_CONTEXT = multiprocessing.get_context("forkserver")  # imports torch once, not once a process
_CONTEXT.set_forkserver_preload(["__main__", "gistlm.store.disk"])


def make_info(**changes: Any) -> Provenance:
    """Where a made-up gist comes from."""
    made_up = {"model": "5eed" * 16, "adapter": "ada0" * 16, "base": "tiny", "prompt_sha256": "ab12" * 16}
    return Provenance(**{**made_up, "prompt_tokens": 30, "start": 3, **changes})


def make_gist(
    seed: int = 0, *, k: int = 2, layers: int = 2, width: int = 4, dtype: torch.dtype = torch.float32, **provenance: Any
) -> Gist:
    """A gist of random numbers [2, k, width] a layer, the same for the same arguments."""
    generator = torch.Generator().manual_seed(seed)
    tensors = [torch.randn(2, k, width, generator=generator).to(dtype) for _ in range(2 * layers)]
    return Gist(tuple(tensors[:layers]), tuple(tensors[layers:]), make_info(**provenance))


def _raw(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().contiguous().view(torch.uint8)


def same(one: Gist, other: Gist) -> bool:
    """Whether two gists are equal in every bit."""
    pairs = zip((*one.keys, *one.values), (*other.keys, *other.values), strict=True)
    return one.provenance == other.provenance and all(
        a.dtype == b.dtype and a.shape == b.shape and torch.equal(_raw(a), _raw(b)) for a, b in pairs
    )


def files_below(folder: Path) -> list[str]:
    """Every file in a folder and its subfolders, hidden ones included, by its path inside."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir())


def run_together(target: Callable[..., None], argument_lists: list[tuple[Any, ...]]) -> list[int | None]:
    """Run one process per argument list, all at once; returns their exit codes."""
    processes = [_CONTEXT.Process(target=target, args=arguments) for arguments in argument_lists]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    return [process.exitcode for process in processes]


@contextmanager
def killed_at(moment: Callable[[], object], target: Callable[..., None], *arguments: Any) -> Iterator[None]:
    """Run a process; once it has shown a sign of life and ``moment`` returns, SIGKILL it; then enter the block."""
    ours, theirs = _CONTEXT.Pipe(duplex=False)
    process: BaseProcess = _CONTEXT.Process(target=target, args=(theirs, *arguments), daemon=True)
    process.start()
    theirs.close()
    try:
        assert ours.poll(200), "the writer never began"
        moment()
    finally:
        process.kill()
        process.join()
        ours.close()
    yield


def moments_of_a_save(folder: Path, count: int) -> list[Callable[[], object]]:
    """Moments to kill a writer at: every second one random, the others as soon as a temporary file is in sight."""
    numbers = random.Random(0)

    def temporary_in_sight() -> None:
        known, deadline = set(folder.rglob(".*")), time.monotonic() + 30
        while not set(folder.rglob(".*")) - known:
            assert time.monotonic() < deadline, "the writer makes no temporary file"

    delays = [numbers.uniform(0, 0.03) for _ in range(count // 2)]
    return [moment for delay in delays for moment in (partial(time.sleep, delay), temporary_in_sight)]


def save_in_turn(alive: Connection, path: Path, seeds: list[int], width: int) -> None:
    """Save one gist after the other at ``path`` for ever; says so once, after the first."""
    gists = [make_gist(seed, width=width) for seed in seeds]
    for turn in count_up():
        gists[turn % len(gists)].save(path)
        if turn == 0:
            alive.send(True)


def put_in_turn(alive: Connection, folder: Path, name: str, seeds: list[int], width: int) -> None:
    """Put one gist after the other under one name for ever; says so once, after the first."""
    store = DiskStore(folder)
    gists = [make_gist(seed, width=width) for seed in seeds]
    for turn in count_up():
        store.put(gists[turn % len(gists)], name)
        if turn == 0:
            alive.send(True)


def put_many(folder: Path, seeds: list[int], shared: str) -> None:
    """Put gists, each under its own name and under a name that other processes use as well."""
    store = DiskStore(folder)
    for seed in seeds:
        gist = make_gist(seed)
        store.put(gist, f"seed-{seed}")
        store.put(gist, shared)
        read = store.get(shared)
        assert read is not None and read.id in set(store)


def put_bounded(folder: Path, seeds: list[int], max_bytes: int) -> None:
    """Put gists in a store of at most so many bytes, which other processes fill as well."""
    store = DiskStore(folder, max_bytes)
    for seed in seeds:
        store.put(make_gist(seed), "shared")
        read = store.get("shared")  # may have been let go for others' gists
        assert read is None or read.k == 2
