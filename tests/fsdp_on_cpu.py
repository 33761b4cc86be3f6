"""`gistlm` in a launch with FSDP on the CPU, where two processes are taken for GPUs: accelerate has FSDP for these."""

from __future__ import annotations

from typing import Any

from accelerate.state import PartialState
from accelerate.utils import DistributedType

from gistlm.cli import main

_init = PartialState.__init__


def _as_gpus(self: PartialState, *args: Any, **options: Any) -> None:
    _init(self, *args, **options)
    if self._shared_state["distributed_type"] == DistributedType.MULTI_CPU:
        self._shared_state["distributed_type"] = DistributedType.MULTI_GPU


if __name__ == "__main__":
    PartialState.__init__ = _as_gpus  # type: ignore[method-assign]
    main()
