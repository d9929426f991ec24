"""Environments of several processes have one order of prompts, each its part of it."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_ppo_ext.checkpoints.environments import Piece, restore_divided, save_environments
from sb3_ppo_ext.distributed.processes import OneProcess
from sb3_ppo_ext.distributed.shards import Shards
from sb3_ppo_ext.language import PromptVecEnv, conversation_vec_env
from sb3_ppo_ext.language.envs.shares import share_order
from tests.distributed.language_jobs import Counting
from tests.language import chats, setups
from tests.language.conversations import Conversation


class Second(OneProcess):
    """The second of two processes, and what the first sends to it."""

    rank, count = 1, 2

    def __init__(self, *of_first: Any) -> None:
        self.of_first = list(of_first)

    def objects(self, value: Any) -> list[Any]:
        return [self.of_first.pop(0), value]


def second_of(env: Any, first: dict[str, Any]) -> Any:
    share_order(
        env,
        Shards(2, range(1, 2), 0),
        Second({"all prompts, which every process passes in one order": first.get("prompts", "none")}, first),
    )
    return env


def steps(env: PromptVecEnv, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Prompts and groups [count, N] from a reset on."""
    env.reset()
    rows, groups = [env.rows], [env.group_ids]
    for _ in range(count - 1):
        env.step(np.full((env.num_envs, setups.LENGTH), 3))
        rows.append(env.rows)
        groups.append(env.group_ids)
    return np.stack(rows), np.stack(groups)


@pytest.mark.parametrize("seeded", [True, False])
def test_two_halves_take_the_prompts_of_the_whole(seeded: bool) -> None:
    whole, first, second = setups.env(8, group_size=2), setups.env(4, group_size=2), setups.env(4, group_size=2)
    for env in (first, whole):
        env.order.seed(5)
    first.take_share(0, 8, first.order_state())
    second_of(second, first.order_state())
    if seeded:
        whole.seed(7), first.seed(7), second.seed(7 + 4)  # by the index of the first environment
    rows, groups = steps(whole, 3)
    halves = [steps(env, 3) for env in (first, second)]
    assert (np.concatenate([half[0] for half in halves], axis=1) == rows).all()
    assert (np.concatenate([half[1] for half in halves], axis=1) == groups).all()
    # Four prompts, in groups of two: each step takes all of them.
    assert (np.sort(rows[:, ::2], axis=1) == np.arange(4)).all()


def test_no_group_has_the_number_of_another_after_one_process_was_stopped() -> None:
    first, second = setups.env(4), setups.env(4)
    steps(second, 3)
    second_of(second, first.order_state())
    assert second.n_groups == 12 and second.order_state()["order"]["left"] == []  # the order is that of the first


def test_other_prompts_are_refused() -> None:
    first = PromptVecEnv([[3, 4]], setups.low_ids, n_envs=2, max_new_tokens=6, vocab_size=24, eos_token_id=1)
    with pytest.raises(ValueError, match=r"all prompts, .*: 1 with the checksum .* on rank 0; 4 with"):
        second_of(setups.env(2), first.order_state())


def test_conversations_count_from_one_seed() -> None:
    make = partial(Counting, chats.tokenizer(), max_new_tokens=4, max_prompt_length=80)
    whole, first, second = (conversation_vec_env(make, n_envs, group_size=2) for n_envs in (4, 2, 2))
    state = whole.env_method("order_state", indices=0)[0]
    first.env_method("take_share", 0, 4, state)
    second_of(second, state)
    observations: list[Any] = [env.reset() for env in (whole, first, second)]
    ids = [observation["input_ids"] for observation in observations]
    assert (np.concatenate(ids[1:]) == ids[0]).all() and (ids[0][0] != ids[0][2]).any()
    assert whole.get_attr("group_id") == first.get_attr("group_id") + second.get_attr("group_id")


def test_environments_that_stand_alone_have_nothing_to_share() -> None:
    env = second_of(DummyVecEnv([Conversation] * 2), {"prompts": "none"})
    assert env.num_envs == 2


def test_a_checkpoint_of_two_is_gone_on_with_by_one_and_by_two() -> None:
    whole, first, second = (setups.env(n_envs, group_size=2) for n_envs in (8, 4, 4))
    first.order.seed(5)
    whole.take_share(0, 8, first.order_state())
    first.take_share(0, 8, first.order_state())
    second_of(second, first.order_state())
    for env in (whole, first, second):
        steps(env, 3)
    pieces = [Piece(save_environments(env), range(1), range(4)) for env in (first, second)]
    joined = setups.env(8, group_size=2)
    restored = restore_divided(joined, pieces)
    assert not restored.new_episodes and not restored
    assert (joined.rows == whole.rows).all() and (joined.group_ids == whole.group_ids).all()
    half = setups.env(4, group_size=2)
    restore_divided(half, [Piece(save_environments(whole), range(1, 2), range(4, 8))])
    half.take_share(4, 8, half.order_state())
    answer = np.full((8, setups.LENGTH), 3)
    for env in (whole, joined, half):
        env.step(answer[: env.num_envs])
    assert (joined.rows == whole.rows).all() and (half.rows == whole.rows[4:]).all()
