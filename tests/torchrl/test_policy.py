"""A TorchRL actor and critic under PPOX: the same numbers, learning, saving; and back again."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sb3_ppo_ext_torchrl import PPOXLoss, TorchRLPolicy, actor_module, critic_module
from sb3_ppo_ext_torchrl.distributions import MultiCategorical
from stable_baselines3 import PPO
from tensordict.nn import TensorDictModule
from tensordict.nn.distributions import NormalParamExtractor
from torch import nn
from torch.distributions import Bernoulli, Categorical, Independent
from torchrl.modules import (
    IndependentNormal,
    OneHotCategorical,
    ProbabilisticActor,
    TanhNormal,
    ValueOperator,
)

from sb3_ppo_ext import PPOX
from tests.cases import environments
from tests.environments import OBSERVATIONS
from tests.torchrl.rollouts import collected

KINDS: dict[str, tuple[str, Any, int, dict[str, Any]]] = {
    "normal": ("box", IndependentNormal, 4, {}),
    "tanh": ("box", TanhNormal, 4, {}),
    "categorical": ("discrete", Categorical, 3, {}),
    "one-hot": ("discrete", OneHotCategorical, 3, {}),
    "several": ("multidiscrete", MultiCategorical, 5, {"sizes": (2, 3)}),
    "bits": ("multibinary", lambda logits: Independent(Bernoulli(logits=logits), 1), 3, {}),
}


class Joined(nn.Module):
    """Flattens and joins its observations, as a network for several has to."""

    def __init__(self, inputs: int, outputs: int, *after: nn.Module) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(inputs, 16), nn.Tanh(), nn.Linear(16, outputs), *after)

    def forward(self, *observations: torch.Tensor) -> Any:
        return self.net(torch.cat([one.flatten(1) if one.ndim > 3 else one for one in observations], dim=-1))


def parts(kind: str, in_keys: Any = ("observation",), inputs: int = 4) -> dict[str, Callable[[], Any]]:
    _, distribution, outputs, options = KINDS[kind]
    names = ["loc", "scale"] if kind in ("normal", "tanh") else ["logits"]
    after = [NormalParamExtractor()] if len(names) == 2 else []

    def actor() -> ProbabilisticActor:
        net = TensorDictModule(Joined(inputs, outputs, *after), in_keys=list(in_keys), out_keys=names)
        return ProbabilisticActor(
            net, in_keys=names, distribution_class=distribution, distribution_kwargs=options, return_log_prob=True
        )

    return {"actor": actor, "critic": lambda: ValueOperator(Joined(inputs, 1), in_keys=list(in_keys))}


def model_of(kind: str, **options: Any) -> PPOX:
    settings: dict[str, Any] = {"n_steps": 32, "batch_size": 32, "n_epochs": 2, "seed": 0, "device": "cpu"}
    env = environments("vector", KINDS[kind][0])
    return PPOX(TorchRLPolicy, env, **{**settings, "policy_kwargs": parts(kind), **options})


@pytest.mark.parametrize("kind", KINDS)
def test_ppox_trains_it_saves_it_and_continues(kind: str, tmp_path: Path) -> None:
    model = model_of(kind)
    before = [parameter.clone() for parameter in model.policy.parameters()]
    model.learn(64)
    assert all((one != other).any() for one, other in zip(before, model.policy.parameters(), strict=True))
    model.save(tmp_path / "model")
    loaded = PPOX.load(tmp_path / "model", env=model.env, device="cpu")
    observation = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    mine, theirs = (one.predict(observation, deterministic=True)[0] for one in (model, loaded))
    np.testing.assert_array_equal(mine, theirs)
    assert loaded.learn(64, reset_num_timesteps=False).num_timesteps == 128


@pytest.mark.parametrize("kind", KINDS)
def test_stored_and_evaluated_log_probabilities_agree(kind: str) -> None:
    policy = model_of(kind).policy
    observation = torch.randn(50, 4)
    with torch.no_grad():
        action, value, log_prob = policy(observation)
        again, evaluated, entropy = policy.evaluate_actions(observation, action.float())
    assert action.shape == (50, *(policy.action_space.shape or ()))
    torch.testing.assert_close(again, value, rtol=0, atol=0)
    torch.testing.assert_close(evaluated, log_prob, rtol=1e-4, atol=1e-4)  # atanh of a rounded tanh
    assert (entropy is None) == (kind == "tanh")


def test_evaluation_is_the_modules_own() -> None:
    policy: Any = model_of("normal").policy
    batch = {"observation": torch.randn(6, 4)}
    made = policy.actor.get_dist(policy._tensordict(batch["observation"]))
    action = made.sample()
    value, log_prob, entropy = policy.evaluate_actions(batch["observation"], action)
    torch.testing.assert_close(log_prob, made.log_prob(action), rtol=0, atol=0)
    torch.testing.assert_close(entropy, made.entropy(), rtol=0, atol=0)
    torch.testing.assert_close(value, policy.critic(**batch), rtol=0, atol=0)


def test_modules_given_are_used_themselves_and_found_again() -> None:
    made = {name: make() for name, make in parts("categorical").items()}
    model = model_of("categorical", policy_kwargs=made)
    assert actor_module(model.policy) is made["actor"] and critic_module(model.policy) is made["critic"]
    assert PPOXLoss.from_ppox(model).actor_network is made["actor"]
    with pytest.raises(ValueError, match="keys of their own"):
        actor_module(model.policy, "pixels")


def test_the_exact_kl_is_known_where_sb3_knows_the_distribution() -> None:
    model = model_of("normal", kl_coef=0.5).learn(64)
    assert model.logger.name_to_value["train/kl_exact"] > 0
    with pytest.raises(ValueError, match='pass kl_estimator="k3"'):
        model_of("tanh", kl_coef=0.5)
    model_of("tanh", kl_coef=0.5, kl_estimator="k3").learn(64)


def test_an_sb3_policy_by_way_of_torchrl_trains_as_it_would_have() -> None:
    direct = collected("discrete", n_epochs=2)
    source = collected("discrete", n_epochs=2).policy
    made = {"actor": actor_module(source), "critic": critic_module(source)}
    wrapped = PPOX(
        TorchRLPolicy, environments("vector", "discrete"), n_steps=16, batch_size=32, n_epochs=2, seed=3, device="cpu",
        policy_kwargs=made,
    )  # fmt: skip
    wrapped._setup_learn(1000, None)
    wrapped.rollout_buffer = collected("discrete", n_epochs=2).rollout_buffer
    for model in (direct, wrapped):
        torch.manual_seed(0)
        np.random.seed(0)
        model.train()
    for module, other in (
        (actor_module(direct.policy), actor_module(wrapped.policy)),
        (critic_module(direct.policy), critic_module(wrapped.policy)),
    ):
        mine, theirs = dict(module.named_parameters()), dict(other.named_parameters())
        assert mine.keys() == theirs.keys()
        for name, parameter in mine.items():
            torch.testing.assert_close(parameter, theirs[name], rtol=1e-6, atol=1e-7, msg=name)


def test_dict_observations_go_by_name() -> None:
    keys = [("obs", "a"), "b"]
    model = PPO(
        TorchRLPolicy, environments("dict", "discrete"), n_steps=32, batch_size=32, device="cpu",
        policy_kwargs=parts("categorical", keys, 3 + 4),
    )  # fmt: skip
    model.learn(64)
    action, _ = model.predict(OBSERVATIONS["dict"].sample())
    assert action in (0, 1, 2)


def test_images_are_scaled_as_sb3_scales_them_or_not_at_all() -> None:
    made = parts("categorical", inputs=36 * 36 * 3)
    for scale, brightest in ((True, 1.0), (False, 255.0)):
        kwargs = {"actor": made["actor"], "critic": made["critic"], "normalize_images": scale}
        env = environments("image", "discrete")
        model = PPO(TorchRLPolicy, env, n_steps=8, batch_size=8, device="cpu", policy_kwargs=kwargs)
        policy: Any = model.policy
        image = torch.full((1, *policy.observation_space.shape), 255, dtype=torch.uint8)
        assert policy._tensordict(image)["observation"].max() == brightest


def refused(match: str, **policy_kwargs: Any) -> None:
    with pytest.raises(ValueError, match=match):
        model_of("normal", policy_kwargs={**parts("normal"), **policy_kwargs})


def test_what_does_not_fit_is_refused_at_construction() -> None:
    good = parts("normal")
    refused("actor is 3; a TorchRL module is needed", actor=3)
    refused("with get_dist", actor=good["critic"])
    refused("'state_value' must be among them", critic=good["actor"])
    refused("of one observation, one key", critic=parts("normal", ["pixels"])["critic"])
    refused("gives .*1, 2.* for one observation", critic=lambda: ValueOperator(Joined(4, 2), in_keys=["observation"]))
    refused(r"actions have shape \(\), the action space \(2,\)", actor=parts("categorical")["actor"])
    with pytest.raises(ValueError, match="pass use_sde=False"):
        model_of("normal", use_sde=True)
