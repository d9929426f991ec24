"""The update over minibatches of responses: split for memory, one optimizer step each, the first ratio checked."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn

from sb3_ppo_ext.language.model.causal_lm import scattered
from sb3_ppo_ext.language.model.full_kl import full_kl
from sb3_ppo_ext.language.model.nan_origin import origin
from sb3_ppo_ext.language.training.micro_batches import MicroBatch, micro_batches
from sb3_ppo_ext.language.training.ratio_check import RatioCheck
from sb3_ppo_ext.language.training.token_rollout import SequenceRollout
from sb3_ppo_ext.objective.batch import Evaluation, Minibatch, Observation
from sb3_ppo_ext.objective.distributions import ActionDistribution
from sb3_ppo_ext.objective.statistics import Statistics, of_micro_batches
from sb3_ppo_ext.objective.terms import KnobValues
from sb3_ppo_ext.run import Run
from sb3_ppo_ext.update.epochs import Update
from sb3_ppo_ext.update.optimizer_step import FusedAdamStep, OptimizerStep, TorchStep, steps_in_one_kernel
from sb3_ppo_ext.update.optimizers import prefer_fused
from sb3_ppo_ext.update.prepare import objective_of
from sb3_ppo_ext.update.step import loss_and_statistics

if TYPE_CHECKING:
    from sb3_ppo_ext.language.policies.language_model import LanguageModelPolicy


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


@dataclass(frozen=True)
class TokenUpdate(Update):
    """What stays the same over the minibatches of a rollout of responses.

    ``frozen`` are parameters that do not move in this rollout; ``loss_mean`` and ``max_tokens`` are the buffer's
    ``loss_mean`` and ``micro_batch_tokens``.
    """

    adapter: TokenAdapter
    loss_mean: str = "token"
    max_tokens: int | None = None
    frozen: list[nn.Parameter] = field(default_factory=list)


class MicroBatchGradients(Protocol):
    """What computes the gradient of a minibatch, micro-batch by micro-batch."""

    def parts(self, minibatch: Minibatch) -> Iterable[MicroBatch]:
        """The micro-batches, which together are the minibatch."""
        ...

    def add(self, part: MicroBatch, knobs: KnobValues) -> Statistics:
        """Adds the micro-batch's gradient to that of the parameters; its statistics."""
        ...


@dataclass
class EagerGradients:
    """By autograd."""

    update: TokenUpdate

    def parts(self, minibatch: Minibatch) -> Iterable[MicroBatch]:
        """See ``micro_batches``."""
        return micro_batches(minibatch, loss_mean=self.update.loss_mean, max_tokens=self.update.max_tokens)

    def add(self, part: MicroBatch, knobs: KnobValues) -> Statistics:
        """See ``MicroBatchGradients``."""
        update = self.update
        evaluated, found = loss_and_statistics(
            update.adapter, part.minibatch, update.objective, knobs, share=part.share
        )
        evaluated.loss.backward()
        return found


class TokenGradients:
    """The gradient of a minibatch of responses, summed over its micro-batches; see ``update.eager.Gradients``.

    ``ratio_check`` is given the first minibatch, on which the policy is still the one that sampled it, and the greatest
    ``|log_ratio|`` there.
    """

    def __init__(
        self,
        update: TokenUpdate,
        micro_batches: MicroBatchGradients,
        ratio_check: Callable[[Minibatch, float], None] | None,
    ) -> None:
        self.update = update
        self.micro_batches = micro_batches
        self.ratio_check = ratio_check

    def evaluate(self, minibatch: Minibatch, knobs: KnobValues) -> tuple[Statistics, Callable[[], None]]:
        """The statistics; the gradient is in the parameters already, and then leaves those that are frozen."""
        for parameter in self.update.parameters:
            parameter.grad = None
        found: list[Statistics] = []
        weights: list[Tensor] = []
        for part in self.micro_batches.parts(minibatch):
            found.append(self.micro_batches.add(part, knobs))
            weights.append(part.weight)
        statistics = of_micro_batches(found, weights)
        if self.ratio_check is not None:
            self.ratio_check(minibatch, statistics.log_ratio_max.item())
            self.ratio_check = None
        return statistics, self._leave_frozen

    def _leave_frozen(self) -> None:
        for parameter in self.update.frozen:
            parameter.grad = None

    def origin(self, minibatch: Minibatch) -> str:
        """See ``update.eager.Gradients``."""
        policy = self.update.adapter.policy
        assert minibatch.mask is not None
        tokens = policy.tokens(minibatch.observation, minibatch.action, minibatch.mask > 0)
        return f"In this minibatch {origin(policy.lm, tokens)}."


@contextmanager
def token_steps(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter]) -> Iterator[OptimizerStep]:
    """Steps of the optimizer, in one kernel with the clipping where it has such steps."""
    yield (FusedAdamStep if steps_in_one_kernel(optimizer) else TorchStep)(optimizer, parameters)


def token_update(run: Run, rollout: SequenceRollout) -> TokenUpdate:
    """What stays the same over the minibatches of a rollout."""
    buffer, policy = rollout.buffer, rollout.policy
    warming = run.n_updates < policy.value_warmup * run.settings.n_epochs
    prefer_fused(policy.optimizer)
    adapter = TokenAdapter(
        policy,
        entropy_grad=run.knobs.is_on("ent_coef"),
        with_reference=buffer.ref_kl != "reward" and run.knobs.is_on("ref_kl_coef"),
        full_kl=buffer.ref_kl_estimator == "full",
    )
    # Advantages are normalised over the whole minibatch, before its split: see SequenceRollout.
    choices = {"normalize_advantage": False, "ref_kl_estimator": buffer.ref_kl_estimator}
    return TokenUpdate(
        adapter=adapter,
        objective=replace(objective_of(run), **choices),  # type: ignore[arg-type]  # of their own types
        optimizer=policy.optimizer,
        parameters=policy.model_parameters() + policy.value_parameters(),
        loss_mean=buffer.loss_mean,
        max_tokens=buffer.micro_batch_tokens,
        frozen=policy.model_parameters() if warming else [],
    )


def ratio_check_of(update: TokenUpdate) -> RatioCheck:
    """The check of an update's first minibatch."""
    return RatioCheck(update.adapter.policy)
