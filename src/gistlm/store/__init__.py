"""Where gists are kept: one seam (`store`) and the stores behind it, found by the form of their location."""

from gistlm.store.store import Store, open_store, request_name

__all__ = ["Store", "open_store", "request_name"]
