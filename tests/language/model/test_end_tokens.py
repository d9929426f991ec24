"""What ends a text: one token or several, wherever an end is asked for."""

from __future__ import annotations

import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from sb3_ppo_ext import PPOX
from sb3_ppo_ext.language import LanguageModelPolicy, PromptEnv, PromptVecEnv, ResponseSpace, SequenceRolloutBuffer
from sb3_ppo_ext.language.envs.spaces import prompt_space
from sb3_ppo_ext.language.model.end_tokens import end_tokens
from sb3_ppo_ext.language.model.generation import Decoder, generate
from sb3_ppo_ext.monitoring.diagnostics import TrainingWarning
from tests.language import setups, tiny
from tests.language.words import tokenizer

BOTH = [1, 8]
DRAWN = np.array([[5, 8, 1, 5], [1, 8, 5, 5], [5, 6, 7, 8], [5, 6, 7, 4]])
LENGTHS = [2, 1, 4, 4]  # up to the first 1 or 8; only the last response has none of them


def model_that_ends(eos_token_id: Any, config: Any = 1) -> PreTrainedModel:
    built = tiny.model()
    built.generation_config.eos_token_id = eos_token_id
    built.config.eos_token_id = config
    return built


def zeros(prompts: list[Any], responses: list[Any]) -> list[float]:
    return [0.0] * len(responses)


@pytest.mark.parametrize(
    "named", [BOTH, (1, 8), np.array(BOTH), torch.tensor(BOTH), [torch.tensor(1), np.int64(8)], {8, 1}, [1, 8, 1]]
)
def test_end_tokens_are_one_number_or_several(named: Any) -> None:
    assert end_tokens(named) == (1, 8)
    assert ResponseSpace(24, 4, named) == ResponseSpace(24, 4, [8, 1], 1) != ResponseSpace(24, 4, 1)


@pytest.mark.parametrize("named", [1, np.int32(1), torch.tensor(1), [1]])
def test_one_end_token_is_a_number(named: Any) -> None:
    space = ResponseSpace(24, 4, named)
    assert (space.eos_token_id, space.eos_token_ids, space.pad_token_id) == (1, (1,), 1)


@pytest.mark.parametrize("named", [[], [1, 24], None, "1", [1.5], [1, None], -1])
def test_what_is_no_end_token_is_refused(named: Any) -> None:
    with pytest.raises(ValueError, match="eos_token_id="):
        ResponseSpace(24, 4, named)


def test_a_response_ends_with_the_first_of_them() -> None:
    space = ResponseSpace(24, 4, BOTH)
    masks = space.mask_of(DRAWN)
    assert masks.sum(-1).tolist() == LENGTHS
    assert space.cut_off(DRAWN, masks).tolist() == [False, False, False, True]


class Scripted(Decoder):
    """Draws what the test says."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.step = -1
        self.compacts = False

    def draw(self, ids: Tensor, until: int, noise: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        self.step += 1
        return torch.from_numpy(DRAWN[:, self.step]), torch.full((4,), -1.0), None


@pytest.mark.parametrize("pad", [0, 1, 8])
def test_generation_stops_at_the_first_of_them(pad: int) -> None:
    prompt = torch.full((4, 2), 3)
    response = generate(
        setups.policy().lm, prompt, torch.ones_like(prompt), max_new_tokens=4, eos_token_id=BOTH, pad_token_id=pad,
        decoder_of=Scripted,
    )  # fmt: skip
    assert response.mask.sum(-1).tolist() == LENGTHS
    assert response.token[1].tolist() == [1, pad, pad, pad]
    assert (ResponseSpace(24, 4, BOTH, pad).mask_of(response.token.numpy()) == response.mask.numpy()).all()
    assert response.log_prob.sum(-1).tolist() == [-length for length in LENGTHS]


def test_environments_score_responses_up_to_any_of_them() -> None:
    seen: list[Any] = []

    def reward(prompts: list[Any], responses: list[Any]) -> list[float]:
        seen.extend(responses)
        return [0.0] * len(responses)

    env = PromptVecEnv([[3]], reward, n_envs=4, max_new_tokens=4, vocab_size=24, eos_token_id=BOTH)
    env.reset()
    infos = env.step(DRAWN)[3]
    assert seen == [[5], [], [5, 6, 7], [5, 6, 7, 4]]
    assert [info["episode"]["l"] for info in infos] == LENGTHS
    assert [info["cut_off"] for info in infos] == [False, False, False, True]
    single = PromptEnv([[3]], reward, max_new_tokens=4, vocab_size=24, eos_token_id=BOTH)
    single.reset()
    assert single.step(DRAWN[2])[4]["cut_off"] is False


def test_the_tokenizers_end_can_be_joined_by_others() -> None:
    env = PromptVecEnv(["go"], zeros, tokenizer(), n_envs=1, max_new_tokens=4, eos_token_id=BOTH)
    assert env.action_space == ResponseSpace(16, 4, BOTH, 0)


def test_only_a_response_without_any_of_them_pays_the_penalty() -> None:
    space = ResponseSpace(24, 4, BOTH)
    buffer = SequenceRolloutBuffer(
        1, prompt_space(24, 2), space, "cpu", gae_lambda=1, gamma=1, n_envs=4, missing_eos_penalty=2.0
    )
    observation = {"input_ids": np.full((4, 2), 7), "attention_mask": np.ones((4, 2), np.int8)}
    buffer.add(observation, DRAWN, np.zeros(4), np.ones(4), torch.zeros(4, 4), -torch.ones(4, 4))
    buffer.compute_returns_and_advantage(torch.zeros(4), np.ones(4))
    assert buffer.masks.sum(-1)[0].tolist() == LENGTHS
    assert buffer.returns[0, :, 0].tolist() == [0, 0, 0, -2]  # of the first token: all that is to come


def test_a_model_with_two_end_tokens_trains_saves_and_goes_on(tmp_path: Path) -> None:
    def fresh() -> PromptVecEnv:
        return setups.env(eos_token_id=BOTH, max_new_tokens=12)

    # 24 tokens, 12 slots: with two ends in 24 responses end often, and after both of them.
    settings: dict[str, Any] = {"model": lambda: tiny.never_ending(0, ending=1.0)}
    model = setups.ppox(environment=fresh(), policy_kwargs=settings, n_steps=8)
    model.learn(64)
    buffer: Any = model.rollout_buffer
    last = np.take_along_axis(buffer.actions, buffer.masks.sum(-1, keepdims=True) - 1, -1)
    assert {1, 8} <= set(last.flatten().tolist())
    before_last = buffer.actions[..., :-1][buffer.masks[..., 1:]]
    assert not np.isin(before_last, BOTH).any()
    model.save(tmp_path / "model")
    loaded = PPOX.load(tmp_path / "model", env=fresh())
    policy: Any = loaded.policy
    assert policy.responses.eos_token_ids == (1, 8)
    with pytest.raises(ValueError, match=r"ResponseSpace.*eos_token_id=\[1, 8\].*eos_token_id=1,"):
        PPOX.load(tmp_path / "model", env=setups.env(max_new_tokens=12))


def test_a_space_saved_before_there_could_be_several_has_its_one() -> None:
    space = ResponseSpace(24, 4, 1)
    del space.__dict__["more_end_tokens"]
    old: ResponseSpace = pickle.loads(pickle.dumps(space))
    assert old == ResponseSpace(24, 4, 1) and old.mask_of(DRAWN).sum(-1).tolist() == [3, 1, 4, 4]


@pytest.mark.parametrize(
    "model", [model_that_ends(BOTH), model_that_ends(8), model_that_ends(1, BOTH), model_that_ends([1, 8, 99])]
)
def test_an_end_token_that_only_the_model_names_is_said_once(model: PreTrainedModel) -> None:
    with pytest.warns(TrainingWarning, match=r"eos_token_id=.*after 8 .*Pass eos_token_id=\[1, 8\]") as said:
        setups.ppox(policy_kwargs={"model": model})
    assert len(said) == 1
    setups.ppox(environment=setups.env(eos_token_id=BOTH), policy_kwargs={"model": model})  # a warning would raise


@pytest.mark.parametrize("named", [1, [1], None, [], 99])
def test_nothing_is_said_where_the_model_names_no_other(named: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        policy = setups.policy(model=model_that_ends(named))
    assert isinstance(policy, LanguageModelPolicy)
