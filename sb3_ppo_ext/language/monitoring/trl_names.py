"""The names under which TRL's PPOTrainer (1.12 was its last) logged, for comparing runs with it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

from sb3_ppo_ext.distributed.shards import n_envs_of_all
from sb3_ppo_ext.language.policies.language_model import LanguageModelPolicy
from sb3_ppo_ext.update.step import EpochStatistics
from sb3_ppo_ext.update.training import Trained

# TRL's name -> our name for the same quantity, and a factor: TRL's value loss has 1/2 in it.
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
        """Adds to the records of the last update, which the logger has not written yet."""
        logged = self.logger.name_to_value
        if not isinstance(self.model.policy, LanguageModelPolicy):
            raise ValueError(f"TRLNames is for a LanguageModelPolicy; this is a {type(self.model.policy).__name__}")
        if "lm/score" not in logged:
            return
        seconds = max(time.perf_counter() - self.started, 1e-9)
        assert isinstance(self.model, OnPolicyAlgorithm)
        update: Trained = self.model.last_update  # type: ignore[attr-defined]  # of PPOX, which has logged lm/score
        records = trl_records(logged, update.epochs)
        records["val/num_eos_tokens"] = round(logged["lm/eos_rate"] * self.model.n_steps * n_envs_of_all(self.model))
        records |= {"episode": self.num_timesteps, "eps": (self.num_timesteps - self.before) / seconds}
        for name, value in records.items():
            self.logger.record(name, value, exclude="stdout")


def trl_records(logged: Mapping[str, float], epochs: Sequence[EpochStatistics]) -> dict[str, float]:
    """TRL's name -> value, from what is ``logged`` under our names and from the minibatches of the update."""
    records = {name: factor * logged[ours] for name, (ours, factor) in ALIASES.items() if ours in logged}
    records["objective/entropy"] = logged["lm/entropy_sampled"] * logged["lm/response_length"]
    if "lm/rlhf_reward" in logged:
        records["objective/non_score_reward"] = logged["lm/rlhf_reward"] - logged["lm/score"]

    def column(name: str) -> np.ndarray:
        return np.concatenate([epoch.column(name) for epoch in epochs])

    ratio = column("ratio_mean")
    return records | {
        "policy/approxkl_avg": float(column("kl_k2").mean()),
        "policy/clipfrac_avg": float(column("policy_clipped").mean()),
        "val/clipfrac_avg": float(column("value_clipped").mean()),
        "val/ratio": float(ratio.mean()),
        "val/ratio_var": float(ratio.var(ddof=1)) if len(ratio) > 1 else 0.0,
    }
