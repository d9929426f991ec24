"""A callback that fits the value function to the untrained policy before the first update (VC-PPO, VAPO)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import torch
from stable_baselines3.common.callbacks import BaseCallback, CallbackList
from torch import Tensor, nn

from sb3_ppo_ext.language.inputs import at_least, number_of
from sb3_ppo_ext.language.policies.language_model import LanguageModelPolicy
from sb3_ppo_ext.language.training.critic import CriticTraining, explained_by_position, values_of
from sb3_ppo_ext.language.training.micro_batches import lengths_of, rows_of
from sb3_ppo_ext.language.training.token_buffer import SequenceRolloutBuffer
from sb3_ppo_ext.language.training.token_rollout import collected_responses
from sb3_ppo_ext.objective.batch import Minibatch
from sb3_ppo_ext.objective.terms import KnobValues, Objective
from sb3_ppo_ext.update.optimizer_step import TorchStep

LEAST_GAIN = 0.005  # of the squared error, which an epoch has to bring


class ValuePretraining(BaseCallback):
    """Draws responses of the policy as it begins, and regresses the values on their Monte-Carlo returns.

    Given to ``model.learn(..., callback=ValuePretraining(512))``. The model, its optimizer and the schedules stay; the
    responses count as timesteps. A fifth of the responses is held out: training ends when their squared error has not
    fallen for ``patience`` epochs, and the best values are restored. Yuan et al. 2025 (VC-PPO), section 3.3. A model
    that has been trained already is left as it is; a run that is resumed before its first update begins this anew.

    :param responses: how many are drawn, rounded up to whole rollouts
    :param epochs: the most passes over them
    :param patience: epochs in a row that leave the held-out squared error as it is
    :param learning_rate: of an Adam of the policy's kind that is used here alone; None takes the value function's
    :param verbose: 1 prints what came of it
    """

    def __init__(
        self,
        responses: int = 512,
        *,
        epochs: int = 50,
        patience: int = 3,
        learning_rate: float | None = None,
        verbose: int = 0,
    ) -> None:
        super().__init__(verbose)
        self.responses = at_least(1, "responses", responses)
        self.epochs = at_least(1, "epochs", epochs)
        self.patience = at_least(1, "patience", patience)
        if learning_rate is not None and not (number_of(learning_rate) or 0) > 0:
            raise ValueError(f"learning_rate={learning_rate!r}: a number above 0, or None, is needed")
        self.learning_rate = learning_rate

    def _on_step(self) -> bool:
        return True

    def _on_training_start(self) -> None:
        model, policy = cast(Any, self.model), self.model.policy
        if not isinstance(policy, LanguageModelPolicy) or not policy.value_parameters():
            raise ValueError("ValuePretraining is for a LanguageModelPolicy with a value function that is trained")
        if model._n_updates > 0:
            return
        if model._processes.count > 1:
            raise ValueError(
                "ValuePretraining is for one process: each of several would fit other values. Let the value function "
                'learn alone in the first n rollouts instead, by policy_kwargs={"value_warmup": n}'
            )
        rollouts = math.ceil(self.responses / (model.n_steps * model.n_envs))
        rows = joined([self._collected(model) for _ in range(rollouts)])
        rows = rows._replace(lengths=lengths_of(rows))
        records = self._fitted(model, policy, rows, self._first_held_out(rows))
        for name, value in records.items():
            model.logger.record(f"critic/{name}", value)
        if self.verbose > 0:
            print(f"value function on held-out responses: {records}")

    def _collected(self, model: Any) -> Minibatch:
        """The responses of a rollout, with their Monte-Carlo returns as targets."""
        callback = CallbackList([])
        callback.init_callback(model)
        buffer = model.rollout_buffer
        model.collect_rollouts(model.env, callback, buffer, model.n_steps)
        assert isinstance(buffer, SequenceRolloutBuffer)
        returns = buffer.flat(buffer.monte_carlo_returns())
        return collected_responses(buffer)._replace(value_target=returns)

    def _first_held_out(self, rows: Minibatch) -> int:
        """The index from which responses are held out, a fifth of them; none of their steps is split."""
        step = self.model.n_envs
        return (len(rows.action) - max(len(rows.action) // 5 // step, 1) * step) or len(rows.action) // 2

    def _fitted(self, model: Any, policy: LanguageModelPolicy, rows: Minibatch, held_out: int) -> dict[str, float]:
        """Trains on the rows before ``held_out``; the records of the epoch whose values fit the others best."""
        parameters, stale = policy.value_parameters(), 0
        rate = self.learning_rate or policy.optimizer.param_groups[-1]["lr"]
        optimizer = policy.optimizer_class(parameters, lr=rate, **policy.optimizer_kwargs)  # type: ignore[call-arg]  # rate
        objective = Objective(kl_estimator="k3", value_error=model.value_error)
        training = CriticTraining(policy, objective, model.rollout_buffer.settings, model.max_grad_norm)
        step, knobs = TorchStep(optimizer, parameters), KnobValues(0.2, vf_coef=1.0)
        random, held = np.random.default_rng(model.seed), chosen_rows(rows, np.arange(held_out, len(rows.action)))
        best, records = self._judged(model, policy, held)
        best_values = copies(parameters)
        for epoch in range(1, self.epochs + 1):
            order = random.permutation(held_out)
            starts = range(0, held_out, model.batch_size)
            minibatches = (chosen_rows(rows, order[start : start + model.batch_size]) for start in starts)
            training.epoch(minibatches, knobs, step)
            error, found = self._judged(model, policy, held)
            stale += 1
            if error < (1 - LEAST_GAIN) * best:
                best, best_values, stale, records = error, copies(parameters), 0, {**found, "pretraining_epochs": epoch}
            if stale >= self.patience:
                break
        with torch.no_grad():
            for parameter, value in zip(parameters, best_values, strict=True):
                parameter.copy_(value)
        return records

    def _judged(self, model: Any, policy: LanguageModelPolicy, held: Minibatch) -> tuple[float, dict[str, float]]:
        """The mean squared error of the values of held-out responses, and how much of their returns they explain."""
        assert held.mask is not None
        longest = int(lengths_of(held).sum(-1).max())
        limit = model.rollout_buffer.settings.micro_batch_tokens or model.batch_size * longest
        value, target, mask = values_of(policy, held, limit), held.value_target.cpu().numpy(), held.mask.cpu().numpy()
        return float(np.square(value - target)[mask].mean()), explained_by_position(value, target, mask)


def copies(parameters: list[nn.Parameter]) -> list[Tensor]:
    """The parameters' values."""
    return [parameter.detach().clone() for parameter in parameters]


def chosen_rows(rows: Minibatch, index: np.ndarray) -> Minibatch:
    """The rows of these numbers, with their lengths."""
    on_device = torch.as_tensor(index, device=rows.action.device)
    return rows_of(rows, on_device)._replace(lengths=lengths_of(rows)[index])


def joined(rollouts: list[Minibatch]) -> Minibatch:
    """The rows of several rollouts, one after the other; all have the width of the buffer."""
    first = rollouts[0]

    def of(get: Callable[[Any], Tensor]) -> Tensor:
        return torch.cat([get(rows) for rows in rollouts])

    assert isinstance(first.observation, dict)
    return Minibatch(
        {name: of(lambda rows, name=name: rows.observation[name]) for name in first.observation},  # type: ignore[misc]  # its type is Any
        of(lambda rows: rows.action),
        of(lambda rows: rows.action_log_prob),
        of(lambda rows: rows.state_value),
        of(lambda rows: rows.advantage),
        of(lambda rows: rows.value_target),
        mask=of(lambda rows: rows.mask),
    )
