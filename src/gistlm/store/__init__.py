"""Stores of gists: their interface (`store`) and its implementations, chosen by the form of a location."""

from gistlm.store.store import Store, open_store, request_name

__all__ = ["Store", "open_store", "request_name"]
