"""The charts of a run's dashboard in their order, each with a title and the scalars in it."""

from __future__ import annotations

from collections.abc import Collection

from sb3_ppo_ext.knobs.table import KNOBS

# Title -> scalars drawn together; three to a row on a wide screen, each row a subject. The table of knobs adds each
# knob to the chart it names.
_CHARTS: dict[str, tuple[str, ...]] = {
    "Return of an episode": ("rollout/ep_rew_mean", "eval/mean_reward"),
    "Length of an episode (steps)": ("rollout/ep_len_mean", "eval/mean_ep_length"),
    "Speed (steps per second)": ("time/fps",),
    "KL and its target (nats per action)": ("train/kl_exact", "train/approx_kl", "train/kl_target"),
    "Clip range, and samples outside it": ("train/clip_fraction_low", "train/clip_fraction_high"),
    "Largest ratio, new / old probability": ("train/ratio_max",),
    "Learning rate": (),
    "Gradient norm (before clipping)": ("train/grad_norm",),
    "Weight of the KL penalty": (),
    "Policy loss": ("train/policy_gradient_loss",),
    "Entropy loss (nats, negative)": ("train/entropy_loss",),
    "Weight of the entropy": (),
    "Value loss": ("train/value_loss",),
    "Explained variance of returns (1: exact)": ("train/explained_variance",),
    "Weight of the value loss": (),
}

# Charts of what only some runs record.
_OPTIONAL_CHARTS: dict[str, tuple[str, ...]] = {
    "Standard deviation of actions": ("train/std",),
    "Value normaliser (reward units)": ("train/value_mean", "train/value_scale"),
    "Clip range of the value": (),
    "Epoch at which target_kl stopped": ("train/early_stop_epoch",),
    "Rate of success": ("rollout/success_rate", "eval/success_rate"),
}


def _with_knobs(
    charts: dict[str, tuple[str, ...]], others: dict[str, tuple[str, ...]], *, optional: bool
) -> dict[str, tuple[str, ...]]:
    """``charts`` with the knobs that name one of them first in it; a knob that names a chart of its own is last."""
    of_knobs: dict[str, tuple[str, ...]] = {}
    for knob in KNOBS.values():
        if knob.chart in charts or (knob.chart not in others and knob.optional is optional):
            of_knobs[knob.chart] = (*of_knobs.get(knob.chart, ()), f"train/{knob.name}")
    return {title: (*of_knobs.get(title, ()), *charts.get(title, ())) for title in (*charts, *of_knobs)}


# A chart is the same in every run: TensorBoard merges the layouts of all runs and drops equal charts. The optional
# charts are left out where nothing of theirs is recorded yet.
CHARTS = _with_knobs(_CHARTS, _OPTIONAL_CHARTS, optional=False)
OPTIONAL_CHARTS = _with_knobs(_OPTIONAL_CHARTS, _CHARTS, optional=True)

# The first charts of language models: the quantities they are trained for.
LANGUAGE_CHARTS: dict[str, tuple[str, ...]] = {
    "Score, its spread, and less the KL penalty": ("lm/score", "lm/score_std", "lm/rlhf_reward"),
    "KL to the reference (nats per response)": ("lm/kl_ref", "lm/kl_ref_k3"),
    "Length of a response (tokens)": ("lm/response_length",),
    "Responses that end by themselves": ("lm/eos_rate",),
    "Entropy of the sampled tokens (nats)": ("lm/entropy_sampled",),
    "Different pairs of tokens (distinct-2)": ("lm/distinct_2",),
    "Response tokens per second": (
        "time/tokens_per_second",
        "time/generation_tokens_per_second",
        "time/scoring_tokens_per_second",
        "time/reference_tokens_per_second",
        "time/training_tokens_per_second",
    ),
}

# Titles in which a step is a response and an action a token.
LANGUAGE_TITLES: dict[str, str] = {
    "Length of an episode (steps)": "Length of an episode (tokens; under Monitor: responses)",
    "Speed (steps per second)": "Speed (responses per second)",
    "KL and its target (nats per action)": "KL of an update and its target (nats per token)",
    "Clip range, and samples outside it": "Clip range, and tokens outside it",
    "Largest ratio, new / old probability": "Largest ratio of a token, new / old probability",
    "Entropy loss (nats, negative)": "Entropy loss (nats per token, negative)",
}


def charts_of(recorded: Collection[str]) -> dict[str, tuple[str, ...]]:
    """The charts, in their order, of a run that has recorded these scalars."""
    language, optional = (
        {title: tags for title, tags in charts.items() if any(tag in recorded for tag in tags)}
        for charts in (LANGUAGE_CHARTS, OPTIONAL_CHARTS)
    )
    titles = LANGUAGE_TITLES if language else {}
    return language | {titles.get(title, title): tags for title, tags in CHARTS.items()} | optional
