"""What every store does, as a random test against a dict; knows no store."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from gists import make_gist
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from gistlm.gist import Gist
from gistlm.store.store import Store

GISTS = [make_gist(seed) for seed in range(4)]
NAMES = ["a", "b", "request-1"]

_gists = st.sampled_from(GISTS)
_names = st.sampled_from(NAMES)


class StoreAgainstDict(RuleBasedStateMachine):
    """Random puts, gets and deletes on a store and on two dicts, ids to gists and names to ids."""

    make: Callable[[], Any]
    """A new, empty store."""
    reopen: Callable[[Any], Any]
    """The store opened anew, holding what was put before."""

    def __init__(self) -> None:
        super().__init__()
        self.store = type(self).make()
        self.gists: dict[str, Gist] = {}
        self.names: dict[str, str] = {}

    @rule(gist=_gists, name=st.none() | _names)
    def put(self, gist: Gist, name: str | None) -> None:
        assert self.store.put(gist, name) == gist.id
        self.gists[gist.id] = gist
        if name is not None:
            self.names[name] = gist.id

    @rule(name=_names)
    def delete_name(self, name: str) -> None:
        found = name in self.names
        assert self.store.delete(name) == found
        self.names.pop(name, None)

    @rule(gist=_gists)
    def delete_gist(self, gist: Gist) -> None:
        assert self.store.delete(gist.id) == (self.gists.pop(gist.id, None) is not None)
        for name in [name for name, key in self.names.items() if key == gist.id]:
            assert self.store.get(name) is None and name not in self.store
            self.store.delete(name)  # whether a pointer to nothing is still there is each store's affair
            del self.names[name]

    @rule()
    def open_again(self) -> None:
        self.store.close()
        self.store = type(self).reopen(self.store)

    @invariant()
    def holds_what_the_dicts_hold(self) -> None:
        assert sorted(self.store) == sorted(self.gists)
        assert len(self.store) == len(self.gists)
        for key, expected in [(gist.id, self.gists.get(gist.id)) for gist in GISTS] + [
            (name, self.gists.get(self.names.get(name, ""))) for name in NAMES
        ]:
            found = self.store.get(key)
            assert (found and found.id) == (expected and expected.id)
            assert (key in self.store) == (expected is not None)


def check_against_dict(make: Callable[[], Any], reopen: Callable[[Any], Any] | None, examples: int) -> None:
    """Run `StoreAgainstDict` on new stores; without ``reopen`` they are never closed."""
    parts: dict[str, Any] = {"make": staticmethod(make)}
    parts |= {"reopen": staticmethod(reopen)} if reopen else {"open_again": None}
    machine = type("Machine", (StoreAgainstDict,), parts)
    run_state_machine_as_test(machine, settings=settings(max_examples=examples, stateful_step_count=15, deadline=None))


def check_refuses(store: Store, key: str, error: type[Exception]) -> None:
    """Every method that takes a key refuses this one."""
    for method in (store.get, store.delete, store.__contains__, lambda name: store.put(GISTS[0], name)):
        with pytest.raises(error):
            method(key)
