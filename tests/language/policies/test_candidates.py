from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv

from sb3_ppo_ext import PPOX
from sb3_ppo_ext.language import CandidatePolicy, TextObservation
from sb3_ppo_ext.language.envs.text_observation import text_of
from tests.language import tiny
from tests.language.candidates import ACTIONS, policy
from tests.language.words import WORDS, tokenizer


class Doors(gym.Env[str, int]):
    """One step: the door is left or right, and going there is worth 1."""

    observation_space = spaces.Text(60)
    action_space = spaces.Discrete(3)  # type: ignore[assignment]  # of numpy integers

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        super().reset(seed=seed)
        self.side = int(self.np_random.integers(2))
        return f"the door is on your {('left', 'right')[self.side]}", {}

    def step(self, action: int) -> tuple[str, float, bool, bool, dict[str, Any]]:
        return "here", float(action == self.side), True, False, {}


def observations(*texts: str) -> torch.Tensor:
    wrapper = TextObservation(Doors(), 60)
    return torch.from_numpy(np.stack([wrapper.observation(text) for text in texts]))


def plain_log_p(mine: CandidatePolicy, ids: torch.Tensor) -> torch.Tensor:
    """By the plain model [S, V], of the tokenizer's tokens alone."""
    logits: torch.Tensor = mine.lm.plain(input_ids=ids[None]).logits[0, :, : len(WORDS) + 3]
    return logits.log_softmax(-1)


@pytest.mark.parametrize("lora", [None, {"r": 2, "init_lora_weights": False}])
@pytest.mark.parametrize("score", ["sum", "token_mean", "word_mean", "first_token"])
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_scores_are_those_of_each_text_by_itself(family: str, score: str, lora: dict[str, Any] | None) -> None:
    candidates = ["left, now", "right", "stay here now"]  # 3, 1 and 3 tokens; 2, 1 and 3 words
    mine, texts = policy(family, score=score, lora=lora, candidates=candidates), ["the door is on your left", "here"]
    logits, _ = mine.logits_and_values(observations(*texts))
    for row, text in enumerate(texts):
        for column, candidate in enumerate(candidates):
            prompt, action = (tokenizer()(one, return_tensors="pt")["input_ids"][0] for one in (text, candidate))
            log_p = plain_log_p(mine, torch.cat((prompt, action)))
            each = log_p[len(prompt) - 1 : -1].gather(-1, action[:, None])[:, 0]
            by_word = each.sum() / [2, 1, 3][column]
            expected = {"sum": each.sum(), "token_mean": each.mean(), "word_mean": by_word, "first_token": each[0]}
            torch.testing.assert_close(logits[row, column], expected[score], rtol=0, atol=5e-5)


@pytest.mark.parametrize("begins", [False, True])
def test_what_a_tokenizer_puts_around_texts_is_not_among_the_candidates_nor_after_the_prompt(begins: bool) -> None:
    """One that puts "<bos>" before every text has it before the prompt alone."""
    mine, plain = policy(tokenizer=tokenizer(begins=begins, ends=True)), policy(prompt="<bos> {}" if begins else "{}")
    there = observations("the door is on your left", "here")
    torch.testing.assert_close(mine.logits_and_values(there)[0], plain.logits_and_values(there)[0], rtol=0, atol=0)
    with pytest.raises(ValueError, match="candidate 1 is empty"):
        policy(candidates=["go", "", "stay"], tokenizer=tokenizer(begins=begins, ends=True))


def test_gradients_flow_through_the_cache() -> None:
    """Equal to those of texts read by themselves, without a cache."""
    mine, text = policy(), "the door is on your left"
    mine.logits_and_values(observations(text))[0].sum().backward()
    cached = [parameter.grad.clone() for parameter in mine.lm.parameters() if parameter.grad is not None]
    mine.zero_grad()
    total = torch.zeros(())
    for candidate in ACTIONS:
        prompt, action = (tokenizer()(one, return_tensors="pt")["input_ids"][0] for one in (text, candidate))
        log_p = plain_log_p(mine, torch.cat((prompt, action)))
        total = total + log_p[len(prompt) - 1 : -1].gather(-1, action[:, None]).sum()
    total.backward()
    for one, parameter in zip(cached, mine.lm.parameters(), strict=True):
        torch.testing.assert_close(one, parameter.grad, rtol=1e-3, atol=1e-3)


def test_a_text_environment_is_learned_and_continues_after_loading(tmp_path: Path) -> None:
    env = DummyVecEnv([lambda: TextObservation(Doors(), 60)] * 8)
    model = PPOX(
        CandidatePolicy, env, n_steps=8, batch_size=64, n_epochs=4, learning_rate=1e-3, seed=0, device="cpu",
        policy_kwargs={"model": lambda: tiny.model(sharpness=3.0), "tokenizer": tokenizer(), "candidates": ACTIONS,
                       "score": "token_mean"},
    )  # fmt: skip
    model.learn(64 * 20)
    both = observations("the door is on your left", "the door is on your right")
    assert isinstance(model.policy, CandidatePolicy)
    distribution = model.policy.get_distribution(both).distribution
    assert isinstance(distribution, torch.distributions.Categorical)
    # 1 / 3 by chance; 8 seeds reached 0.86 to 0.88 for the door that was harder to learn.
    assert distribution.probs[[0, 1], [0, 1]].min() > 0.7
    assert model.logger.name_to_value["train/kl_exact"] >= 0  # the exact one, of a categorical choice
    model.save(tmp_path / "doors")
    loaded = PPOX.load(tmp_path / "doors", env=env)
    for one in (model, loaded):
        assert one.predict(both.numpy(), deterministic=True)[0].tolist() == [0, 1]


def test_the_observation_is_read_once_for_all_candidates(monkeypatch: pytest.MonkeyPatch) -> None:
    mine, shapes = policy(), []
    hidden = mine.lm.hidden

    def recorded(ids: torch.Tensor, mask: torch.Tensor, **rest: Any) -> torch.Tensor:
        shapes.append(tuple(ids.shape))
        return hidden(ids, mask, **rest)

    monkeypatch.setattr(mine.lm, "hidden", recorded)
    mine.logits_and_values(observations("the door is on your left", "here"))
    # Two prompts of up to 6 tokens; then 3 candidates of up to 3 after each, but their last, which leads nowhere.
    assert shapes == [(2, 6), (2 * 3, 2)]


@pytest.mark.parametrize("lora", [None, {"r": 2, "init_lora_weights": False}])
def test_loading_and_continuing_is_never_having_stopped(lora: dict[str, Any] | None, tmp_path: Path) -> None:
    def fresh() -> PPOX:
        kwargs = {"model": tiny.model, "tokenizer": tokenizer(), "candidates": ACTIONS, "lora": lora}
        env = DummyVecEnv([lambda: TextObservation(Doors(), 60)] * 4)
        return PPOX(
            CandidatePolicy, env, n_steps=4, batch_size=8, n_epochs=2, ent_coef="linear:0.01:0", seed=0, device="cpu",
            policy_kwargs=kwargs,
        )  # fmt: skip

    whole = fresh()
    whole.learn(16)
    whole.learn(16, reset_num_timesteps=False)
    first = fresh()
    first.learn(16)
    first.save(tmp_path / "doors")
    torch.manual_seed(99)
    np.random.seed(99)
    loaded = PPOX.load(tmp_path / "doors", env=first.get_env(), force_reset=False)
    loaded.learn(16, reset_num_timesteps=False)
    for name, tensor in whole.policy.state_dict().items():
        torch.testing.assert_close(loaded.policy.state_dict()[name], tensor, rtol=0, atol=0, msg=name)
    assert lora is None or all("lora_" in name or name.startswith("critic.") for name in whole.policy.state_dict())


def test_a_prompt_longer_than_the_model_reads_is_refused() -> None:
    with pytest.raises(ValueError, match="row 1 has 62 tokens, the longest candidate 3, and the model reads 64"):
        policy(prompt="go " * 61 + "{}").prompt_tokens(observations("", "here"))


def test_texts_survive_as_bytes_in_other_processes() -> None:
    text = "the dóor is 左"
    assert text_of(TextObservation(Doors(), 60).observation(text)) == text
    env = SubprocVecEnv([lambda: TextObservation(Doors(), 60)], start_method="fork")
    try:
        env.seed(0)
        assert text_of(np.asarray(env.reset())[0]).startswith("the door is on your")
    finally:
        env.close()


def test_texts_that_are_too_long_are_refused_or_cut_at_a_character() -> None:
    with pytest.raises(ValueError, match="has 4 bytes, max_bytes=3"):
        TextObservation(Doors(), 3).observation("aé1")
    cutting = TextObservation(Doors(), 2, long_texts="cut")
    assert text_of(cutting.observation("aé1")) == "1" and cutting.n_cut == 1
    with pytest.raises(ValueError, match="NUL"):
        cutting.observation("\0")


BAD: dict[str, dict[str, Any]] = {
    "2 candidates for the action space": {"candidates": ["left", "right"]},
    "two are the same": {"candidates": ["left", "left", "stay"]},
    "two candidates begin with the same token": {"score": "first_token"},
    "score='best'": {"score": "best"},
    "it needs a {}": {"prompt": "where?"},
}


@pytest.mark.parametrize("message", BAD)
def test_bad_arguments_are_refused(message: str) -> None:
    with pytest.raises(ValueError, match=message):
        policy(**BAD[message])
