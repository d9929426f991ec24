"""Rollouts as TensorDicts under TorchRL's default keys, and back."""

from importlib.util import find_spec

if find_spec("tensordict") is None:
    raise ImportError(
        "sb3_ppo_ext.tensordicts needs tensordict, which cannot be found. Install with\n"
        '  pip install "sb3_ppo_ext[torchrl]"'
    )

from sb3_ppo_ext.tensordicts.rollouts import rollout_to_tensordict, tensordict_to_rollout

__all__ = ["rollout_to_tensordict", "tensordict_to_rollout"]
