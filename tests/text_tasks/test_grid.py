from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest

pytest.importorskip("transformers")

from text_tasks import grid
from text_tasks.grid import MAX_BYTES, MAX_STEPS, Grid
from text_tasks.scenes import ACTIONS, THINGS, scene, wanderings

from sb3_ppo_ext.language.envs.text_observation import text_of

NORTH, SOUTH, EAST, WEST = range(4)


def placed() -> Grid:
    env = Grid()
    env.reset(seed=0)
    env.begin("red ball", {"green key": (1, 0), "red ball": (2, -1)})
    return env


def test_a_sentence_says_where_things_lie() -> None:
    assert placed().text() == "goal red ball : green key 1 north : red ball 2 north 1 west : go"


def test_walking_moves_things_the_other_way_and_the_goal_ends_it() -> None:
    env = placed()
    text, reward, over, truncated, info = env.step(WEST)
    assert text == "goal red ball : green key 1 north 1 east : red ball 2 north : go"
    assert (reward, over, truncated, info) == (0.0, False, False, {})
    env.step(NORTH)
    text, reward, over, truncated, info = env.step(NORTH)
    assert text == "goal red ball : green key 1 south 1 east : red ball here : go"
    assert (reward, over, truncated, info) == (1.0, True, False, {"is_success": True})


def test_the_other_thing_ends_it_without_a_reward() -> None:
    _, reward, over, truncated, info = placed().step(NORTH)
    assert (reward, over, truncated, info) == (0.0, True, False, {"is_success": False})


def test_time_runs_out() -> None:
    env = placed()
    steps = [env.step(SOUTH) for _ in range(MAX_STEPS)]
    assert [step[2:4] for step in steps] == [(False, False)] * (MAX_STEPS - 1) + [(False, True)]
    assert steps[-1][4] == {"is_success": False}
    assert len(steps[-1][0].encode()) < MAX_BYTES  # 10 north takes a byte more


def steps_needed(inner: Grid) -> int:
    """The number of steps of the shortest way to the goal around the other thing."""
    goal = inner.things[inner.goal]
    (other,) = (position for name, position in inner.things.items() if name != inner.goal)
    reached, steps = {(0, 0)}, 0
    while goal not in reached:
        reached |= {(y + north, x + east) for y, x in reached for north, east in ACTIONS.values()} - {other}
        steps += 1
    return steps


def test_the_goal_can_always_be_reached_in_time_and_seeds_repeat() -> None:
    env = gym.make("TextGrid-v0")
    inner = env.unwrapped
    assert isinstance(inner, Grid)
    needed = []
    for seed in range(300):
        observation, _ = env.reset(seed=seed)
        np.testing.assert_array_equal(observation, env.reset(seed=seed)[0])
        assert text_of(observation) == inner.text()
        needed.append(steps_needed(inner))
    assert min(needed) == 1 and max(needed) <= 4 == MAX_STEPS // 2


def test_the_corpus_has_no_answer_of_the_task() -> None:
    lines = wanderings()
    assert not any(thing in line for thing in THINGS for line in lines)
    steps = [line for line in lines if " go " in line]
    assert len(steps) == len(lines) // 2
    for line in steps:  # one thing, named as the goal, before the step and after it
        goal, before, action, after = line.split(" : ")
        name = goal.removeprefix("goal ")
        assert before.startswith(name) and after.startswith(name) and action.removeprefix("go ") in ACTIONS
    for line in set(lines) - set(steps):
        assert not line.split()[-1].startswith("go") and line.count(" : ") == 3


def test_a_step_of_the_corpus_is_sensible_as_often_as_it_says() -> None:
    right, expected, count = 0, 0.0, 0
    for line in wanderings():
        if " go " in line:
            words = line.split(" : ")[1].split()[2:]
            directions = words[1::2]
            right += line.split(" : ")[2].removeprefix("go ") in directions
            expected += 0.6 + 0.4 * len(directions) / 4
            count += 1
    assert right / count == pytest.approx(expected / count, abs=0.02)  # a standard error of 0.005


def test_names_are_one_token_each_so_that_the_first_token_is_the_action() -> None:
    tokenizer = grid.MODEL.tokenizer()
    assert [len(tokenizer(f" {name}")["input_ids"]) for name in ACTIONS] == [1] * len(ACTIONS)
    sentence = scene("red ball", {"green key": (1, 0), "red ball": (2, -1)})
    assert tokenizer.decode(tokenizer(sentence)["input_ids"]) == sentence
    assert len(tokenizer(sentence)["input_ids"]) == len(sentence.split())
