"""What a policy's code does besides computing is done by its graphs too, or refused by name; tracing leaves none."""

from __future__ import annotations

import copy
import io
import pickle
import random
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.distributions import CategoricalDistribution
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import Tensor, nn

from sb3_ppo_ext import PPOX, AdaptiveKL
from sb3_ppo_ext.engines.errors import CompileError
from sb3_ppo_ext.engines.selection import CompileWarning
from sb3_ppo_ext.engines.tracing import Inputs
from sb3_ppo_ext.policies.side_effects import Snapshot
from tests.engines.extractors import Extractor, Forward
from tests.environments import Toy
from tests.traced_graphs import Traced, graphs_of, trace_only

pytestmark = pytest.mark.filterwarnings(
    "ignore::sb3_ppo_ext.TrainingWarning", "ignore:You have specified a mini-batch size"
)

# Of 20 rows the last minibatch has 4, which is updated eagerly; episodes are cut by their time limit in between.
SETTINGS: dict[str, Any] = {"n_steps": 20, "batch_size": 16, "n_epochs": 2, "seed": 0, "device": "cpu"}


def model_of(forward: Forward, *, compile: Any = True, **options: Any) -> PPOX:
    kwargs = {"features_extractor_class": Extractor, "features_extractor_kwargs": {"forward": forward}, "net_arch": [8]}
    model = PPOX("MlpPolicy", Toy(length=7), compile=compile, policy_kwargs=kwargs, **{**SETTINGS, **options})
    trace_only(model)
    return model


def running(mean: Tensor, x: Tensor) -> Tensor:
    return 0.9 * mean + 0.1 * x.detach().mean(0)


def assigns(self: Any, x: Tensor) -> Any:
    if self.training:
        self.mean = running(self.mean, x)
    return x - self.mean


def assigns_in_either_mode(self: Any, x: Tensor) -> Any:
    self.mean = running(self.mean, x)
    return x - self.mean


def assigns_after_use(self: Any, x: Tensor) -> Any:
    out = x * (1 - self.mean)  # its gradient needs the old mean
    self.mean = running(self.mean, x)
    return out


def swaps(self: Any, x: Tensor) -> Any:
    self.last, self.mean = self.mean, running(self.last, x)
    return x - self.mean + self.last


def adds(self: Any, x: Tensor) -> Any:
    if self.training:
        self.mean += 0.1 * x.detach().mean(0)
    return x - self.mean


def copies(self: Any, x: Tensor) -> Any:
    self.mean.copy_(running(self.mean, x))
    return x - self.mean


def writes_to_data(self: Any, x: Tensor) -> Any:
    self.mean.data.mul_(0.9).add_(0.1 * x.detach().mean(0))
    return x - self.mean


WRITING = [assigns, assigns_in_either_mode, assigns_after_use, swaps, adds, copies, writes_to_data]


@pytest.mark.parametrize("minibatch_controller", [False, True])
@pytest.mark.parametrize("forward", WRITING)
def test_buffers_that_are_written_to_are_those_of_eager_training(forward: Forward, minibatch_controller: bool) -> None:
    controller = {"learning_rate": AdaptiveKL(1e-3, 1e-4, every="minibatch"), "kl_estimator": "k3"}
    options = controller if minibatch_controller else {}
    eager = model_of(forward, compile=False, **options).learn(60).policy.state_dict()
    compiled = model_of(forward, **options).learn(60)
    assert graphs_of(compiled).calls["acting"] >= 60
    assert eager["features_extractor.mean"].abs().min() > 1e-4
    for name, tensor in compiled.policy.state_dict().items():
        torch.testing.assert_close(tensor, eager[name], rtol=1e-5, atol=1e-5, msg=name)


def test_the_exact_kl_to_what_acted_is_not_computed_from_buffers_that_have_changed_since() -> None:
    options = {"kl_coef": AdaptiveKL(1.0, 0.01)}
    with pytest.raises(ValueError, match=r'compile=True: acting changes features_extractor\.mean.*kl_estimator="k3"'):
        model_of(assigns_in_either_mode, **options).learn(20)
    eager = model_of(assigns_in_either_mode, compile=False, **options).learn(60)
    model = model_of(assigns_in_either_mode, compile="auto", **options)
    model._engines.compiles = True  # as in a long training
    with pytest.warns(CompileWarning, match="acting is not compiled"):
        model.learn(60)
    assert graphs_of(model).calls["update, whole"] == 3 * 2  # of the full minibatches, all the same
    for name, tensor in model.policy.state_dict().items():
        torch.testing.assert_close(tensor, eager.policy.state_dict()[name], rtol=1e-5, atol=1e-5, msg=name)


def assigns_data(self: Any, x: Tensor) -> Any:
    self.mean.data = running(self.mean, x)
    return x - self.mean


def assigns_another_shape(self: Any, x: Tensor) -> Any:
    self.mean = self.mean[None]
    return x


def registers(self: Any, x: Tensor) -> Any:
    self.register_buffer("more", x.detach().mean(0))
    return x


def keeps(self: Any, x: Tensor) -> Any:
    self.kept = x
    return x


def counts(self: Any, x: Tensor) -> Any:
    self.calls += 1
    return x


def grows(self: Any, x: Tensor) -> Any:
    self.seen.append(len(x))
    return x


def draws_from_numpy(self: Any, x: Tensor) -> Any:
    return x + 0.01 * float(np.random.rand())


def draws_from_python(self: Any, x: Tensor) -> Any:
    return x + 0.01 * random.random()


def draws_from_its_own(self: Any, x: Tensor) -> Any:
    return x + 0.01 * float(self.draws.random())


def drops(self: Any, x: Tensor) -> Any:
    return torch.dropout(x, 0.5, self.training)


def normalizes(self: Any, x: Tensor) -> Any:
    return nn.functional.batch_norm(x, self.mean, self.last, training=self.training)


def uses_a_plain_tensor(self: Any, x: Tensor) -> Any:
    return x * self.constant


REFUSED = [
    (assigns_data, r"assigns features_extractor\.mean\.data"),
    (assigns_another_shape, r"assigns features_extractor\.mean"),
    (registers, r"changes features_extractor\.more"),
    (keeps, r"changes features_extractor\.kept"),
    (counts, r"changes features_extractor\.calls"),
    (grows, r"changes features_extractor\.seen"),
    (draws_from_numpy, r"draws from numpy\.random"),
    (draws_from_python, r"draws from Python's random"),
    (draws_from_its_own, r"changes features_extractor\.draws"),
    (drops, r"draws by aten\.bernoulli"),
    (normalizes, r"batch normalization"),
    (uses_a_plain_tensor, r"features_extractor\.constant is a tensor and no buffer"),
]


def remembered(extractor: Any) -> str:
    """All that the extractor holds, as text."""
    names = {name: value for name, value in vars(extractor).items() if name != "training"}
    return repr((names, extractor._buffers, extractor.draws.bit_generator.state))


@pytest.mark.parametrize(("forward", "message"), REFUSED)
def test_what_no_graph_does_is_refused_with_its_name(forward: Forward, message: str) -> None:
    model = model_of(forward)
    states = random.getstate(), np.random.get_state()
    before = remembered(model.policy.features_extractor)
    with pytest.raises(ValueError, match=f"compile=True: .*{message}.*compile=False"):
        model.learn(20)
    assert remembered(model.policy.features_extractor) == before
    assert states[0] == random.getstate()
    np.testing.assert_equal(np.random.get_state(), states[1])
    copy.deepcopy(model.policy)


def test_statistics_of_a_norm_are_refused_in_the_update() -> None:
    model = model_of(lambda self, x: self.norm(x[:, None])[:, 0])
    model.policy.features_extractor.norm = nn.InstanceNorm1d(1, track_running_stats=True)
    with pytest.raises(ValueError, match=r"features_extractor\.norm is a InstanceNorm1d, which does more than compute"):
        model.learn(20)


@pytest.mark.parametrize("forward", [counts, keeps, assigns_data])
def test_auto_trains_eagerly_then_and_warns_once_with_the_reason(forward: Forward) -> None:
    eager = model_of(forward, compile=False).learn(40).learn(20, reset_num_timesteps=False)
    model = model_of(forward, compile="auto")
    model._engines.compiles = True  # as in a long training
    with pytest.warns(CompileWarning, match=r"the policy's forward pass .* features_extractor\.") as warned:
        model.learn(40)
    assert len(warned) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.learn(20, reset_num_timesteps=False)
    assert model.policy.features_extractor.calls == eager.policy.features_extractor.calls
    for name, tensor in eager.policy.state_dict().items():
        assert torch.equal(model.policy.state_dict()[name], tensor), name


def settles(self: Any, x: Tensor) -> Any:
    self.ready, self.shape = True, tuple(x.shape[1:])
    return x


def test_what_is_set_once_is_no_side_effect() -> None:
    model = model_of(settles).learn(40)
    assert graphs_of(model).calls["acting"] >= 40


class Copying(BaseCallback):
    """Copies and pickles the policy in the middle of the first rollout."""

    copied: int = 0

    def _on_step(self) -> bool:
        copy.deepcopy(self.model.policy)
        pickle.dump(self.model.policy.action_dist, io.BytesIO())
        self.copied += 1
        return True


@pytest.mark.parametrize("action", ["discrete", "box", "multidiscrete"])
def test_a_callback_copies_the_policy_in_the_first_rollout(action: str) -> None:
    model = PPOX("MlpPolicy", Toy("vector", action), compile=True, **SETTINGS)
    trace_only(model)
    callback = Copying()
    model.learn(20, callback)
    assert callback.copied == 20


class Noting(CategoricalDistribution):
    """Keeps the logits it was made with, as users' distributions do, and may count."""

    counting = False

    def proba_distribution(self, action_logits: Tensor) -> Any:
        self.logits = action_logits
        if self.counting:
            self.asked = getattr(self, "asked", 0) + 1
        return super().proba_distribution(action_logits)

    def log_prob(self, actions: Tensor) -> Tensor:
        return super().log_prob(actions) + 0.0 * self.logits.sum(dim=-1)


class WithNoting(ActorCriticPolicy):
    def _build(self, lr_schedule: Any) -> None:
        self.action_dist = Noting(3)
        super()._build(lr_schedule)


def test_a_distribution_of_ones_own_may_keep_tensors_and_may_not_count() -> None:
    trained = []
    for compile in (False, True):
        model = PPOX(WithNoting, Toy(), compile=compile, **SETTINGS)
        trace_only(model)
        trained.append(model.learn(40).policy.state_dict())
    for name, tensor in trained[0].items():
        torch.testing.assert_close(trained[1][name], tensor, rtol=1e-5, atol=1e-6, msg=name)
    model = PPOX(WithNoting, Toy(), compile=True, **SETTINGS)
    assert isinstance(model.policy.action_dist, Noting)
    model.policy.action_dist.counting = True
    with pytest.raises(ValueError, match=r"changes WithNoting\.action_dist\.asked"):
        model.learn(20)


def test_hooks_are_refused_because_no_graph_calls_them() -> None:
    model = model_of(lambda self, x: x)
    model.policy.mlp_extractor.policy_net[0].register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match=r"mlp_extractor\.policy_net\.0 has a hook"):
        model.learn(20)


class Counting(ActorCriticPolicy):
    """Counts where no graph is: in the value of the last observation."""

    calls = 0

    def predict_values(self, obs: Any) -> Tensor:
        self.calls += 1
        return super().predict_values(obs)


def test_an_attribute_that_never_rests_makes_no_graph_every_rollout() -> None:
    model = PPOX(Counting, Toy(), compile="auto", **SETTINGS)
    trace_only(model)
    model._engines.compiles = True
    with pytest.warns(CompileWarning, match=r"Counting\.calls has changed again and again"):
        model.learn(240)
    assert graphs_of(model).made <= 8 and model.num_timesteps == 240


def test_graphs_that_may_not_write_say_so() -> None:
    class Writing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mean", torch.zeros(2))

    def written(inputs: Inputs) -> tuple[Tensor, ...]:
        inputs["constants"]["mean"].add_(inputs["x"])
        return (inputs["x"],)

    inputs = {"constants": {"mean": torch.zeros(2)}, "x": torch.ones(2)}
    with pytest.raises(CompileError, match="writes to mean"):
        Traced().get("sum", written, inputs, Writing())
    assert Traced().get("sum", written, inputs, Writing(), writes=True).written == ("mean",)


def test_a_snapshot_puts_back_what_is_within_attributes() -> None:
    module = nn.Linear(2, 2)
    held: Any = module
    held.table, held.array, held.names = {"a": [1]}, np.zeros(3), {"x"}
    before = Snapshot(module)
    assert before.changes() == []
    held.table["a"].append(2)
    held.table["b"] = 3
    held.array[1] = 1.0
    held.names.add("y")
    assert {change.what for change in before.changes()} == {
        "changes Linear.table['a']",
        "changes Linear.table['b']",
        "changes Linear.array",
        "changes Linear.names",
    }
    before.restore()
    assert (held.table, held.array.sum(), held.names) == ({"a": [1]}, 0.0, {"x"})
