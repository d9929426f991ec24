"""Numbers that are not finite are named: tensor, step, environment, value, rollout, knobs, remedy."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer

from sb3_ppo_ext import PPOX
from sb3_ppo_ext.monitoring.divergence import (
    DivergedError,
    check_rollout,
    check_update,
    explain_policy_failure,
    first_bad,
)

NAN, INF = float("nan"), float("inf")
KNOBS = {"learning_rate": 3e-4, "clip_range": 0.2}
PIXELS = spaces.Box(0, 255, (2, 2), np.uint8)
BOX = spaces.Box(-INF, INF, (3,), np.float32)


def collected(observation_space: spaces.Space[Any] = BOX) -> Any:
    """Four steps of two environments, all finite."""
    of_dicts = isinstance(observation_space, spaces.Dict)
    make: Any = DictRolloutBuffer if of_dicts else RolloutBuffer
    buffer = make(4, observation_space, BOX, device="cpu", n_envs=2)
    for _ in range(4):
        observations = [observation_space.sample() for _ in range(2)]
        batch = (
            {key: np.stack([one[key] for one in observations]) for key in observations[0]}
            if of_dicts
            else np.stack(observations)
        )
        numbers = torch.randn(2, 2)
        buffer.add(batch, np.zeros((2, 3)), np.ones(2), np.zeros(2), numbers[0], numbers[1])
    buffer.compute_returns_and_advantage(torch.zeros(2), np.zeros(2))
    return buffer


def complaint(buffer: Any, **more: Any) -> str:
    with pytest.raises(DivergedError) as caught:
        check_rollout(buffer, iteration=7, knobs=KNOBS, **more)
    text = str(caught.value)
    assert text.startswith("Rollout 7: ") and text.endswith("Knobs: learning_rate=0.0003, clip_range=0.2.")
    assert text.count("Rollout 7") == 1
    return text


def test_a_finite_rollout_passes_whatever_its_size() -> None:
    buffer = collected()
    check_rollout(buffer, iteration=1, knobs=KNOBS)
    buffer.rewards[:] = 3e38  # the sum overflows float32, the numbers do not
    check_rollout(buffer, iteration=1, knobs=KNOBS)


@pytest.mark.parametrize(
    ("name", "place", "remedy"),
    [
        ("rewards", (2, 1), "terminal_observation"),
        ("actions", (2, 1, 0), "diverged"),
        ("values", (2, 1), "diverged"),
        ("log_probs", (2, 1), "diverged"),
        ("advantages", (2, 1), "scale the rewards"),
    ],
)
def test_the_tensor_its_place_and_a_remedy_are_named(name: str, place: tuple[int, ...], remedy: str) -> None:
    buffer = collected()
    getattr(buffer, name)[place] = -INF
    getattr(buffer, name)[3, 0] = NAN
    text = complaint(buffer)
    size, bad = (24, 4) if name == "actions" else (8, 2)
    assert f"{name} at step 2, env 1" in text and f"is -inf ({bad} of {size} numbers are not finite)" in text
    assert remedy in text


def test_an_observation_is_blamed_before_what_the_policy_made_of_it() -> None:
    buffer = collected()
    buffer.observations[1, 0, 2] = NAN
    buffer.values[1, 0] = NAN
    buffer.actions[1:, 0] = NAN
    buffer.advantages[:, 0] = NAN
    text = complaint(buffer)
    assert "observations at step 1, env 0, entry 2 is nan (1 of 24" in text and "VecCheckNan" in text


def test_the_earliest_step_is_blamed() -> None:
    buffer = collected()
    buffer.rewards[1, 1] = NAN  # VecNormalize would then make NaN of the observations that follow
    buffer.observations[2, :, :] = NAN
    buffer.values[2:, :] = NAN
    assert "rewards at step 1, env 1 is nan" in complaint(buffer)


def test_a_dict_observation_is_named_by_its_key() -> None:
    buffer = collected(spaces.Dict({"image": PIXELS, "speed": BOX}))
    buffer.observations["speed"][3, 1, 0] = INF
    buffer.log_probs[3, 1] = NAN
    assert "observations['speed'] at step 3, env 1, entry 0 is inf" in complaint(buffer)


def test_an_observation_that_the_policy_can_read_is_no_error() -> None:
    buffer = collected()
    buffer.observations[0, 0, 0] = NAN  # its own way to say "not seen"
    check_rollout(buffer, iteration=1, knobs=KNOBS)
    buffer.rewards[2, 0] = NAN
    assert "rewards at step 2, env 0" in complaint(buffer)


def test_the_observation_after_the_last_step_is_found_through_the_advantages() -> None:
    buffer = collected()
    buffer.advantages[:, 1] = NAN
    last = np.zeros((2, 3), np.float32)
    assert "advantages at step 0, env 1" in complaint(buffer, last_observation=last)
    last[1, 2] = NAN
    text = complaint(buffer, last_observation=last)
    assert "the observation after the last step, at env 1, entry 2 is nan" in text


def test_a_buffer_that_was_already_read_has_the_same_places() -> None:
    buffer = collected()
    buffer.observations[3, 0, 1] = NAN
    buffer.values[3, 0] = NAN
    buffer.rewards[3, 1] = NAN
    list(buffer.get(8))
    assert "observations at step 3, env 0, entry 1" in complaint(buffer)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tensors_are_searched_like_arrays(dtype: torch.dtype) -> None:
    tensor = torch.zeros(3, 4, dtype=dtype)
    assert first_bad(tensor) is None and first_bad(torch.ones(3, dtype=torch.int64)) is None
    tensor[1, 2] = NAN
    bad = first_bad(tensor)
    assert bad is not None and bad.index == (1, 2) and bad.count == 1 and bad.size == 12


@pytest.mark.parametrize(
    ("values", "remedy"),
    [
        ({"loss": NAN, "value_loss": INF, "grad_norm": NAN}, "normalize_value"),
        ({"train/approx_kl": INF, "train/loss": 1.0}, "target_kl"),
        ({"loss": NAN, "grad_norm": NAN}, "scale of rewards"),
        ({"loss": 1.0, "grad_norm": INF}, "max_grad_norm cannot mend it"),
        ({"ratio_max": INF}, "learning_rate"),
    ],
)
def test_an_update_that_is_not_finite_says_what_and_where(values: dict[str, float], remedy: str) -> None:
    with pytest.raises(DivergedError) as caught:
        check_update(values, iteration=3, epoch=2, knobs=KNOBS)
    text = str(caught.value)
    bad = [name.removeprefix("train/") for name, value in values.items() if not np.isfinite(value)]
    assert text.startswith("Rollout 3, epoch 2: " + f"{bad[0]} is ") and all(f"{name} is" in text for name in bad)
    assert remedy in text and "clip_range=0.2" in text
    if "loss" in values and values["loss"] == 1.0:
        assert " loss is" not in text


def test_a_finite_update_passes() -> None:
    check_update({"loss": -1e30, "approx_kl": 0.0}, iteration=3, epoch=2, knobs=KNOBS)


def test_an_infinite_observation_behind_a_bad_gradient_is_named() -> None:
    buffer = collected()
    buffer.observations[2, 0, 1] = INF  # tanh made 1 of it
    with pytest.raises(DivergedError, match=r"grad_norm is nan\. observations at step 2, env 0, entry 1 is inf"):
        check_update({"grad_norm": NAN}, iteration=1, epoch=0, knobs=KNOBS, buffer=buffer)


class Broken(gym.Env[Any, Any]):
    """Observations turn NaN after some steps."""

    action_space = spaces.Discrete(2)

    def __init__(self, as_dict: bool, good_steps: int) -> None:
        box = spaces.Box(-1, 1, (3,), np.float32)
        self.observation_space = spaces.Dict({"a": box, "b": box}) if as_dict else box
        self.as_dict, self.left = as_dict, good_steps

    def _observation(self) -> Any:
        good, bad = np.zeros(3, np.float32), np.array([0, NAN if self.left < 0 else 0, 0], np.float32)
        return {"a": good, "b": bad} if self.as_dict else bad

    def reset(self, **_: Any) -> tuple[Any, dict[str, Any]]:
        return self._observation(), {}

    def step(self, _: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.left -= 1
        return self._observation(), 0.0, False, False, {}


def failing(model: PPOX) -> DivergedError | None:
    """What is said about the ValueError that collecting raises."""
    with torch.no_grad(), pytest.raises(ValueError) as caught:
        assert model._last_obs is not None
        model.policy(model.policy.obs_to_tensor(model._last_obs)[0])
    observation: Any = model._last_obs
    return explain_policy_failure(caught.value, observation, model.policy, iteration=2, knobs=KNOBS)


@pytest.mark.parametrize(("as_dict", "name"), [(False, "the observation"), (True, "the observation['b']")])
def test_a_policy_that_stops_at_a_nan_observation_says_which(as_dict: bool, name: str) -> None:
    policy = "MultiInputPolicy" if as_dict else "MlpPolicy"
    model = PPOX(policy, Broken(as_dict, good_steps=5), n_steps=8, batch_size=8, n_epochs=1)
    with pytest.raises(ValueError):
        model.learn(8)
    explained = failing(model)
    text = str(explained)
    assert isinstance(explained, DivergedError) and text.startswith(f"Rollout 2: {name} given to the policy, at env 0")
    assert "entry 1 is nan" in text and "VecCheckNan" in text and "Expected parameter" in text


def test_a_policy_that_stops_at_a_nan_parameter_says_which() -> None:
    model = PPOX("MlpPolicy", Broken(False, good_steps=99), n_steps=8, batch_size=8, n_epochs=1)
    model.learn(8)
    with torch.no_grad():
        model.policy.get_parameter("action_net.weight")[1, 5] = NAN
    text = str(failing(model))
    assert "the policy's action_net.weight at (1, 5) is nan (1 of 128" in text and "last good model" in text


def test_a_failure_without_a_nan_is_not_explained() -> None:
    model = PPOX("MlpPolicy", Broken(False, good_steps=99), n_steps=8, batch_size=8, n_epochs=1)
    observation = np.zeros((1, 3), np.float32)
    assert explain_policy_failure(ValueError("x"), observation, model.policy, iteration=1, knobs=KNOBS) is None
