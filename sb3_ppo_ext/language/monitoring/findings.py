"""Warnings about a rollout of responses: what is wrong, why it happens, and what to turn. Each is given once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

NEGATIVE_KL = -1.0  # nats per response
RARE_END = 0.05
COLLAPSED = 0.1  # of the first rollout's distinct-2
FAR_SAMPLER = 0.5  # of the tokens, by the effective number of the weighted ones
OVER_BUDGET = 3.0  # times the target
PATIENCE = 5  # rollouts in a row: a small one may have equal scores by chance

Records = Mapping[str, float]


def _negative_kl(records: Records, first: Records) -> str | None:
    kl = records.get("lm/kl_ref", 0.0)
    if kl >= NEGATIVE_KL:
        return None
    return (
        f"the KL to the reference is {kl:.3g} nats per response, which no true KL can be: the responses are not "
        "samples of the policy (a sampler of your own?), or the penalty rewards rare tokens. Compare lm/kl_ref_k3"
    )


def _never_ends(records: Records, first: Records) -> str | None:
    if records["lm/eos_rate"] >= RARE_END:
        return None
    return (
        f"only {records['lm/eos_rate']:.0%} of the responses end by themselves, the others are cut off at "
        "max_new_tokens: check that eos_token_id is the token this model ends with; else raise max_new_tokens, or set "
        "missing_eos_penalty in rollout_buffer_kwargs"
    )


def _no_spread(records: Records, first: Records) -> str | None:
    if records["lm/score_std"] > 0:
        return None
    return (
        f"all responses of a rollout have the score {records['lm/score']:.3g}: there is nothing to learn from. Check "
        "the reward function on some samples; if the task is only too hard, warm the model up on examples first"
    )


def _collapsed(records: Records, first: Records) -> str | None:
    if records["lm/distinct_2"] >= COLLAPSED * first["lm/distinct_2"]:
        return None
    return (
        f"the diversity of the responses (distinct-2) fell from {first['lm/distinct_2']:.2g} to "
        f"{records['lm/distinct_2']:.2g}: the policy repeats itself. Raise ref_kl_coef or ent_coef, lower "
        "learning_rate; read samples (SampleTable): the reward function may be exploited"
    )


def _far_sampler(records: Records, first: Records) -> str | None:
    fraction = records.get("sampler/effective_fraction", 1.0)
    if fraction >= FAR_SAMPLER:
        return None
    return (
        f"the sampler draws from another distribution than the policy's: weighed for that, its tokens are worth "
        f"{fraction:.0%} of as many of the policy's own. Check the generator's temperature and that it cuts "
        "nothing off (top-k, top-p), or sample in a finer precision"
    )


RULES: dict[str, Callable[[Records, Records], str | None]] = {
    "negative_kl": _negative_kl,
    "never_ends": _never_ends,
    "no_spread": _no_spread,
    "collapsed": _collapsed,
    "far_sampler": _far_sampler,
}


@dataclass
class Findings:
    """The memory of one policy's rules: its first rollout, and the rollouts in a row in which each has applied."""

    first: Records | None = None
    streaks: dict[str, int] = field(default_factory=dict)

    def of(self, records: Records, *, ref_kl: float | None, ref_kl_target: float | None) -> dict[str, str]:
        """Subject -> text of what has been wrong for ``PATIENCE`` rollouts in a row."""
        if self.first is None:
            self.first = dict(records)
        found = {subject: rule(records, self.first) for subject, rule in RULES.items()}
        if ref_kl is not None and ref_kl_target is not None and ref_kl > OVER_BUDGET * ref_kl_target:
            found["over_budget"] = _over_budget(ref_kl, ref_kl_target)
        self.streaks = {subject: self.streaks.get(subject, 0) + 1 for subject, text in found.items() if text}
        return {subject: text for subject, text in found.items() if text and self.streaks[subject] >= PATIENCE}


def _over_budget(ref_kl: float, target: float) -> str:
    return (
        f"the KL to the reference is {ref_kl:.3g}, {ref_kl / target:.1f} times the target of ref_kl_coef's controller: "
        "the coefficient grows too slowly for the policy. Let it start higher, lower the horizon of Proportional, or "
        "lower learning_rate"
    )


def refill_findings(records: Records) -> dict[str, str]:
    """Subject -> text, where the limit of refill has left a rollout without enough informative groups."""
    if not records.get("groups/missing"):
        return {}
    return {
        "refill": (
            f'dynamic_sampling="refill": refill_limit was reached and {records["groups/missing"]:.0f} groups of the '
            'rollout have no difference in score; they count as under "mask". Raise refill_limit, or take prompts of '
            f"another difficulty (groups/all_right is {records['groups/all_right']:.2f}, groups/all_wrong "
            f"{records['groups/all_wrong']:.2f})"
        )
    }
