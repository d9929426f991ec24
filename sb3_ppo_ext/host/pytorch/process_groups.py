"""What is assumed of the insides of ``torch.distributed``: the stores of the default group and of torchrun."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any

from torch import distributed as dist


def store_under(prefix: str) -> Any:
    """The store by which the processes of the default group have found each other, for keys with a prefix."""
    store = dist.distributed_c10d._get_default_store()
    return vars(dist)["PrefixStore"](prefix, store)


def restarted(timeout: timedelta) -> dict[str, Any]:
    """Arguments of ``init_process_group`` for processes that torchrun has started again on one machine.

    Its store is that of the first start, with the addresses of processes that have ended, so keys need a prefix. On
    several machines the count of restarts may differ between them; ``TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1`` in
    torchrun's environment gives every start a store of its own there.
    """
    count = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    one_machine = os.environ.get("GROUP_WORLD_SIZE") == "1"
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True" or count == "0" or not one_machine:
        return {}
    address, port, rank, size = _place()
    store = vars(dist)["TCPStore"](address, port, size, False, timeout)
    return {"store": vars(dist)["PrefixStore"](f"restart {count}", store), "rank": rank, "world_size": size}


def met(within: timedelta, timeout: timedelta) -> dict[str, Any]:
    """Arguments of ``init_process_group`` for processes that keep their store themselves; all come ``within`` a time.

    ``TimeoutError`` where some do not. ``init_process_group`` would wait for them for the ``timeout`` of collectives.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":  # torchrun starts all of them
        return restarted(timeout)
    address, port, rank, size = _place()
    try:
        store = vars(dist)["TCPStore"](address, port, size, rank == 0, within, multi_tenant=True)
    except dist.DistStoreError as error:
        raise TimeoutError(str(error)) from error
    store.set_timeout(timeout)
    return {"store": store, "rank": rank, "world_size": size}


def _place() -> tuple[str, int, int, int]:
    address, *numbers = (os.environ[name] for name in ("MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE"))
    port, rank, size = map(int, numbers)
    return address, port, rank, size
