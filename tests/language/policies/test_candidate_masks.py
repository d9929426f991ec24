"""Actions that are not allowed: excluded when sampled, excluded by the same mask when trained."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import DummyVecEnv

from sb3_ppo_ext import PPOX
from sb3_ppo_ext.language import CandidatePolicy, TextObservation
from sb3_ppo_ext.objective.distributions import exact_kl, parameters_of
from tests.language import tiny
from tests.language.words import tokenizer

ACTIONS = ["left", "right", "stay here now", "go"]


class Gates(gym.Env[str, int]):
    """Five steps; at each one the gates that are open are told, and the greatest open number is worth 1."""

    observation_space = spaces.Text(60)
    action_space = spaces.Discrete(4)  # type: ignore[assignment]  # of numpy integers

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        super().reset(seed=seed)
        self.steps = 0
        return self._say(), {}

    def _say(self) -> str:
        self.open = self.np_random.random(4) < 0.5
        self.open[self.np_random.integers(4)] = True
        return " ".join(("good", "bad")[int(gate)] for gate in self.open)

    def action_masks(self) -> np.ndarray:
        return np.asarray(self.open)

    def step(self, action: int) -> tuple[str, float, bool, bool, dict[str, Any]]:
        assert self.open[action], "this gate is closed"
        reward = float(action == np.flatnonzero(self.open)[-1])
        self.steps += 1
        return self._say(), reward, self.steps == 5, False, {}


def masked_env() -> TextObservation:
    return TextObservation(Gates(), 60, action_masks=True)


def policy(**options: Any) -> CandidatePolicy:
    settings: dict[str, Any] = {"model": tiny.model, "tokenizer": tokenizer(), "candidates": ACTIONS, **options}
    space = masked_env().observation_space
    return CandidatePolicy(space, spaces.Discrete(4), lambda _: 1e-3, **settings)


def observation(*masks: list[int]) -> dict[str, torch.Tensor]:
    texts = TextObservation(Gates(), 60)
    text = np.stack([texts._bytes_of("the door is on your left") for _ in masks])
    return {"text": torch.from_numpy(text), "action_mask": torch.tensor(masks, dtype=torch.int8)}


def choice(mine: CandidatePolicy, seen: dict[str, torch.Tensor]) -> torch.distributions.Categorical:
    distribution = mine.get_distribution(seen).distribution
    assert isinstance(distribution, torch.distributions.Categorical)
    return distribution


def test_the_choice_is_among_what_is_allowed_and_as_if_there_were_nothing_else() -> None:
    mine, masks = policy(), ([1, 1, 1, 1], [1, 0, 0, 1], [0, 1, 0, 0])
    free, some, one = (choice(mine, observation(mask)) for mask in masks)
    assert some.probs[0, 1] == some.probs[0, 2] == 0 and one.probs[0].tolist() == [0, 1, 0, 0]
    kept = free.probs[0, [0, 3]]
    torch.testing.assert_close(some.probs[0, [0, 3]], kept / kept.sum())
    expected = torch.distributions.Categorical(probs=kept / kept.sum()).entropy()
    torch.testing.assert_close(some.entropy()[0], expected)
    assert one.entropy()[0] == 0


def test_the_kl_ignores_what_is_not_allowed_and_gradients_stay_finite() -> None:
    mine, seen = policy(), observation([1, 0, 0, 1], [0, 1, 0, 0])
    old = parameters_of(mine.get_distribution(seen))
    old = type(old)(old[0].detach(), *old[1:])
    with torch.no_grad():
        for parameter in mine.lm.parameters():
            parameter.mul_(1.05)
    distribution = mine.get_distribution(seen)
    kl = exact_kl(old, parameters_of(distribution))
    both = (old[0], choice(mine, seen).logits)
    p, q = (torch.distributions.Categorical(logits=logits[0, [0, 3]]) for logits in both)
    torch.testing.assert_close(kl, torch.stack((torch.distributions.kl_divergence(p, q), torch.zeros(()))))
    assert kl[0] > 1e-4
    (kl.sum() + choice(mine, seen).entropy().sum() + distribution.log_prob(torch.tensor([0, 1])).sum()).backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in mine.lm.parameters() if parameter.grad is not None)


@pytest.mark.parametrize("score", ["sum", "first_token"])
def test_what_was_sampled_under_a_mask_is_trained_under_it(score: str) -> None:
    env = DummyVecEnv([masked_env] * 4)
    kwargs = {"model": lambda: tiny.model(sharpness=3.0), "tokenizer": tokenizer(), "candidates": ACTIONS}
    model = PPOX(
        CandidatePolicy, env, n_steps=16, batch_size=32, n_epochs=1, learning_rate=0.0, seed=0, device="cpu",
        policy_kwargs={**kwargs, "score": score},
    )  # fmt: skip
    model.learn(64)  # a closed gate would fail in the environment
    buffer: Any = model.rollout_buffer
    masks = buffer.observations["action_mask"].reshape(-1, 4)
    assert 0.3 < masks.mean() < 0.9 and masks[np.arange(64), buffer.actions.flatten().astype(int)].all()
    # A ratio of 1 where the mask is the same; without it old and new would differ by log(sum of what is allowed).
    assert model.logger.name_to_value["train/ratio_max"] == pytest.approx(1, abs=1e-4)
    assert model.logger.name_to_value["train/kl_exact"] == pytest.approx(0, abs=1e-5)
    mean: Any
    mean, _ = evaluate_policy(model, env, n_eval_episodes=4, warn=False)
    assert mean >= 0  # greedy too keeps to what is open


def test_a_masked_environment_is_learned() -> None:
    env = DummyVecEnv([masked_env] * 8)
    kwargs = {"model": lambda: tiny.model(sharpness=3.0), "tokenizer": tokenizer(), "candidates": ACTIONS}
    model = PPOX(
        CandidatePolicy, env, n_steps=16, batch_size=64, n_epochs=4, learning_rate=1e-3, gamma=0.0, seed=0,
        device="cpu", policy_kwargs={**kwargs, "score": "word_mean"},
    )  # fmt: skip
    model.learn(128 * 12)
    # By chance E[1 / (1 + Binomial(3, 1/2))] = (1 - 2^-4) / (4 / 2) = 0.47; 8 seeds reached 0.91 to 0.95. 128 samples
    # at 0.9 have a standard error of 0.03.
    assert model.rollout_buffer.rewards.mean() > 0.75


def test_a_row_without_an_allowed_action_is_named() -> None:
    with pytest.raises(ValueError, match=r"row 1 of 2 has no allowed action; .* Its text is 'the door"):
        policy().logits_and_values(observation([1, 0, 0, 0], [0, 0, 0, 0]))
    # The value of a last state, in which nothing is done any more, needs none.
    assert policy().predict_values(observation([0, 0, 0, 0])).shape == (1, 1)


class Fixed(Gates):
    """Says what it is told to say."""

    masks: Any = None

    def action_masks(self) -> Any:
        return self.masks


@pytest.mark.parametrize("masks", [[True, False], [0.5, 1, 1, 1], None])
def test_masks_of_another_kind_are_refused(masks: Any) -> None:
    env = Fixed()
    env.masks = masks
    with pytest.raises(ValueError, match="True or False for each of the Discrete"):
        TextObservation(env, 60, action_masks=True).reset()


def test_environments_without_masks_are_refused() -> None:
    class Plain(gym.Env[str, int]):
        observation_space = spaces.Text(60)
        action_space = spaces.Discrete(4)  # type: ignore[assignment]  # of numpy integers

    with pytest.raises(ValueError, match=r"has no method action_masks\(\)"):
        TextObservation(Plain(), 60, action_masks=True)
    Plain.action_space = spaces.Box(0, 1, (2,))  # type: ignore[assignment]  # another kind
    with pytest.raises(ValueError, match="a Discrete one is needed"):
        TextObservation(Plain(), 60, action_masks=True)
    other = spaces.Dict({"text": spaces.Box(0, 255, (60,), np.uint8), "action_mask": spaces.Box(0, 1, (3,), np.int8)})
    with pytest.raises(ValueError, match=r"'action_mask' \[4\] is needed"):
        CandidatePolicy(other, spaces.Discrete(4), lambda _: 1e-3, tiny.model, tokenizer(), ACTIONS)
