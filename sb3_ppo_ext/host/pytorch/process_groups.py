"""What is assumed of the insides of ``torch.distributed``: the store of the default group."""

from __future__ import annotations

from typing import Any

from torch import distributed as dist


def store_under(prefix: str) -> Any:
    """The store by which the processes of the default group have found each other, for keys with a prefix."""
    store = dist.distributed_c10d._get_default_store()
    return vars(dist)["PrefixStore"](prefix, store)
