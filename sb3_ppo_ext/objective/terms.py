"""Composing the objective: from an evaluation and a minibatch to terms, and the one place where they are weighed."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

from torch import Tensor

from sb3_ppo_ext.objective import losses as objective
from sb3_ppo_ext.objective import sequence_ratios, trust_regions  # noqa: F401  # they register their surrogates
from sb3_ppo_ext.objective.batch import Evaluation, Minibatch
from sb3_ppo_ext.objective.distributions import exact_kl, split_kl
from sb3_ppo_ext.objective.losses import Reduce, Scalar, fill_masked, masked_mean
from sb3_ppo_ext.objective.registry import KL_ESTIMATORS, OF_SAMPLES, SURROGATES, VALUE_CLIPS, VALUE_ERRORS, Registered


class KnobValues(NamedTuple):
    """The numbers in force for one minibatch. A 0-d tensor does for any of them."""

    clip_range: Scalar
    clip_range_high: Scalar | None = None
    clip_range_vf: Scalar | None = None
    ent_coef: Scalar = 0.0
    vf_coef: Scalar = 0.5
    kl_coef: Scalar = 0.0
    ref_kl_coef: Scalar = 0.0
    learning_rate: Scalar = 3e-4  # for the optimizer; no term depends on it
    divergence_limit: Scalar | None = None
    kl_coef_std: Scalar | None = None

    @property
    def low(self) -> Scalar:
        """The ratio is clipped below at ``1 - low``."""
        return self.clip_range

    @property
    def high(self) -> Scalar:
        """The ratio is clipped above at ``1 + high``."""
        return self.clip_range if self.clip_range_high is None else self.clip_range_high


@dataclass(frozen=True)
class Objective:
    """The choice among the losses; its fields are the arguments of PPOX of the same names.

    ``ValueError`` for a name that is not registered, and for a ``dual_clip`` the surrogate has no use for.
    """

    surrogate: str = "clip"
    dual_clip: float | None = None
    penalized: bool = False  # whether a KL penalty is part of the loss
    kl_estimator: str = "exact"
    value_clip: str = "sb3"
    normalize_advantage: bool = True  # over each minibatch
    value_error: str = "l2"
    ref_kl_estimator: str | None = None  # of the KL to the reference; None: by kl_estimator
    splits_kl: bool = False  # whether the penalty weighs the KL of mean and deviation apart
    surrogate_inputs: tuple[str, ...] = field(init=False, repr=False)
    # What the names stand for: a graph made for another function is another one.
    functions: tuple[Registered, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        KL_ESTIMATORS.require(self.kl_estimator)
        estimators = [name for name in (self.kl_estimator, self.ref_kl_estimator) if name in KL_ESTIMATORS]
        functions: list[Registered] = [SURROGATES[self.surrogate], VALUE_CLIPS[self.value_clip]]
        functions += [VALUE_ERRORS[self.value_error], *(KL_ESTIMATORS[name] for name in estimators if name)]
        if self.dual_clip is not None and "dual_clip" not in SURROGATES[self.surrogate].uses:
            users = SURROGATES.users_of("dual_clip")
            raise ValueError(f'dual_clip={self.dual_clip!r}: only with surrogate={users}, not "{self.surrogate}"')
        if self.splits_kl and self.kl_estimator != "exact":
            raise ValueError(
                f'kl_estimator={self.kl_estimator!r}: kl_coef_std weighs a part of the exact KL; pass "exact", or '
                "kl_coef_std=None"
            )
        if self.splits_kl and SURROGATES[self.surrogate].weighs_kl:
            raise ValueError(f'kl_coef_std: surrogate="{self.surrogate}" weighs the whole KL by kl_coef; pass None')
        object.__setattr__(self, "functions", tuple(functions))
        object.__setattr__(self, "surrogate_inputs", inputs_of(self.surrogate))

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies and pickles hold the names alone."""
        return type(self), tuple(getattr(self, choice.name) for choice in fields(self) if choice.init)

    @property
    def uses_distributions(self) -> bool:
        """True where the loss needs the old and the new distribution."""
        return "kl" in self.surrogate_inputs or (self.penalized and self.kl_estimator == "exact")

    @property
    def adds_penalty(self) -> bool:
        """True where a penalty on the KL is a term of its own, beside the surrogate."""
        return self.penalized and not SURROGATES[self.surrogate].weighs_kl


def inputs_of(surrogate: str) -> tuple[str, ...]:
    """The parameters of a surrogate that PPOX passes; ``ValueError`` for a required one of an unknown name."""
    known = {*KnobValues._fields, "low", "high", "dual_clip", *OF_SAMPLES}
    inputs = SURROGATES[surrogate].inputs
    if strange := [name for name, needed in inputs.items() if needed and name not in known]:
        raise ValueError(
            f"surrogate={surrogate!r} takes {', '.join(strange)}, which is no argument of PPOX; give it a default, or "
            f"take one of {', '.join(sorted(known))}"
        )
    return tuple(name for name in inputs if name in known)


class Terms(NamedTuple):
    """Unweighted scalars, to be minimised."""

    policy: Tensor
    value: Tensor
    entropy: Tensor  # -E[H]
    kl: Tensor | None  # None: no penalty in the loss
    ref_kl: Tensor | None = None  # None: no reference policy
    kl_std: Tensor | None = None  # the deviation's KL where ``kl`` is the mean's alone; None: ``kl`` is the whole
    nll: Tensor | None = None  # of actions to be imitated, weighted by the minibatch already

    def weighted(self, knobs: KnobValues) -> Terms:
        """Every term times its weight. The only place where weights meet terms."""
        return Terms(
            self.policy,
            knobs.vf_coef * self.value,
            knobs.ent_coef * self.entropy,
            None if self.kl is None else knobs.kl_coef * self.kl,
            None if self.ref_kl is None else knobs.ref_kl_coef * self.ref_kl,
            None if self.kl_std is None or knobs.kl_coef_std is None else knobs.kl_coef_std * self.kl_std,
            self.nll,
        )

    def total(self) -> Tensor:
        """Their sum, in Stable-Baselines3's order of summation."""
        return objective.sum_of(self.policy + self.entropy + self.value, self.kl, self.ref_kl, self.kl_std, self.nll)


def ppo_terms(
    new: Evaluation,
    minibatch: Minibatch,
    choices: Objective,
    knobs: KnobValues,
    *,
    value_scale: Scalar | None = None,
    reduce: Reduce = masked_mean,
) -> Terms:
    """The terms of PPO's loss for one minibatch.

    ``value_scale`` (reward units) makes the value term, and the range of its clip, count in that unit. With another
    ``reduce`` than the mean, the terms are what that makes of one number per slot.
    """
    mask = new.mask
    advantage = minibatch.advantage
    if choices.normalize_advantage:
        advantage = objective.normalized(advantage, mask)
    kl, kl_std = _penalties(new, minibatch, choices, reduce)
    return Terms(
        _policy_term(new, minibatch._replace(advantage=advantage), choices, knobs, reduce),
        value_term(new.value, minibatch, choices, knobs, mask, value_scale, reduce),
        objective.entropy_loss(new.entropy, new.log_prob, mask, reduce),
        kl,
        None if new.ref_log_prob is None and new.ref_kl is None else reference_kl(new, choices, reduce),
        kl_std,
        None if minibatch.nll_weight is None else reduce(-new.log_prob * minibatch.nll_weight, mask),
    )


def _penalties(
    new: Evaluation, minibatch: Minibatch, choices: Objective, reduce: Reduce
) -> tuple[Tensor | None, Tensor | None]:
    """The KL that ``kl_coef`` weighs, and the one that ``kl_coef_std`` does; None for what is no term."""
    if not choices.adds_penalty:
        return None, None
    if not choices.splits_kl:
        return kl_divergence(new, minibatch, choices.kl_estimator, reduce), None
    assert minibatch.distribution is not None and new.distribution is not None, "kept wherever it is asked for"
    of_mean, of_deviation = split_kl(minibatch.distribution, new.distribution)
    return reduce(of_mean, new.mask), reduce(of_deviation, new.mask)


def _policy_term(
    new: Evaluation, minibatch: Minibatch, choices: Objective, knobs: KnobValues, reduce: Reduce
) -> Tensor:
    mask = new.mask
    inputs = {name: _surrogate_input(name, new, minibatch, choices, knobs) for name in choices.surrogate_inputs}
    log_ratio = fill_masked(new.log_prob - minibatch.action_log_prob, mask)
    advantage = fill_masked(minibatch.advantage, mask)
    return SURROGATES[choices.surrogate](log_ratio, advantage, **inputs, mask=mask, reduce=reduce)


def _surrogate_input(
    name: str, new: Evaluation, minibatch: Minibatch, choices: Objective, knobs: KnobValues
) -> Scalar | None:
    if name == "dual_clip":
        return choices.dual_clip
    if name == "action_log_prob":
        return fill_masked(minibatch.action_log_prob, new.mask)
    if name == "kl":
        return kl_divergence(new, minibatch, "exact", fill_masked)
    value: Scalar | None = getattr(knobs, name)
    return value


def value_term(
    value: Tensor,
    minibatch: Minibatch,
    choices: Objective,
    knobs: KnobValues,
    mask: Tensor | None = None,
    scale: Scalar | None = None,
    reduce: Reduce = masked_mean,
) -> Tensor:
    """The value's error, clipped or not; see ``ppo_terms`` for ``scale`` and ``reduce``."""
    target, old_value, error = minibatch.value_target, minibatch.state_value, choices.value_error
    if scale is not None:
        value, target, old_value = value / scale, target / scale, old_value / scale
    if knobs.clip_range_vf is None:
        return objective.value_loss(value, target, mask=mask, error=error, reduce=reduce)
    clipped_loss = VALUE_CLIPS[choices.value_clip]
    return clipped_loss(value, target, old_value, clip=knobs.clip_range_vf, mask=mask, error=error, reduce=reduce)


def kl_divergence(new: Evaluation, minibatch: Minibatch, estimator: str, reduce: Reduce = masked_mean) -> Tensor:
    """KL(old || new) in nats per action: exact, or by a sampled estimator."""
    if estimator != "exact":
        log_ratio = fill_masked(new.log_prob - minibatch.action_log_prob, new.mask)
        return KL_ESTIMATORS[estimator](log_ratio, mask=new.mask, reduce=reduce)
    assert minibatch.distribution is not None and new.distribution is not None, "kept wherever it is asked for"
    return reduce(exact_kl(minibatch.distribution, new.distribution), new.mask)


def reference_kl(new: Evaluation, choices: Objective, reduce: Reduce = masked_mean) -> Tensor:
    """KL(new || reference) in nats per action: the exact one where it is known, else from the log-probabilities.

    "exact" means k3 then: of the reference there are log-probabilities only. Shao et al. 2024 (GRPO), eq. 4.
    """
    if new.ref_kl is not None:
        return reduce(new.ref_kl, new.mask)
    assert new.ref_log_prob is not None
    name = choices.ref_kl_estimator or choices.kl_estimator
    log_ratio = fill_masked(new.ref_log_prob - new.log_prob, new.mask)
    return KL_ESTIMATORS["k3" if name == "exact" else name](log_ratio, mask=new.mask, reduce=reduce)
