"""The update over minibatches of responses: split for memory, one optimizer step each, the first ratio checked."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from sb3_ppo_ext.language.model.causal_lm import scattered
from sb3_ppo_ext.language.model.full_kl import full_kl
from sb3_ppo_ext.language.model.nan_origin import origin
from sb3_ppo_ext.language.training.micro_batches import MicroBatch, micro_batches
from sb3_ppo_ext.language.training.ratio_check import RatioCheck
from sb3_ppo_ext.language.training.token_buffer import SequenceRolloutBuffer
from sb3_ppo_ext.language.training.token_rollout import SequenceRollout
from sb3_ppo_ext.language.training.trl_statistics import minibatch_statistics
from sb3_ppo_ext.monitoring.divergence import DivergedError
from sb3_ppo_ext.objective.batch import Evaluation, Minibatch, Observation
from sb3_ppo_ext.objective.distributions import ActionDistribution
from sb3_ppo_ext.objective.losses import fill_masked
from sb3_ppo_ext.objective.statistics import STATISTICS, statistics
from sb3_ppo_ext.objective.terms import KnobValues, Objective, ppo_terms
from sb3_ppo_ext.rollout.minibatches import Rollout
from sb3_ppo_ext.update.eager import Measured, Update
from sb3_ppo_ext.update.optimizer_step import Descent, FusedDescent, PlainDescent, steps_in_one_kernel
from sb3_ppo_ext.update.optimizers import prefer_fused

if TYPE_CHECKING:
    from sb3_ppo_ext.language.policies.language_model import LanguageModelPolicy
    from sb3_ppo_ext.ppox import PPOX

LOSS, RATIO_MAX = STATISTICS.index("loss"), STATISTICS.index("ratio_max")


class TokenAdapter:
    """A language model as the update sees it."""

    def __init__(
        self, policy: LanguageModelPolicy, *, entropy_grad: bool, with_reference: bool, full_kl: bool = False
    ) -> None:
        self.policy = policy
        self.entropy_grad = entropy_grad
        self.with_reference = with_reference  # for the KL to it in the loss
        self.full_kl = full_kl and with_reference

    def evaluate(self, minibatch: Minibatch) -> Evaluation:
        """Log-probability, entropy and value of every token [B, L]."""
        assert minibatch.mask is not None
        policy = self.policy
        tokens = policy.tokens(minibatch.observation, minibatch.action, minibatch.mask > 0)
        if self.full_kl:
            ref_hidden = policy.reference_states(tokens)
            hidden, value = policy.states(tokens)
            of_token = policy.evaluate_states(tokens, hidden, value, entropy_grad=self.entropy_grad)
            kl = scattered(full_kl(policy.lm, hidden, policy.as_reference, ref_hidden), tokens.mask)
            return Evaluation(*of_token, mask=minibatch.mask, ref_kl=kl)
        log_prob, entropy, value = policy.evaluate_tokens(tokens, entropy_grad=self.entropy_grad)
        reference = minibatch.ref_log_prob if self.with_reference else None
        return Evaluation(log_prob, entropy, value, mask=minibatch.mask, ref_log_prob=reference)

    def distribution(self, observation: Observation) -> ActionDistribution:
        """There is none: a response is drawn token by token."""
        raise TypeError("a language model has no distribution of whole responses")

    def values(self, observation: Observation) -> Tensor:
        """Values [B] of the prompts."""
        return self.policy.predict_values(observation).flatten()


class Piece(NamedTuple):
    """What is known of a micro-batch once its gradient has been added to that of the parameters."""

    loss: Tensor
    row: Tensor  # its statistics
    extra: Tensor  # its ``minibatch_statistics``
    deviation: Tensor  # the greatest ``|log_ratio|``


class Gradients(Protocol):
    """Who computes the gradient of a minibatch, part by part."""

    def parts(self, minibatch: Minibatch, *, loss_mean: str, max_tokens: int | None) -> Iterable[MicroBatch]:
        """The parts, which together are the minibatch."""
        ...

    def add(self, part: MicroBatch, knobs: KnobValues) -> Piece:
        """Adds the part's gradient to that of the parameters."""
        ...


@dataclass
class EagerGradients:
    """By autograd."""

    adapter: TokenAdapter
    objective: Objective

    def parts(self, minibatch: Minibatch, *, loss_mean: str, max_tokens: int | None) -> Iterable[MicroBatch]:
        """See ``micro_batches``."""
        return micro_batches(minibatch, loss_mean=loss_mean, max_tokens=max_tokens)

    def add(self, part: MicroBatch, knobs: KnobValues) -> Piece:
        """See ``Gradients``."""
        minibatch, share, _ = part
        new = self.adapter.evaluate(minibatch)
        terms = ppo_terms(new, minibatch, self.objective, knobs)
        loss = terms.weigh(knobs) * share
        loss.backward()
        row = statistics(new, minibatch, terms, loss, self.objective, knobs)
        log_ratio = fill_masked(new.log_prob.detach() - minibatch.action_log_prob, minibatch.mask)
        return Piece(loss.detach(), row, minibatch_statistics(new, minibatch, knobs), log_ratio.abs().max())


@dataclass
class SequenceUpdate(Update):
    """As ``Update``, with the gradient of a minibatch summed over its micro-batches by ``gradients``.

    ``adapter`` is a ``TokenAdapter``.

    ``frozen`` are parameters that do not move in this rollout. ``ratio_check`` is given the first minibatch, on which
    the policy is still the one that sampled it, and the greatest ``|log_ratio|`` there.
    """

    adapter: TokenAdapter
    gradients: Gradients | None = None  # None: ``EagerGradients``
    loss_mean: str = "token"
    max_tokens: int | None = None
    frozen: list[nn.Parameter] = field(default_factory=list)
    ratio_check: Callable[[Minibatch, float], None] | None = None
    seen: list[Tensor] = field(default_factory=list)  # the ``minibatch_statistics``, for whoever wants them
    at: Minibatch | None = None  # the one evaluated last

    def __post_init__(self) -> None:
        if self.gradients is None:
            self.gradients = EagerGradients(self.adapter, self.objective)

    def evaluate(self, minibatch: Minibatch, knobs: KnobValues) -> tuple[Tensor, Tensor]:
        """The loss of a minibatch, its gradient already in the parameters, and its statistics."""
        for parameter in self.parameters:
            parameter.grad = None
        self.at = minibatch
        assert self.gradients is not None  # since __post_init__
        pieces: list[Piece] = []
        weights: list[Tensor] = []
        for part in self.gradients.parts(minibatch, loss_mean=self.loss_mean, max_tokens=self.max_tokens):
            pieces.append(self.gradients.add(part, knobs))
            weights.append(part.weight)
        if self.ratio_check is not None:
            self.ratio_check(minibatch, max(piece.deviation.item() for piece in pieces))
            self.ratio_check = None
        table = torch.stack([piece.row for piece in pieces])
        share_of = torch.stack(weights)[:, None]
        row = (table * share_of).sum(dim=0)
        self.seen.append((torch.stack([piece.extra for piece in pieces]) * share_of).sum(dim=0))
        row[LOSS], row[RATIO_MAX] = torch.stack([piece.loss for piece in pieces]).sum(), table[:, RATIO_MAX].max()
        return row[LOSS], row

    def epoch(self, rollout: Rollout, batch_size: int) -> Measured:
        """All minibatches once, or until the sampled KL of one exceeds 1.5 ``target_kl``; then without its step."""
        return self._measured_at_once(rollout, batch_size, self._descent())

    def _descent(self) -> Descent:
        kind = FusedDescent if steps_in_one_kernel(self.optimizer) else PlainDescent
        return kind(self.optimizer, self.parameters)

    def step(self, loss: Tensor, row: Tensor, descent: Descent | None = None) -> Tensor:
        """One optimizer step against the gradient that ``evaluate`` left."""
        for parameter in self.frozen:
            parameter.grad = None
        descent = descent or self._descent()
        try:
            return self._descend(row, descent.clip(self.max_grad_norm), descent)
        except DivergedError as error:
            assert self.at is not None and self.at.mask is not None
            tokens = self.adapter.policy.tokens(self.at.observation, self.at.action, self.at.mask > 0)
            raise DivergedError(f"{error} In this minibatch {origin(self.adapter.policy.lm, tokens)}.") from error


def sequence_update(policy: LanguageModelPolicy, model: PPOX, rollout: Rollout) -> SequenceUpdate:
    """What stays the same over the minibatches of a rollout."""
    buffer = rollout.buffer
    assert isinstance(buffer, SequenceRolloutBuffer)
    warming = model._n_updates < policy.value_warmup * model.n_epochs
    prefer_fused(policy.optimizer)
    in_loss = buffer.ref_kl != "reward" and (callable(model.ref_kl_coef) or model.ref_kl_coef != 0)
    return SequenceUpdate(
        adapter=TokenAdapter(
            policy,
            entropy_grad=callable(model.ent_coef) or model.ent_coef != 0,
            with_reference=in_loss,
            full_kl=buffer.ref_kl_estimator == "full",
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
        seen=rollout.statistics if isinstance(rollout, SequenceRollout) else [],
    )
