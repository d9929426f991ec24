"""Stable-Baselines3's insides are what ``host/sb3.py`` assumes; a new version that changes one fails in its test."""

from __future__ import annotations

import ast
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.distributions import make_proba_distribution
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.torch_layers import MlpExtractor
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack, VecMonitor, VecNormalize, VecTransposeImage

import sb3_ppo_ext
from sb3_ppo_ext.host import sb3
from tests.environments import Toy

BOX = spaces.Box(-1, 1, (3,))
DICTS = spaces.Dict({"a": BOX, "b": spaces.Discrete(4)})


def algorithm() -> PPO:
    return PPO("MlpPolicy", DummyVecEnv([Toy, Toy]), n_steps=4, batch_size=8, device="cpu")


def policy(**options: Any) -> ActorCriticPolicy:
    return ActorCriticPolicy(BOX, BOX, lambda _: 1e-3, **options)


def buffer(space: spaces.Space[Any] = BOX) -> Any:
    kind: Any = DictRolloutBuffer if isinstance(space, spaces.Dict) else RolloutBuffer
    return kind(4, space, BOX, device="cpu", gamma=0.9, gae_lambda=0.8, n_envs=2)


def images() -> VecTransposeImage:
    return VecTransposeImage(DummyVecEnv([lambda: Toy("image")]))


INSTANCES: dict[str, tuple[Callable[[], Any], Callable[[Any], bool], str]] = {
    "collecting": (algorithm, lambda model: sb3.collects_as_sb3(model.collect_rollouts), "collect_rollouts"),
    "counting": (algorithm, sb3.counts_episodes_as_sb3, "_update_info_buffer"),
    "adding": (buffer, sb3.adds_as_sb3, "add"),
    "adding dicts": (lambda: buffer(DICTS), sb3.adds_as_sb3, "add"),
    "estimating": (buffer, sb3.estimates_as_sb3, "compute_returns_and_advantage"),
    "acting": (policy, sb3.forwards_as_sb3, "forward"),
    "evaluating": (policy, sb3.evaluates_as_sb3, "evaluate_actions"),
    "towers": (lambda: policy().mlp_extractor, sb3.has_separate_towers, "forward_actor"),
    "stepping": (lambda: DummyVecEnv([Toy]), sb3.steps_as_sb3, "_save_obs"),
    "normalizing": (lambda: VecNormalize(DummyVecEnv([Toy])), sb3.normalizes_as_sb3, "_update_reward"),
    "averaging": (RunningMeanStd, sb3.averages_as_sb3, "update_from_moments"),
    "monitoring": (lambda: VecMonitor(DummyVecEnv([Toy])), sb3.monitors_as_sb3, "step_wait"),
    "stacking": (lambda: VecFrameStack(DummyVecEnv([Toy]), 2), sb3.stacks_as_sb3, "step_async"),
    "transposing": (images, sb3.transposes_as_sb3, "transpose_image"),
}


@pytest.mark.parametrize("name", INSTANCES)
def test_a_function_of_another_is_recognised_wherever_it_is_put(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make, unchanged, method = INSTANCES[name]
    assert unchanged(make())
    patched = make()
    setattr(patched, method, lambda *_: None)
    assert not unchanged(patched)
    of_subclass = make()
    of_subclass.__class__ = type("Derived", (type(of_subclass),), {method: lambda *_: None})
    assert not unchanged(of_subclass)
    monkeypatch.setattr(type(make()), method, lambda *_: None)
    assert not unchanged(make())


@pytest.mark.parametrize("kind", [RolloutBuffer, DictRolloutBuffer])
@pytest.mark.parametrize("method", ["get", "_get_samples"])
def test_a_buffer_class_that_hands_out_its_rows_otherwise_is_recognised(kind: type, method: str) -> None:
    assert sb3.samples_as_sb3(kind)
    assert not sb3.samples_as_sb3(type("Derived", (kind,), {method: lambda *_: None}))


@pytest.mark.parametrize("shared", [True, False])
def test_acting_draws_once_and_leaves_its_distribution(shared: bool) -> None:
    acting, obs = policy(share_features_extractor=shared), torch.rand(5, 3)
    torch.manual_seed(1)
    actions, values, log_prob = acting(obs)
    after = torch.get_rng_state()
    torch.manual_seed(1)
    assert torch.equal(acting.action_dist.get_actions(), actions) and torch.equal(torch.get_rng_state(), after)
    assert torch.equal(acting.action_dist.log_prob(actions), log_prob)
    assert torch.equal(acting.predict_values(obs), values)


@pytest.mark.parametrize("shared", [True, False])
def test_evaluating_passes_once_and_leaves_its_distribution(shared: bool) -> None:
    evaluated, obs, calls = policy(share_features_extractor=shared), torch.rand(5, 3), []
    extract = evaluated.extract_features
    evaluated.extract_features = lambda *args: calls.append(1) or extract(*args)  # type: ignore[func-returns-value,method-assign]
    actions = torch.rand(5, 3)
    values, log_prob, entropy = evaluated.evaluate_actions(obs, actions)
    assert len(calls) == 1
    assert torch.equal(evaluated.action_dist.log_prob(actions), log_prob)
    assert entropy is not None and torch.equal(evaluated.action_dist.entropy(), entropy)  # type: ignore[arg-type]
    assert torch.equal(evaluated.predict_values(obs), values)


def test_towers_are_two_networks() -> None:
    extractor, features = MlpExtractor(3, {"pi": [4], "vf": [5, 6]}, torch.nn.Tanh, "cpu"), torch.rand(7, 3)
    pi, vf = extractor(features)
    assert torch.equal(pi, extractor.policy_net(features)) and torch.equal(vf, extractor.value_net(features))


ACTIONS: list[Any] = [BOX, spaces.Discrete(3), spaces.MultiDiscrete([2, 3]), spaces.MultiBinary(2)]


@pytest.mark.parametrize(("space", "use_sde"), [*((space, False) for space in ACTIONS), (BOX, True)], ids=str)
def test_a_distribution_writes_its_scratch_before_it_reads_it(space: spaces.Space[Any], use_sde: bool) -> None:
    used = ActorCriticPolicy(BOX, space, lambda _: 1e-3, use_sde=use_sde, squash_output=use_sde)
    obs, results = torch.rand(4, 3), []
    assert type(used.action_dist) is type(make_proba_distribution(space, use_sde, None))
    for _ in range(2):
        torch.manual_seed(0)
        actions, _, log_prob = used(obs)
        results.append((actions, log_prob))
        for name in sb3.DISTRIBUTION_SCRATCH & vars(used.action_dist).keys():
            setattr(used.action_dist, name, None)
    assert all(map(torch.equal, *results))


def test_private_attributes_are_there_and_no_others_are_used() -> None:
    model = algorithm()
    model._setup_learn(8)
    instances = (model, model.policy, model.rollout_buffer, model.env)
    for owner, names in sb3.PRIVATE_ATTRIBUTES.items():
        (instance,) = (instance for instance in instances if isinstance(instance, owner))
        assert all(hasattr(instance, name) for name in names), owner
    private = {name for instance in instances for name in dir(instance) if name.startswith("_")}
    of_python_and_torch = {name for name in private if name.endswith("__")} | {*dir(torch.nn.Module())}
    listed = {name for names in sb3.PRIVATE_ATTRIBUTES.values() for name in names}
    used = {name for room in ("policies", "rollout", "update", "run.py") for name in attributes(room)}
    assert used & private - of_python_and_torch <= listed


def attributes(room: str) -> set[str]:
    """Names after a dot in the files of a room."""
    path = Path(sb3_ppo_ext.__file__).parent / room
    trees = [ast.parse(file.read_text()) for file in (path.rglob("*.py") if path.is_dir() else [path])]
    return {node.attr for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Attribute)}


def test_a_callback_has_no_model_until_it_is_given_one() -> None:
    model = algorithm()

    class Callback(BaseCallback):
        def _on_step(self) -> bool:
            return True

    callback = Callback()
    assert not hasattr(callback, "model")
    assert model._init_callback(callback) is callback and callback.model is model
    assert isinstance(model._init_callback(None), BaseCallback)


def test_normalizing_needs_unchanged_statistics() -> None:
    env: Any = VecNormalize(DummyVecEnv([Toy]))
    assert sb3.normalizes_as_sb3(env) and sb3.normalizes_as_sb3(VecNormalize(DummyVecEnv([Toy]), norm_obs=False))
    env.ret_rms.update = lambda batch: None
    assert not sb3.normalizes_as_sb3(env)
