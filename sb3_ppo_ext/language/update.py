"""The update over minibatches of responses: split for memory, one optimizer step each, the first ratio checked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from sb3_ppo_ext.descent import Descent, PlainDescent, descending
from sb3_ppo_ext.distributions import ActionDistribution
from sb3_ppo_ext.language.buffer import SequenceRolloutBuffer
from sb3_ppo_ext.language.ratio import RatioCheck
from sb3_ppo_ext.language.rollout import micro_batches
from sb3_ppo_ext.measurements import STATISTICS, statistics
from sb3_ppo_ext.minibatches import Minibatch, Observation, Rollout
from sb3_ppo_ext.objective import fill_masked
from sb3_ppo_ext.optimizers import prefer_foreach
from sb3_ppo_ext.policies import Evaluation
from sb3_ppo_ext.terms import KnobValues, Objective, ppo_terms
from sb3_ppo_ext.update import Measured, Update

if TYPE_CHECKING:
    from sb3_ppo_ext.language.policy import LanguageModelPolicy
    from sb3_ppo_ext.ppox import PPOX

LOSS, RATIO_MAX = STATISTICS.index("loss"), STATISTICS.index("ratio_max")


class TokenAdapter:
    """A language model as the update sees it."""

    def __init__(self, policy: LanguageModelPolicy, *, entropy_grad: bool, with_reference: bool) -> None:
        self.policy = policy
        self.entropy_grad = entropy_grad
        self.with_reference = with_reference  # for the KL to it in the loss

    def evaluate(self, minibatch: Minibatch) -> Evaluation:
        """Log-probability, entropy and value of every token [B, L]."""
        assert minibatch.mask is not None
        tokens = self.policy.tokens(minibatch.observation, minibatch.action, minibatch.mask > 0)
        log_prob, entropy, value = self.policy.evaluate_tokens(tokens, entropy_grad=self.entropy_grad)
        reference = minibatch.ref_log_prob if self.with_reference else None
        return Evaluation(log_prob, entropy, value, mask=minibatch.mask, ref_log_prob=reference)

    def distribution(self, observation: Observation) -> ActionDistribution:
        """There is none: a response is drawn token by token."""
        raise TypeError("a language model has no distribution of whole responses")

    def values(self, observation: Observation) -> Tensor:
        """Values [B] of the prompts."""
        return self.policy.predict_values(observation).flatten()


@dataclass
class SequenceUpdate(Update):
    """As ``Update``, with the gradient of a minibatch summed over its micro-batches.

    ``frozen`` are parameters that do not move in this rollout. ``ratio_check`` is given the first minibatch, on which
    the policy is still the one that sampled it, and the greatest ``|log_ratio|`` there.
    """

    loss_mean: str = "token"
    max_tokens: int | None = None
    frozen: list[nn.Parameter] = field(default_factory=list)
    ratio_check: Callable[[Minibatch, float], None] | None = None

    def evaluate(self, minibatch: Minibatch, knobs: KnobValues) -> tuple[Tensor, Tensor]:
        """The loss of a minibatch, its gradient already in the parameters, and its statistics."""
        for parameter in self.parameters:
            parameter.grad = None
        losses: list[Tensor] = []
        rows: list[Tensor] = []
        weights: list[float] = []
        deviation = 0.0
        for part, share, weight in micro_batches(minibatch, loss_mean=self.loss_mean, max_tokens=self.max_tokens):
            new = self.adapter.evaluate(part)
            terms = ppo_terms(new, part, self.objective, knobs)
            loss = terms.weigh(knobs) * share
            loss.backward()
            losses.append(loss.detach())
            rows.append(statistics(new, part, terms, loss, self.objective, knobs))
            weights.append(weight)
            if self.ratio_check is not None:
                log_ratio = fill_masked(new.log_prob.detach() - part.action_log_prob, part.mask)
                deviation = max(deviation, log_ratio.abs().max().item())
        if self.ratio_check is not None:
            self.ratio_check(minibatch, deviation)
            self.ratio_check = None
        table = torch.stack(rows)
        row = (table * table.new_tensor(weights)[:, None]).sum(dim=0)
        row[LOSS], row[RATIO_MAX] = torch.stack(losses).sum(), table[:, RATIO_MAX].max()
        return row[LOSS], row

    def epoch(self, rollout: Rollout, batch_size: int) -> Measured:
        """All minibatches once, or until the sampled KL of one exceeds 1.5 ``target_kl``; then without its step."""
        if self.frozen:
            return self._measured_at_once(rollout, batch_size, PlainDescent(self.optimizer, self.parameters))
        with descending(self.optimizer, self.parameters) as descent:
            return self._measured_at_once(rollout, batch_size, descent)

    def step(self, loss: Tensor, row: Tensor, descent: Descent | None = None) -> Tensor:
        """One optimizer step against the gradient that ``evaluate`` left."""
        for parameter in self.frozen:
            parameter.grad = None
        descent = descent or PlainDescent(self.optimizer, self.parameters)
        return self._descend(row, descent.clip(self.max_grad_norm), descent)


def sequence_update(policy: LanguageModelPolicy, model: PPOX, rollout: Rollout) -> SequenceUpdate:
    """What stays the same over the minibatches of a rollout."""
    buffer = rollout.buffer
    assert isinstance(buffer, SequenceRolloutBuffer)
    warming = model._n_updates < policy.value_warmup * model.n_epochs
    prefer_foreach(policy.optimizer)
    in_loss = buffer.ref_kl != "reward" and (callable(model.ref_kl_coef) or model.ref_kl_coef != 0)
    return SequenceUpdate(
        adapter=TokenAdapter(
            policy, entropy_grad=callable(model.ent_coef) or model.ent_coef != 0, with_reference=in_loss
        ),
        objective=Objective(
            surrogate=model.surrogate,
            dual_clip=model.dual_clip,
            penalized=model.penalized,
            kl_estimator=model.kl_estimator,
            value_clip=model.value_clip,
            normalize_advantage=False,  # over the whole minibatch, before its split: see SequenceRollout
            ref_kl_estimator=buffer.ref_kl_estimator,
        ),
        optimizer=policy.optimizer,
        parameters=policy.model_parameters() + policy.value_parameters(),
        max_grad_norm=model.max_grad_norm,
        knobs=model.knobs,
        set_learning_rate=model._set_learning_rate,
        target_kl=model.target_kl,
        loss_mean=buffer.loss_mean,
        max_tokens=buffer.micro_batch_tokens,
        frozen=policy.model_parameters() if warming else [],
        ratio_check=RatioCheck(policy),
    )
