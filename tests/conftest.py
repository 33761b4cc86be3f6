"""What holds for every test: no network, no user's files, one thread, fixed seeds; knows no model."""

# ruff: noqa: E402 -- the environment must be set before anything reads it
import os
import shutil
import tempfile
from pathlib import Path

WORKER = "PYTEST_XDIST_WORKER" in os.environ
HOME = Path(os.environ["GISTLM_HOME"] if WORKER else tempfile.mkdtemp(prefix="gistlm-tests-"))
os.environ.update(
    GISTLM_HOME=str(HOME),  # one for the whole run and its workers: the default model is converted once
    HF_HOME=str(HOME / "huggingface"),
    TORCHINDUCTOR_CACHE_DIR=str(HOME / "inductor"),
    HF_HUB_OFFLINE="1",
    TRANSFORMERS_OFFLINE="1",
    HF_DATASETS_OFFLINE="1",
    TOKENIZERS_PARALLELISM="false",
)
os.environ.setdefault("OMP_NUM_THREADS", "1")

import gc
import ipaddress
import random
import signal
import socket
from collections.abc import Callable
from typing import Any

import hypothesis
import numpy as np
import pytest
import torch

hypothesis.settings.register_profile("gistlm", deadline=None, derandomize=True)
hypothesis.settings.load_profile("gistlm")
gc.set_threshold(20_000)
torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell that starts us in the background ignores it


class NetworkBlockedError(RuntimeError):
    """A test tried to leave this machine; no OSError, so that no library takes it for a lost connection."""


def _refuse_remote(host: str | bytes | None) -> None:
    name = host.decode() if isinstance(host, bytes) else host
    if name in (None, "", "localhost"):
        return
    try:
        local = ipaddress.ip_address(name).is_loopback
    except ValueError:
        local = False
    if not local:
        raise NetworkBlockedError(f"a test tried to reach {name!r}; tests may only reach this machine")


def _guarded_connect(connect: Callable[..., Any]) -> Callable[..., Any]:
    def guarded(self: socket.socket, address: Any) -> Any:
        if isinstance(address, tuple):  # a Unix socket's address is a path
            _refuse_remote(address[0])
        return connect(self, address)

    return guarded


def _guarded_lookup(lookup: Callable[..., Any]) -> Callable[..., Any]:
    def guarded(host: str | bytes | None, *args: Any, **kwargs: Any) -> Any:
        _refuse_remote(host)
        return lookup(host, *args, **kwargs)

    return guarded


socket.socket.connect = _guarded_connect(socket.socket.connect)
socket.socket.connect_ex = _guarded_connect(socket.socket.connect_ex)
socket.getaddrinfo = _guarded_lookup(socket.getaddrinfo)


SLOWEST = ("test_distributed", "test_benchmarks", "test_default_model", "test_encoder_exactness")
"""Modules that take longest: they come first, so that no worker is left with one when the others have finished."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: SLOWEST.index(item.path.stem) if item.path.stem in SLOWEST else len(SLOWEST))


def pytest_collection_finish() -> None:
    gc.freeze()  # what imports and collection have made stays: it need not be looked through at every collection


def pytest_unconfigure() -> None:
    if not WORKER:
        shutil.rmtree(HOME, ignore_errors=True)


@pytest.fixture(scope="session")
def gistlm_home() -> Path:
    """Where gistlm keeps its files during this test run, shared by all tests."""
    return HOME


@pytest.fixture(autouse=True)
def _fixed_seeds() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
