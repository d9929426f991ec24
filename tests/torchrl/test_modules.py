"""A policy of Stable-Baselines3 as TorchRL modules: the same numbers, the same parameters, for any batch shape."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.wrappers import ClipAction
from sb3_ppo_ext_torchrl import actor_module, critic_module
from sb3_ppo_ext_torchrl.distributions import IndependentBernoulli, MultiCategorical, torch_parameters
from stable_baselines3 import PPO
from stable_baselines3.common.distributions import MultiCategoricalDistribution
from stable_baselines3.common.policies import ActorCriticPolicy
from tensordict import TensorDict
from tensordict.nn import InteractionType, set_interaction_type
from torch.distributions import Categorical, Independent, Normal, kl_divergence
from torchrl.envs import GymEnv, GymWrapper
from torchrl.modules import OneHotCategorical, TanhNormal
from torchrl.objectives import ClipPPOLoss

from sb3_ppo_ext import PPOX
from sb3_ppo_ext.objective.distributions import exact_kl, parameters_of
from tests.environments import ACTIONS, OBSERVATIONS, Toy
from tests.torchrl.rollouts import collected, moved, rollout_of, sb3_observation


@pytest.mark.parametrize("observation", OBSERVATIONS)
@pytest.mark.parametrize("action", ACTIONS)
def test_the_modules_say_what_the_policy_says(action: str, observation: str) -> None:
    model = collected(action, observation)
    batch = rollout_of(model)
    moved(model)
    rows = batch.flatten(0, 1)
    taken = rows["action"].float() if action == "multibinary" else rows["action"]
    value, log_prob, entropy = model.policy.evaluate_actions(sb3_observation(rows, model.observation_space), taken)
    distribution = actor_module(model.policy).get_dist(batch)  # [T, N], not flattened
    values = critic_module(model.policy)(batch)["state_value"]
    assert values.shape == (16, 2, 1)
    torch.testing.assert_close(distribution.log_prob(batch["action"]).flatten(), log_prob, rtol=0, atol=0)
    torch.testing.assert_close(distribution.entropy().flatten(), entropy, rtol=0, atol=0)
    torch.testing.assert_close(values.flatten(), value.flatten(), rtol=0, atol=0)


@pytest.mark.parametrize("action", ACTIONS)
def test_actions_fit_the_space_and_carry_their_log_probability(action: str) -> None:
    model = collected(action)
    actor = actor_module(model.policy)
    for shape in ((), (5,), (2, 3)):
        for kind in (InteractionType.RANDOM, InteractionType.DETERMINISTIC):
            with set_interaction_type(kind), torch.no_grad():
                out = actor(TensorDict({"observation": torch.zeros(*shape, 4)}, shape))
            assert out["action_log_prob"].shape == shape
            assert out["action"].shape == (*shape, *(ACTIONS[action].shape or ()))
            torch.testing.assert_close(actor.get_dist(out).log_prob(out["action"]), out["action_log_prob"])
    predicted, _ = model.predict(np.zeros(4, np.float32), deterministic=True)
    with set_interaction_type(InteractionType.DETERMINISTIC), torch.no_grad():
        mode = actor(TensorDict({"observation": torch.zeros(4)}))["action"]
    np.testing.assert_allclose(mode.clamp(-1, 1) if action == "box" else mode, predicted)


@pytest.mark.parametrize("share", [True, False])
def test_parameters_are_shared_and_each_module_has_its_half(share: bool) -> None:
    model = collected("box", policy_kwargs={"share_features_extractor": share})
    actor, critic = actor_module(model.policy), critic_module(model.policy)
    own = {id(parameter) for parameter in model.policy.parameters()}
    halves = [{id(parameter) for parameter in module.parameters()} for module in (actor, critic)]
    assert halves[0] | halves[1] == own and not halves[0] & halves[1]  # a FlattenExtractor has no parameters
    optimizer = torch.optim.SGD([*actor.parameters(), *critic.parameters()], lr=0.1)
    before = {name: tensor.clone() for name, tensor in model.policy.state_dict().items()}
    batch = rollout_of(model).flatten(0, 1)
    losses = ClipPPOLoss(actor, critic)(batch)
    sum(losses[name] for name in ("loss_objective", "loss_critic", "loss_entropy")).backward()
    optimizer.step()
    assert all((model.policy.state_dict()[name] != tensor).any() for name, tensor in before.items())


def test_images_share_their_network() -> None:
    policy = collected("discrete", "image").policy
    actor, critic = actor_module(policy), critic_module(policy)
    shared = {id(one) for one in actor.parameters()} & {id(one) for one in critic.parameters()}
    assert shared == {id(one) for one in policy.features_extractor.parameters()}


@pytest.mark.parametrize(
    ("action", "observation", "in_keys"),
    [
        ("box", "vector", None),
        ("discrete", "vector", None),
        ("multibinary", "vector", None),
        ("multidiscrete", "dict", {"a": "a", "b": "b"}),
    ],
)
def test_they_act_in_torchrls_environments(action: str, observation: str, in_keys: Any) -> None:
    toy = Toy(observation, action)
    toy.observation_space = _without_discrete(toy.observation_space)
    model = PPO("MultiInputPolicy" if in_keys else "MlpPolicy", toy, n_steps=8, batch_size=8, device="cpu")
    env = GymWrapper(ClipAction(toy) if action == "box" else toy, categorical_action_encoding=True)
    actor = actor_module(model.policy, in_keys)
    batch = env.rollout(12, actor, break_when_any_done=False)
    assert batch.batch_size == (12,) and batch["action_log_prob"].shape == (12,)
    assert critic_module(model.policy, in_keys)(batch)["state_value"].shape == (12, 1)


def _without_discrete(space: spaces.Space[Any]) -> spaces.Space[Any]:
    if isinstance(space, spaces.Dict):
        return spaces.Dict({name: spaces.Box(-1, 1, (3,), np.float32) for name in space.spaces})
    return space


def test_cartpole_of_gymnasium() -> None:
    model = PPOX("MlpPolicy", "CartPole-v1", seed=0, device="cpu")
    batch = GymEnv("CartPole-v1", categorical_action_encoding=True).rollout(20, actor_module(model.policy))
    assert batch["action"].dtype == torch.int64 and batch["logits"].shape[-1] == 2


def test_several_choices_have_the_sum_of_theirs() -> None:
    torch.manual_seed(0)
    logits, sizes = torch.randn(7, 5), [2, 3]
    theirs = MultiCategoricalDistribution(sizes).proba_distribution(logits)
    ours = MultiCategorical(logits, sizes)
    action = ours.sample((4,))
    assert action.shape == (4, 7, 2) and action.max() == 2
    torch.testing.assert_close(ours.log_prob(action[0]), theirs.log_prob(action[0]), rtol=0, atol=0)
    torch.testing.assert_close(ours.entropy(), theirs.entropy(), rtol=0, atol=0)
    assert torch.equal(ours.mode, theirs.mode())


def test_parameters_of_torchs_distributions_give_torchs_kl() -> None:
    torch.manual_seed(0)
    loc, scale, logits = torch.randn(2, 5, 3), torch.rand(2, 5, 3) + 0.5, torch.randn(2, 5, 3)
    pairs: dict[str, list[Any]] = {
        "normal": [Independent(Normal(loc[i], scale[i]), 1) for i in (0, 1)],
        "categorical": [Categorical(logits=logits[i]) for i in (0, 1)],
        "bits": [IndependentBernoulli(logits[i]) for i in (0, 1)],
    }
    for name, (one, other) in pairs.items():
        ours = exact_kl(torch_parameters(one), torch_parameters(other))
        torch.testing.assert_close(ours, kl_divergence(one, other), msg=name)
    one_hot = [torch_parameters(OneHotCategorical(logits=logits[i])) for i in (0, 1)]
    torch.testing.assert_close(exact_kl(*one_hot), kl_divergence(*pairs["categorical"]))
    squashed = [torch_parameters(TanhNormal(loc[i], scale[i])) for i in (0, 1)]
    torch.testing.assert_close(exact_kl(*squashed), kl_divergence(*pairs["normal"]))  # one map for both: no change
    with pytest.raises(ValueError, match="Normal has no exact KL here; use kl_estimator='k3'"):
        torch_parameters(Normal(loc, scale))


@pytest.mark.parametrize("action", ACTIONS)
def test_parameters_are_those_of_the_sb3_distribution(action: str) -> None:
    model = collected(action)
    rows = rollout_of(model).flatten(0, 1)
    moved(model)
    mine = torch_parameters(actor_module(model.policy).get_dist(rows))
    theirs = parameters_of(model.policy.get_distribution(rows["observation"]))
    old = parameters_of(collected(action).policy.get_distribution(rows["observation"]))
    torch.testing.assert_close(exact_kl(old, mine), exact_kl(old, theirs))
    torch.testing.assert_close(exact_kl(mine, old), exact_kl(theirs, old))


class Own(ActorCriticPolicy):
    def get_distribution(self, obs: Any) -> Any:
        return super().get_distribution(obs)


def test_what_cannot_be_wrapped_says_what_to_change() -> None:
    def policy(cls: Any = "MlpPolicy", **arguments: Any) -> torch.nn.Module:
        return PPO(cls, Toy("vector", "box"), n_steps=8, batch_size=8, device="cpu", **arguments).policy

    with pytest.raises(ValueError, match="use_sde=False"):
        actor_module(policy(use_sde=True))
    with pytest.raises(ValueError, match="use_sde=False and without squash_output"):
        critic_module(policy(use_sde=True, policy_kwargs={"squash_output": True}))
    with pytest.raises(ValueError, match=r"Own has a get_distribution\(\) of its own"):
        actor_module(policy(Own))
    with pytest.raises(ValueError, match="Linear is no actor-critic policy"):
        actor_module(torch.nn.Linear(1, 1))
    with pytest.raises(ValueError, match="no Dict space; one key"):
        actor_module(policy(), {"a": "b"})
    with pytest.raises(ValueError, match=r"a mapping from \['a', 'b'\]"):
        actor_module(collected("box", "dict").policy, "observation")
