"""The update over minibatches of responses: split for memory, one optimizer step each, the first ratio checked."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor, nn

from sb3_ppo_ext.distributed.gradient_sums import GradientSums
from sb3_ppo_ext.language.model.nan_origin import origin
from sb3_ppo_ext.language.model.tokens import Tokens
from sb3_ppo_ext.language.training.micro_batches import MicroBatch, micro_batches
from sb3_ppo_ext.language.training.token_rollout import TokenRollout
from sb3_ppo_ext.language.training.token_settings import TokenSettings
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


@dataclass(frozen=True)
class TokenAdapter:
    """A language model as the update evaluates it.

    ``with_reference`` adds the KL to the reference to the loss, and ``full_kl`` that of the whole distributions. With
    ``every_slot`` padding is computed as well, so that shapes do not depend on the data, as a graph needs it.
    """

    policy: LanguageModelPolicy
    entropy_grad: bool
    with_reference: bool
    full_kl: bool = False
    every_slot: bool = False

    def evaluate(self, minibatch: Minibatch) -> Evaluation:
        """Log-probability, entropy and value of every token [B, L]."""
        assert minibatch.mask is not None
        policy, log_prob_of_reference, kl = self.policy, None, None
        tokens = policy.tokens(minibatch.observation, minibatch.action, minibatch.mask > 0)
        hidden, value = self.states(tokens, minibatch)
        if self.with_reference and self.full_kl:
            kl = policy.reference_kl(tokens, hidden)
        elif self.with_reference:
            log_prob_of_reference = minibatch.ref_log_prob
        log_prob, entropy = policy.lm.token_log_prob_and_entropy(
            hidden, tokens, entropy_grad=self.entropy_grad, every_slot=self.every_slot
        )
        return Evaluation(log_prob, entropy, value, mask=minibatch.mask, ref_log_prob=log_prob_of_reference, ref_kl=kl)

    def states(self, tokens: Tokens, minibatch: Minibatch) -> tuple[Tensor, Tensor]:
        """The model's states [B, L, D] before every token, and the values [B, L]."""
        return self.policy.states(tokens)

    def distribution(self, observation: Observation) -> ActionDistribution:
        """Raises ``TypeError``: a response is drawn token by token, and has no distribution at hand."""
        raise TypeError("a language model has no distribution of whole responses")

    def values(self, observation: Observation) -> Tensor:
        """Values [B] of the prompts."""
        return self.policy.predict_values(observation).flatten()


@dataclass(frozen=True)
class TokenUpdate(Update):
    """An update over responses; ``frozen`` are the parameters that do not move in this rollout."""

    adapter: TokenAdapter
    settings: TokenSettings = field(default_factory=TokenSettings)
    frozen: list[nn.Parameter] = field(default_factory=list)


class MicroBatchGradients(Protocol):
    """The gradient of a minibatch, computed micro-batch by micro-batch."""

    def split(self, minibatch: Minibatch) -> Iterable[MicroBatch]:
        """The micro-batches, which together are the minibatch."""
        ...

    def add(self, micro_batch: MicroBatch, knobs: KnobValues) -> Statistics:
        """Adds the micro-batch's gradient to that of the parameters; its statistics."""
        ...


@dataclass
class EagerGradients:
    """Gradients by autograd."""

    update: TokenUpdate

    def split(self, minibatch: Minibatch) -> Iterable[MicroBatch]:
        """Micro-batches within ``micro_batch_tokens``, without padding."""
        return micro_batches(minibatch, self.update.settings)

    def add(self, micro_batch: MicroBatch, knobs: KnobValues) -> Statistics:
        """Adds the micro-batch's gradient to that of the parameters; its statistics."""
        update, rows = self.update, micro_batch.minibatch
        evaluated, found = loss_and_statistics(update.adapter, rows, update.objective, knobs, share=micro_batch.share)
        evaluated.loss.backward()
        return found


@dataclass
class TokenGradients:
    """The gradient of a minibatch of responses, summed over its micro-batches, as ``EagerRunner`` takes it.

    ``ratio_check`` is called once, with the first minibatch, on which the policy is still the one that sampled it, and
    the greatest ``|log_ratio|`` in it.
    """

    update: TokenUpdate
    micro_batches: MicroBatchGradients
    ratio_check: Callable[[Minibatch, float], None] | None

    def evaluate(
        self, minibatch: Minibatch, knobs: KnobValues, sums: GradientSums | None = None
    ) -> tuple[Statistics, Callable[[], None]]:
        """The statistics; the gradient is in the parameters already, and then leaves those that are frozen.

        The ``sums`` begin while the last micro-batch's gradient is computed; not where the ratio check, in which the
        processes agree, or the removal of gradients comes between.
        """
        for parameter in self.update.parameters:
            parameter.grad = None
        found: list[Statistics] = []
        weights: list[Tensor] = []
        early = sums if self.ratio_check is None and not self.update.frozen else None
        for micro_batch, is_last in marked_last(self.micro_batches.split(minibatch)):
            with early.begun_early() if early is not None and is_last else nullcontext():
                found.append(self.micro_batches.add(micro_batch, knobs))
            weights.append(micro_batch.weight)
        statistics = of_micro_batches(found, weights)
        if self.ratio_check is not None:
            self.ratio_check(minibatch, statistics.log_ratio_max.item())
            self.ratio_check = None
        return statistics, self._leave_frozen

    def _leave_frozen(self) -> None:
        for parameter in self.update.frozen:
            parameter.grad = None

    def origin(self, minibatch: Minibatch) -> str:
        """The layer and row where a number of this minibatch first was not finite, in words."""
        policy = self.update.adapter.policy
        assert minibatch.mask is not None
        tokens = policy.tokens(minibatch.observation, minibatch.action, minibatch.mask > 0)
        return f"In this minibatch {origin(policy.lm, tokens)}."


def marked_last(micro_batches: Iterable[MicroBatch]) -> Iterator[tuple[MicroBatch, bool]]:
    """Each of them, and whether it is the last."""
    following = iter(micro_batches)
    micro_batch = next(following, None)
    while micro_batch is not None:
        after = next(following, None)
        yield micro_batch, after is None
        micro_batch = after


@contextmanager
def token_steps(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter]) -> Iterator[OptimizerStep]:
    """Steps of the optimizer; one kernel clips the gradient and steps where the optimizer has such a kernel."""
    yield (FusedAdamStep if steps_in_one_kernel(optimizer) else TorchStep)(optimizer, parameters)


def token_update(run: Run, rollout: TokenRollout) -> TokenUpdate:
    """The update over a rollout; while the value function warms up, the model's own parameters are frozen in it."""
    settings, policy = rollout.settings, rollout.policy
    warming_up = run.n_updates < policy.value_warmup * run.settings.n_epochs
    prefer_fused(policy.optimizer)
    adapter = TokenAdapter(
        policy,
        entropy_grad=run.knobs.is_on("ent_coef"),
        with_reference=settings.ref_kl != "reward" and run.knobs.is_on("ref_kl_coef"),
        full_kl=settings.exact_kl,
    )
    # TokenRollout has normalised the advantages, over the whole minibatch and before its split.
    objective = replace(objective_of(run), normalize_advantage=False, ref_kl_estimator=settings.ref_kl_estimator)
    return TokenUpdate(
        adapter=adapter,
        objective=objective,
        optimizer=policy.optimizer,
        parameters=policy.model_parameters() + policy.value_parameters(),
        settings=settings,
        frozen=policy.model_parameters() if warming_up else [],
    )
