"""A traced policy draws the numbers the policy would have drawn; what cannot be traced is refused with the reason."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.policies import ActorCriticPolicy, MultiInputActorCriticPolicy
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from sb3_ppo_ext.engines.cpu.actor import acting_inputs
from sb3_ppo_ext.engines.errors import CompileError
from sb3_ppo_ext.engines.fingerprints import fingerprint, signature
from sb3_ppo_ext.engines.noise import noise_as_inputs
from sb3_ppo_ext.engines.substitution import substituted
from sb3_ppo_ext.engines.traced_actor import ActorGraph
from sb3_ppo_ext.engines.tracing import Inputs, tensors_of, trace
from sb3_ppo_ext.policies.adapter import unvalidated_distributions
from tests.environments import ACTIONS, OBSERVATIONS

ACTORS: dict[str, dict[str, Any]] = {
    **{name: {} for name in ACTIONS},
    "box, gSDE": {"use_sde": True},
    "box, squashed gSDE": {"use_sde": True, "squash_output": True, "use_expln": True},
}


def policy_of(name: str, observation: str = "vector", **options: Any) -> ActorCriticPolicy:
    torch.manual_seed(0)
    cls: Any = MultiInputActorCriticPolicy if observation == "dict" else ActorCriticPolicy
    policy: ActorCriticPolicy = cls(
        OBSERVATIONS[observation],
        ACTIONS[name.split(",")[0]],
        lambda _: 1e-3,
        **{**ACTORS[name], **options},
    )
    return policy


def observations(policy: ActorCriticPolicy, rows: int) -> Any:
    samples = [policy.observation_space.sample() for _ in range(rows)]
    return pytree.tree_map(lambda *column: torch.stack([torch.as_tensor(sample) for sample in column]), *samples)


def traced_actor(policy: ActorCriticPolicy, inputs: Inputs) -> tuple[fx.GraphModule, list[Any]]:
    with unvalidated_distributions():
        graph = trace(ActorGraph(policy), inputs, policy, draws=True)
    return graph, noise_as_inputs(graph)


@pytest.mark.parametrize("name", ACTORS)
def test_the_traced_forward_is_the_policys_with_the_same_draws(name: str) -> None:
    policy = policy_of(name)
    if policy.use_sde:
        policy.reset_noise(5)
    inputs = acting_inputs(policy, observations(policy, 5))
    graph, noise = traced_actor(policy, inputs)
    torch.manual_seed(1)
    with torch.no_grad():
        expected = policy(inputs["observation"])
    after = torch.get_rng_state()
    torch.manual_seed(1)
    found = graph(*tensors_of(inputs), *(draw.draw() for draw in noise))
    assert torch.equal(torch.get_rng_state(), after)  # so that the next step draws the same too
    # The log-probability of a squashed action goes through the inverse of tanh, which makes more of a rounding.
    tolerance = 2e-5 if "squashed" in name else 2e-6
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=tolerance, atol=tolerance)
    assert found[0].dtype == expected[0].dtype


@pytest.mark.parametrize("rows", [1, 2, 7, 16, 33])
@pytest.mark.parametrize("name", ["box", "discrete", "multidiscrete", "multibinary"])
def test_sampled_actions_are_the_policys_for_any_number_of_rows(name: str, rows: int) -> None:
    policy = policy_of(name)
    inputs = acting_inputs(policy, observations(policy, rows))
    graph, noise = traced_actor(policy, inputs)
    torch.manual_seed(rows)
    with torch.no_grad():
        expected = policy(inputs["observation"])[0]
    torch.manual_seed(rows)
    found = graph(*tensors_of(inputs), *(draw.draw() for draw in noise))[0]
    # Choices to the bit; of a Gaussian action the draw is, and the mean is rounded otherwise.
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6 if name == "box" else 0)


def test_parameters_are_inputs_of_the_graph() -> None:
    policy = policy_of("box")
    inputs = acting_inputs(policy, observations(policy, 3))
    graph, noise = traced_actor(policy, inputs)
    draws = [draw.draw() for draw in noise]
    before = graph(*tensors_of(inputs), *draws)[1].clone()
    with torch.no_grad():
        policy.value_net.get_parameter("bias").add_(1.0)  # the values are those of before and 1
    torch.testing.assert_close(graph(*tensors_of(inputs), *draws)[1], before + 1.0)


class Doubled(ActorCriticPolicy):
    """Calls its extractor twice, and draws once more than its actions need."""

    def forward(self, obs: Any, deterministic: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        action, value, log_prob = super().forward(obs, deterministic)
        return action, value + torch.bernoulli(torch.full_like(value, 0.5)), log_prob


def test_a_custom_forward_is_traced_with_its_own_draws_in_order() -> None:
    policy = Doubled(OBSERVATIONS["vector"], ACTIONS["multidiscrete"], lambda _: 1e-3)
    inputs = acting_inputs(policy, observations(policy, 4))
    graph, noise = traced_actor(policy, inputs)
    assert [draw.kind for draw in noise] == ["exponential", "exponential", "uniform"]
    torch.manual_seed(2)
    with torch.no_grad():
        expected = policy(inputs["observation"])
    torch.manual_seed(2)
    for mine, theirs in zip(graph(*tensors_of(inputs), *(draw.draw() for draw in noise)), expected, strict=True):
        torch.testing.assert_close(mine, theirs)


def refusing(body: Any) -> type[ActorCriticPolicy]:
    class Refusing(ActorCriticPolicy):
        def forward(self, obs: Any, deterministic: bool = False) -> Any:
            return body(super().forward(obs, deterministic), obs, self)

    return Refusing


OUTSIDE = torch.ones(1)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (lambda out, obs, _: out if obs.sum() > 0 else out[:2], "cannot be traced"),
        (lambda out, obs, _: (out[0], out[1] + torch.rand_like(out[1]), out[2]), "rand_like"),
        (lambda out, obs, _: (out[0], out[1] * OUTSIDE, out[2]), "cannot be traced"),
    ],
    ids=["branches on numbers", "draws otherwise", "uses a tensor that is no buffer"],
)
def test_what_cannot_be_traced_is_refused_with_the_reason(body: Any, message: str) -> None:
    policy = refusing(body)(OBSERVATIONS["vector"], ACTIONS["discrete"], lambda _: 1e-3)
    with pytest.raises(CompileError, match=message):
        traced_actor(policy, acting_inputs(policy, observations(policy, 2)))


def test_a_replaced_or_changed_part_changes_the_fingerprint() -> None:
    policy = policy_of("discrete", activation_fn=nn.LeakyReLU)
    before = fingerprint(policy)
    assert fingerprint(policy) == before
    activation: Any = policy.mlp_extractor.policy_net[1]
    activation.negative_slope = 0.5
    assert fingerprint(policy) != before
    activation.negative_slope = 0.01
    assert fingerprint(policy) == before
    policy.mlp_extractor.policy_net[1] = nn.LeakyReLU()
    assert fingerprint(policy) != before
    before = fingerprint(policy)
    policy.train(not policy.training)
    assert fingerprint(policy) != before


def test_other_shapes_have_another_signature() -> None:
    assert signature({"a": torch.zeros(3), "b": 1}) == signature({"a": torch.ones(3), "b": 1})
    for other in ({"a": torch.zeros(4), "b": 1}, {"a": torch.zeros(3).double(), "b": 1}, {"a": torch.zeros(3), "b": 2}):
        assert signature(other) != signature({"a": torch.zeros(3), "b": 1})


def test_substituted_tensors_leave_when_the_block_ends_by_an_error() -> None:
    policy = policy_of("box", "dict")
    before = dict(policy.named_parameters())
    with (
        pytest.raises(RuntimeError, match="stop"),
        substituted(policy, {"log_std": torch.zeros(2)}),
    ):
        assert policy.log_std.sum() == 0
        raise RuntimeError("stop")
    assert all(policy.get_parameter(name) is tensor for name, tensor in before.items())
    assert isinstance(policy.observation_space, spaces.Dict)
