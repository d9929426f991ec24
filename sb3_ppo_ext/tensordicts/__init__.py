"""Rollouts as TensorDicts under TorchRL's default keys, and back."""

from sb3_ppo_ext.optional_packages import require_packages

require_packages("sb3_ppo_ext.tensordicts", '"sb3_ppo_ext[torchrl]"', "tensordict")

from sb3_ppo_ext.tensordicts.rollouts import rollout_to_tensordict, tensordict_to_rollout  # noqa: E402

__all__ = ["rollout_to_tensordict", "tensordict_to_rollout"]
