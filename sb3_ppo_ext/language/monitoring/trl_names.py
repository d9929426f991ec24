"""The names that TRL's PPOTrainer (until 1.12, its last) logged under, for those who compare runs with it."""

from __future__ import annotations

import time
from collections.abc import Mapping

from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from torch import Tensor

from sb3_ppo_ext.language.policies.language_model import LanguageModelPolicy
from sb3_ppo_ext.language.training.trl_statistics import MINIBATCH_STATISTICS

# Where theirs is ours by another name, possibly times a number: their value loss has a factor 1/2.
ALIASES = {
    "objective/kl": ("lm/kl_ref", 1.0),
    "objective/rlhf_reward": ("lm/rlhf_reward", 1.0),
    "objective/scores": ("lm/score", 1.0),
    "policy/entropy_avg": ("train/entropy_loss", -1.0),
    "loss/policy_avg": ("train/policy_gradient_loss", 1.0),
    "loss/value_avg": ("train/value_loss", 0.5),
    "lr": ("train/learning_rate", 1.0),
}


class TRLNames(BaseCallback):
    """Logs an update a second time under TRL's names: ``objective/kl``, ``policy/approxkl_avg``, ``val/ratio``, ...

    ``model.learn(..., callback=TRLNames())``. In TensorBoard and files; not in the table on the terminal. The
    quantities are TRL's, without the padding that it counts in ``approxkl``, ``entropy`` and ``ratio``. ``episode``
    counts responses, ``eps`` is how many of them per second.
    """

    def _on_training_start(self) -> None:
        self.started, self.before = time.perf_counter(), self.num_timesteps

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        self._record()

    def _on_training_end(self) -> None:
        self._record()

    def _record(self) -> None:
        """What the update that is over has left in the logger, which is not written yet."""
        logged, policy = self.logger.name_to_value, self.model.policy
        if not isinstance(policy, LanguageModelPolicy):
            raise ValueError(f"TRLNames is for a LanguageModelPolicy; this is a {type(policy).__name__}")
        if "lm/score" not in logged:
            return
        seconds = max(time.perf_counter() - self.started, 1e-9)
        records = trl_records(logged, policy.minibatch_statistics)
        assert isinstance(self.model, OnPolicyAlgorithm)
        records["val/num_eos_tokens"] = round(logged["lm/eos_rate"] * self.model.n_steps * self.model.n_envs)
        records |= {"episode": self.num_timesteps, "eps": (self.num_timesteps - self.before) / seconds}
        for name, value in records.items():
            self.logger.record(name, value, exclude="stdout")


def trl_records(logged: Mapping[str, float], minibatches: Tensor) -> dict[str, float]:
    """TRL's name -> value, of what is logged under ours and of the statistics of the update's minibatches [M, K]."""
    records = {name: factor * logged[own] for name, (own, factor) in ALIASES.items() if own in logged}
    records["objective/entropy"] = logged["lm/entropy_sampled"] * logged["lm/response_length"]
    if "lm/rlhf_reward" in logged:
        records["objective/non_score_reward"] = logged["lm/rlhf_reward"] - logged["lm/score"]
    column = dict(zip(MINIBATCH_STATISTICS, minibatches.double().cpu().unbind(dim=1), strict=True))
    ratio = column["ratio_mean"]
    return records | {
        "policy/approxkl_avg": column["k2"].mean().item(),
        "policy/clipfrac_avg": column["policy_clipped"].mean().item(),
        "val/clipfrac_avg": column["value_clipped"].mean().item(),
        "val/ratio": ratio.mean().item(),
        "val/ratio_var": ratio.var().item() if len(ratio) > 1 else 0.0,
    }
