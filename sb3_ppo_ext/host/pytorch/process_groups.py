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
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    store = vars(dist)["TCPStore"](address, port, size, False, timeout)
    return {"store": vars(dist)["PrefixStore"](f"restart {count}", store), "rank": rank, "world_size": size}
