"""Rollouts as TensorDicts under TorchRL's default keys, and back."""

from sb3_ppo_ext.tensordicts.rollouts import rollout_to_tensordict, tensordict_to_rollout

__all__ = ["rollout_to_tensordict", "tensordict_to_rollout"]
