"""Refill of dynamic sampling: groups whose scores are all equal are drawn again, up to a limit.

Groups are those of one step of the environments. Informative groups that a rollout has no room for wait for the next
one; there they count as drawn by another policy, as those of a sampler do (``importance.py``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from sb3_ppo_ext.language.training.groups import informative
from sb3_ppo_ext.language.training.importance import scored_again, with_all_rows

if TYPE_CHECKING:
    from sb3_ppo_ext.language.policies.language_model import LanguageModelPolicy

ROWS = ("actions", "rewards", "episode_starts", "masks", "values", "log_probs", "successes", "group_ids", "places")
SAMPLER, OBSERVATION = "sampler_log_probs", "observations/"

Group = dict[str, np.ndarray]  # name -> the rows [n, ...] of its responses
Draws = dict[str, Any]  # plain values, which a checkpoint holds
Buffer = Any  # a SequenceRolloutBuffer, whose module imports this one


def no_draws(waiting: list[Group]) -> Draws:
    """The draws of a rollout that begins while groups of the last one are ``waiting``."""
    for group in waiting:
        group["places"] = np.full_like(group["places"], -1)
    counts = {"steps": 0, "tokens": 0, "carried": len(waiting), "missing": 0}
    return {**counts, "waiting": waiting, "passed_over": [], "scores": [], "right": [], "differ": []}


def arrays_of(buffer: Buffer) -> dict[str, np.ndarray]:
    """Name -> array [T, N, ...] of all that a response has."""
    named = {name: vars(buffer)[name] for name in ROWS}
    if buffer.sampler_log_probs is not None:
        named[SAMPLER] = buffer.sampler_log_probs
    return {**named, **{f"{OBSERVATION}{name}": array for name, array in buffer.observations.items()}}


def rows_completed(buffer: Buffer) -> int:
    """How many rows of the buffer are complete with the step that stands at ``pos``: its groups are kept or left out.

    Beyond the limit the rest of the rollout is filled with the last groups that were left out.
    """
    draws, step = buffer.draws, buffer.pos
    assert draws is not None
    groups, differ = groups_of_step(buffer, step)
    draws["steps"] += 1
    draws["tokens"] += int(buffer.masks[step].sum())
    for group, differs in zip(groups, differ, strict=True):
        draws["waiting" if differs else "passed_over"].append(group)
    rows = 0
    if len(draws["waiting"]) >= len(groups):
        put(buffer, step, taken(draws, len(groups)))
        rows = 1
    if draws["steps"] >= buffer.settings.refill_limit * buffer.buffer_size:
        for later in range(step + rows, buffer.buffer_size):
            draws["missing"] += max(len(groups) - len(draws["waiting"]), 0)
            put(buffer, later, taken(draws, len(groups)))
        rows = buffer.buffer_size - step
    return rows


def groups_of_step(buffer: Buffer, step: int) -> tuple[list[Group], list[bool]]:
    """The groups of the responses in row ``step``, and which of them have scores that differ; counts their scores."""
    draws, ids, starts = buffer.draws, buffer.group_ids[step], buffer.episode_starts[step]
    assert draws is not None
    if not starts.all():
        raise ValueError('dynamic_sampling="refill": an episode has several responses; pass "mask"')
    buffer.places[step] = draws["steps"] * buffer.n_envs + np.arange(buffer.n_envs)
    ones = np.ones((1, buffer.n_envs))
    differs = informative(buffer.rewards[step][None], ids[None], ones, ones.astype(bool))[0]
    right = buffer.right()[step]
    names, counts = np.unique(ids, return_counts=True)
    if (counts != counts[0]).any():
        raise ValueError(f"the groups of a step have {counts.tolist()} responses: as many in each are needed")
    groups: list[Group] = []
    for name in names:
        rows = ids == name
        groups.append({key: array[step][rows] for key, array in arrays_of(buffer).items()})
        draws["scores"].append(buffer.rewards[step][rows])
        draws["right"].append(right[rows])
    differ = [bool(differs[ids == name][0]) for name in names]
    draws["differ"] += differ
    return groups, differ


def taken(draws: Draws, count: int) -> list[Group]:
    """``count`` groups: those that wait, the oldest first, and then the newest of those that were passed over."""
    waiting, passed_over = draws["waiting"], draws["passed_over"]
    first = [waiting.pop(0) for _ in range(min(count, len(waiting)))]
    return first + [passed_over.pop() for _ in range(count - len(first))]


def put(buffer: Buffer, step: int, groups: list[Group]) -> None:
    """Writes the groups into row ``step`` of the buffer."""
    if any(SAMPLER in group for group in groups):
        buffer.sampler_log_probs = with_all_rows(buffer.sampler_log_probs, buffer.masks.shape)
    for name, array in arrays_of(buffer).items():
        unknown = [np.full_like(group["log_probs"], np.nan) if name == SAMPLER else None for group in groups]
        array[step] = np.concatenate([group.get(name, other) for group, other in zip(groups, unknown, strict=True)])


def rescore_carried(buffer: Buffer, policy: LanguageModelPolicy, micro_batch_tokens: int | None) -> None:
    """Gives the groups of the last rollout the present policy's log-probabilities; those of their draw weigh them."""
    carried = np.flatnonzero(buffer.places.reshape(-1) < 0) if buffer.draws is not None else np.zeros(0, np.int64)
    if not len(carried):
        return
    observation = {name: buffer.flat(array)[carried] for name, array in buffer.observations.items()}
    tokens = policy.tokens(observation, buffer.flat(buffer.actions)[carried], buffer.flat(buffer.masks)[carried])
    log_probs, _ = scored_again(policy, tokens, micro_batch_tokens)
    buffer.sampler_log_probs = with_all_rows(buffer.sampler_log_probs, buffer.masks.shape)
    step, env = np.divmod(carried, buffer.n_envs)
    before, sampled = buffer.log_probs[step, env], buffer.sampler_log_probs[step, env]
    buffer.sampler_log_probs[step, env] = np.where(np.isnan(sampled), before, sampled)
    buffer.log_probs[step, env] = log_probs.cpu().numpy()


def refill_records(draws: Draws) -> dict[str, float]:
    """Key -> value over all responses that were drawn for this rollout, kept or not."""
    scores = [np.asarray(score, np.float64) for score in draws["scores"]]
    right = np.array([np.mean(of_group) for of_group in draws["right"]])
    differ = np.array(draws["differ"])
    return {
        "lm/score": float(np.concatenate(scores).mean()),
        "lm/score_std": float(np.concatenate(scores).std()),
        "groups/informative_fraction": float(differ.mean()),
        "groups/all_right": float((right == 1).mean()),
        "groups/all_wrong": float((right == 0).mean()),
        "groups/reward_std": float(np.mean([score.std(ddof=1) for score in scores])),
        "groups/generated_per_kept": len(scores) / max(int(differ.sum()), 1),
        "groups/carried": float(draws["carried"]),
        "groups/missing": float(draws["missing"]),
    }
