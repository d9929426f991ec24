"""SBX's PPO in an interpreter of its own, which takes its turns on request: a line in, a line of JSON out.

Started by ``speed.py``, with the environment's id, the number of environments and PPO's arguments as JSON.
"""

from __future__ import annotations

import json
import sys
import warnings
from typing import Any

from tests.benchmarks.measuring import one_rollout


def main() -> None:
    """Builds the model, says that it is ready, and learns from one rollout for every line it reads."""
    replies, sys.stdout = sys.stdout, sys.stderr  # whatever else prints shall not be taken for a reply
    warnings.simplefilter("ignore")
    import torch
    from sbx import PPO
    from stable_baselines3.common.env_util import make_vec_env

    order: dict[str, Any] = json.loads(sys.argv[1])
    torch.set_num_threads(order["threads"])
    turn = one_rollout(PPO("MlpPolicy", make_vec_env(order["task"], order["n_envs"], seed=0), **order["arguments"]))
    print(json.dumps("ready"), file=replies, flush=True)
    for _ in sys.stdin:
        print(json.dumps(turn()), file=replies, flush=True)


if __name__ == "__main__":
    main()
