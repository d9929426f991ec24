"""A prompt and its responses in one row are what they are in rows of their own: states, gradients, whole trainings."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sb3_ppo_ext import PPOX
from sb3_ppo_ext.distributed.shards import Shards
from sb3_ppo_ext.language import LanguageModelPolicy, PromptVecEnv, TextGameEnv, conversation_vec_env
from sb3_ppo_ext.language.engines.block_gradients import BlockGradients
from sb3_ppo_ext.language.engines.compiled import CompiledGradients
from sb3_ppo_ext.language.envs.spaces import ATTENTION_MASK, INPUT_IDS
from sb3_ppo_ext.language.model import causal_lm
from sb3_ppo_ext.language.model.tokens import RowLayout, Tokens, positions, prepared_mask
from sb3_ppo_ext.language.training import token_rollout
from sb3_ppo_ext.language.training.importance import scored_again
from sb3_ppo_ext.language.training.micro_batches import micro_batches
from sb3_ppo_ext.language.training.ratio_check import RatioError
from sb3_ppo_ext.language.training.row_orders import RowOrder, ShardedRowOrders
from sb3_ppo_ext.language.training.shared_prompts import sharing_prompts
from sb3_ppo_ext.language.training.token_update import EagerGradients, TokenGradients
from sb3_ppo_ext.objective.batch import Minibatch
from tests.cases import assert_same_learning
from tests.language import chats, setups, tiny
from tests.language.games import HigherLower
from tests.language.token_updates import KNOBS, gradients_of, minibatch, outcome, updater
from tests.traced_graphs import Traced

PROMPTS, BRANCHES = 5, 4


def shared_tokens(response: int = 5) -> Tokens:
    """Five ragged prompts with four ragged responses each."""
    tokens = tiny.ragged_tokens(PROMPTS * BRANCHES, response=response)
    return tokens._replace(prompt=tokens.prompt[:PROMPTS], prompt_mask=tokens.prompt_mask[:PROMPTS])


def both_minibatches(policy: LanguageModelPolicy) -> tuple[Minibatch, Minibatch]:
    """The same responses with a prompt for each, and with one for four of them."""
    apart, tokens = minibatch(policy, rows=PROMPTS * BRANCHES), shared_tokens().apart()
    observation = {INPUT_IDS: tokens.prompt, ATTENTION_MASK: tokens.prompt_mask.to(torch.int8)}
    apart = apart._replace(observation=observation)
    return apart, sharing_prompts(apart, BRANCHES)


def test_positions_go_on_from_the_prompt_in_every_branch() -> None:
    # A prompt of two tokens in three slots, then two branches of two slots, the second with one token.
    mask = torch.tensor([[False, True, True, True, True, True, False]])
    assert positions(mask, RowLayout(2, 2)).tolist() == [[0, 0, 1, 2, 3, 2, 2]]
    seen = prepared_mask(mask, 7, None, RowLayout(2, 2))[0, 0].int().tolist()
    assert seen == [
        [1, 0, 0, 0, 0, 0, 0],  # padding sees itself
        [0, 1, 0, 0, 0, 0, 0],
        [0, 1, 1, 0, 0, 0, 0],
        [0, 1, 1, 1, 0, 0, 0],
        [0, 1, 1, 1, 1, 0, 0],
        [0, 1, 1, 0, 0, 1, 0],  # the prompt and its own branch
        [0, 1, 1, 0, 0, 1, 1],
    ]


@pytest.mark.parametrize("response", [1, 5])
@pytest.mark.parametrize(
    ("family", "value"), [*((family, "shared") for family in tiny.FAMILIES), ("llama", "branch"), ("gpt2", "separate")]
)
def test_every_token_has_the_numbers_that_it_has_in_a_row_of_its_own(family: str, value: str, response: int) -> None:
    policy = setups.policy(model=partial(tiny.model, family), value=value, response=response)
    torch.nn.init.normal_(setups.value_head(policy).weight)
    tokens = shared_tokens(response)
    found, expected = (policy.evaluate_tokens(each, entropy_grad=False) for each in (tokens, tokens.apart()))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    reference = [policy.reference_log_prob(each) for each in (tokens, tokens.apart())]
    torch.testing.assert_close(*reference, rtol=1e-4, atol=1e-4)
    again = scored_again(policy, tokens, 40)
    torch.testing.assert_close(again, (expected[0], expected[2]), rtol=1e-4, atol=1e-4)


def test_the_prompt_goes_through_the_model_once(monkeypatch: pytest.MonkeyPatch) -> None:
    policy, slots = setups.policy(), []
    hidden = policy.lm.hidden

    def counted(ids: Tensor, *rest: Any) -> Tensor:
        slots.append(tuple(ids.shape))
        return hidden(ids, *rest)

    monkeypatch.setattr(policy.lm, "hidden", counted)
    for tokens in (shared_tokens(), shared_tokens().apart()):
        policy.evaluate_tokens(tokens, entropy_grad=False)
    assert slots == [(5, 6 + 4 * 4), (20, 6 + 4)]  # of a response of five tokens four are read


@pytest.mark.parametrize("limit", [None, 30, 60])
@pytest.mark.parametrize("loss_mean", ["token", "response", "length"])
def test_the_gradient_is_that_of_rows_of_their_own(limit: int | None, loss_mean: str) -> None:
    policy = setups.policy(value="branch")
    apart, shared = both_minibatches(policy)
    expected = outcome(gradients_of(updater(policy, loss_mean=loss_mean)), apart)
    update = updater(policy, loss_mean=loss_mean, micro_batch_tokens=limit)
    torch.testing.assert_close(outcome(gradients_of(update), shared), expected, rtol=1e-3, atol=1e-5)
    sizes = [len(each.minibatch.action) for each in micro_batches(shared, update.settings)]
    assert sum(sizes) == 20 and all(size % BRANCHES == 0 for size in sizes)
    assert len(sizes) == {None: 1, 30: 5, 60: 3}[limit]  # rows of 17 to 26 slots


@pytest.mark.parametrize("value", ["shared", "separate"])
def test_graphs_have_the_gradient_of_autograd(value: str) -> None:
    policy, graphs = setups.policy(value=value), Traced()
    apart, shared = both_minibatches(policy)
    compiled = CompiledGradients(EagerGradients(updater(policy)), graphs, 3 * BRANCHES, BRANCHES)
    compiled.prepare(shared, KNOBS)
    found = outcome(TokenGradients(compiled.update, compiled, None), shared)
    torch.testing.assert_close(found, outcome(gradients_of(updater(policy)), apart), rtol=1e-3, atol=1e-5)
    assert graphs.calls == {"gradient of tokens": 2}  # three prompts, and two filled up with one of padding


def test_blocks_have_the_gradient_of_autograd() -> None:
    policy, graphs = setups.policy(model=partial(tiny.model, "llama"), lora={"r": 2}), Traced()
    apart, shared = both_minibatches(policy)
    update = updater(policy, micro_batch_tokens=60)
    found = outcome(TokenGradients(update, BlockGradients(EagerGradients(update), graphs), None), shared)
    torch.testing.assert_close(found, outcome(gradients_of(updater(policy)), apart), rtol=1e-3, atol=1e-5)
    assert graphs.calls["gradient of a block"] == 6  # two blocks, three micro-batches


def trained(monkeypatch: pytest.MonkeyPatch, *, shared: bool, **options: Any) -> PPOX:
    """Two rollouts of four groups; without shared prompts in the same order of whole groups."""
    if not shared:
        monkeypatch.setattr(token_rollout, "row_orders", lambda run, steps, envs, _: RowOrder(steps * envs, BRANCHES))
    buffer = {"group_advantage": "grpo", "ref_kl": "loss", "ref_kl_estimator": "k3", "share_prompts": shared}
    return setups.ppox(
        environment=setups.env(8, group_size=BRANCHES),
        policy_kwargs={"value": "none", "lora": {"r": 2}, **options.pop("policy_kwargs", {})},
        rollout_buffer_kwargs={**buffer, **options.pop("rollout_buffer_kwargs", {})},
        **{"batch_size": 8, "ref_kl_coef": 0.1, "compile": False, **options},
    ).learn(32)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"policy_kwargs": {"sampler": "bfloat16"}},
        {"rollout_buffer_kwargs": {"dynamic_sampling": "refill", "micro_batch_tokens": 40}},
    ],
)
def test_training_is_that_of_rows_of_their_own(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    shared = trained(monkeypatch, shared=True, **options)
    assert_same_learning(shared, trained(monkeypatch, shared=False, **options))


def test_minibatches_have_whole_groups() -> None:
    np.random.seed(0)
    rows = [minibatch.collected for minibatch in RowOrder(24, BRANCHES).minibatches(16)]
    assert [len(each) for each in rows] == [16, 8] and sorted(np.concatenate(rows).tolist()) == list(range(24))
    orders = ShardedRowOrders(Shards(2, range(2), seed=1), 0, 3, 8, BRANCHES)
    rows += [minibatch.of_all for minibatch in orders.minibatches(8)]
    assert sorted(np.concatenate(rows[2:]).tolist()) == list(range(24))
    for each in rows:
        groups = each.reshape(-1, BRANCHES)
        assert (groups == groups[:, :1] + np.arange(BRANCHES)).all() and (groups[:, 0] % BRANCHES == 0).all()


def test_a_model_that_reads_them_otherwise_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(causal_lm, "positions", lambda mask, *_: positions(mask))
    with pytest.raises(RatioError, match=r"GPT2LMHeadModel reads responses otherwise .* pass share_prompts=False"):
        trained(monkeypatch, shared=True)


def test_what_cannot_share_prompts_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    sharing: dict[str, Any] = {"rollout_buffer_kwargs": {"share_prompts": True}}
    with pytest.raises(ValueError, match="share_prompts=True: the environment has no groups"):
        setups.ppox(**sharing)
    with pytest.raises(ValueError, match=r"batch_size=6 with share_prompts=True: .* pass a multiple of 4"):
        setups.ppox(environment=setups.env(8, group_size=4), n_steps=3, batch_size=6, **sharing)
    with pytest.raises(ValueError, match=r"batch_size=4 with share_prompts=True: .* pass a multiple of 8"):
        setups.ppox(environment=setups.env(8, group_size=4), shards=2, **sharing)
    make = partial(TextGameEnv, HigherLower, chats.tokenizer(), max_new_tokens=2, max_prompt_length=160)
    turns = conversation_vec_env(make, 4, group_size=4)
    with pytest.raises(ValueError, match="share_prompts=True: in episodes of several turns"):
        PPOX(LanguageModelPolicy, turns, policy_kwargs={"model": chats.model}, n_steps=2, batch_size=4, **sharing)
    with pytest.raises(ValueError, match="share_prompts=True: the responses of a group have different prompts"):
        monkeypatch.setattr(PromptVecEnv, "reset", mixed(PromptVecEnv.reset))
        trained(monkeypatch, shared=True)


def mixed(reset: Any) -> Any:
    """The observations of an environment that gives the responses of a group different prompts."""

    def reset_and_mix(env: Any) -> Any:
        return {name: np.roll(array, 1, axis=0) for name, array in reset(env).items()}

    return reset_and_mix
