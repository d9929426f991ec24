"""The compiled update learns what the eager one learns, up to rounding, and is refused where it cannot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.vec_env import DummyVecEnv
from torch import Tensor, nn

from sb3_ppo_ext import PPOX
from sb3_ppo_ext.engines.cpu.engine import CpuEngine
from sb3_ppo_ext.engines.rows import RowFamily
from sb3_ppo_ext.engines.traced_adam import adam_step, groups_of, step_size
from sb3_ppo_ext.engines.traced_update import UpdateFunctions
from sb3_ppo_ext.engines.update_inputs import UpdateInputs
from sb3_ppo_ext.objective.statistics import Statistics
from sb3_ppo_ext.rollout.minibatches import Rollout
from sb3_ppo_ext.run import Run
from sb3_ppo_ext.update.prepare import row_update
from sb3_ppo_ext.update.step import COLUMNS, exceeds
from tests.cases import CASES
from tests.environments import Toy
from tests.rollout_buffers import Doubling
from tests.rollout_records import assert_same, collected, environments, plain

pytestmark = pytest.mark.filterwarnings("ignore::sb3_ppo_ext.TrainingWarning")

SETTINGS: dict[str, Any] = {"n_steps": 64, "batch_size": 32, "n_epochs": 3, "seed": 0, "device": "cpu"}


def model_of(name: str, *, compile: bool) -> PPOX:
    observation, action, policy, options = CASES[name]
    env = DummyVecEnv([lambda: Toy(observation, action)])
    return PPOX(policy, env, compile=compile, **{**SETTINGS, **options})


def assert_close(model: PPOX, other: PPOX, start: PPOX) -> None:
    """Both have moved from ``start`` by the same, up to rounding.

    Rounding is some 1e-7 of a gradient, and more where a gradient is small: Adam divides by its size. Which entries
    those are depends on the machine. Of all cases here and 8 seeds of each, the moves differed by at most 2.2e-6 of
    their norm, and those of a single tensor by at most 1.2e-4 of its largest.
    """
    moves, differences = [], []
    for name, before in start.policy.state_dict().items():
        mine, theirs = (each.policy.state_dict()[name].double() for each in (model, other))
        moves.append((mine - before).flatten())
        differences.append((theirs - mine).flatten())
        ratio = differences[-1].abs().max() / moves[-1].abs().max().clamp(min=1e-12)
        assert ratio <= 1e-3, f"{name} differs by {ratio:.1e} of its largest move"
    assert torch.cat(differences).norm() <= 2e-5 * torch.cat(moves).norm()


def graphs_made(model: PPOX) -> int:
    engine = model._engines.engine
    return engine.graphs.made if isinstance(engine, CpuEngine) else 0


def updated(name: str, *, compile: bool) -> PPOX:
    """The model after the update from one rollout, which is collected eagerly in either case."""
    model = model_of(name, compile=compile)
    model._engines.actor_refused = True
    _, callback = model._setup_learn(64)
    callback.on_training_start({}, {})
    assert model.env is not None
    assert model.collect_rollouts(model.env, callback, model.rollout_buffer, model.n_steps)
    model._update_current_progress_remaining(model.num_timesteps, 64)
    model.train()
    assert bool(graphs_made(model)) is compile
    return model


def assert_same_update(name: str) -> None:
    eager, compiled = updated(name, compile=False), updated(name, compile=True)
    assert_close(eager, compiled, model_of(name, compile=False))
    assert eager.knobs.numbers() == pytest.approx(compiled.knobs.numbers(), rel=1e-4)
    assert eager._n_updates == compiled._n_updates
    for key, value in eager.logger.name_to_value.items():
        np.testing.assert_allclose(compiled.logger.name_to_value[key], value, rtol=2e-3, atol=1e-5, err_msg=key)
    steps = [model.policy.optimizer.state_dict()["state"][0]["step"].item() for model in (eager, compiled)]
    assert steps[0] == steps[1] > 0


def test_a_kl_that_rounds_to_its_limit_stops_neither_the_graph_nor_the_eager_update() -> None:
    model = model_of("clip schedule", compile=False)
    model.target_kl = 0.03  # 1.5 of it, 0.045, is 0.0450000018 in float32
    rollout = Rollout(model.rollout_buffer, model.action_space, normalize_advantage=False)
    run = model._run()
    update = row_update(run, rollout)
    prepared = UpdateInputs(run, update)
    step = UpdateFunctions(model.policy, update.adapter, prepared.plan).step
    limit = prepared.inputs["kl_limit"]
    zeros = [torch.zeros(parameter.numel()) for parameter in prepared.inputs["parameters"].values()]
    for kl, stops in ((limit, False), (torch.nextafter(limit, limit + 1), True)):
        row = torch.zeros(len(Statistics._fields))
        row[COLUMNS.index("approx_kl")] = kl
        (decided,) = step({**prepared.inputs, "flat": torch.cat([*zeros, row])})
        assert bool(exceeds(kl, run.settings.kl_limit)) is stops is not bool(decided[COLUMNS.index("stepped")])


@pytest.mark.slow
@pytest.mark.usefixtures("compiler")
@pytest.mark.filterwarnings("ignore:You have specified a mini-batch size")
def test_one_rollouts_update_agrees_with_the_eager_one() -> None:
    assert_same_update("everything")  # 20 s where nothing is compiled yet; the other cases are traced


# Whole trainings of these are compared in ``cpu/test_training`` as of all cases; their update is that of another case.
OTHER_SPACES = {"multidiscrete", "multibinary", "float64 observations", "dict", "squashed gSDE", "lambda schedules"}


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.filterwarnings("ignore:You have specified a mini-batch size")
@pytest.mark.parametrize("name", [name for name in CASES if name not in OTHER_SPACES])
def test_before_the_compiler_it_is_the_same_for_every_kind_of_update(name: str) -> None:
    assert_same_update(name)


@pytest.mark.usefixtures("uncompiled")
def test_knobs_do_not_recompile_and_what_changed_between_learn_calls_is_noticed(tmp_path: Path) -> None:
    models = []
    for compile in (False, True):
        model = model_of("clip schedule", compile=compile).learn(192)
        model.save(tmp_path / "model")
        model.set_parameters(str(tmp_path / "model.zip"))
        model.learn(64)
        assert graphs_made(model) == 2 * compile  # three clip ranges; one graph to act and one to learn
        model.batch_size = 16
        models.append(model.learn(64))
        assert graphs_made(model) == 3 * compile
    assert_close(models[0], models[1], model_of("clip schedule", compile=False))
    loaded = PPOX.load(tmp_path / "model", env=Toy())
    assert loaded.compile is True and loaded._engines.engine is None


@pytest.mark.usefixtures("uncompiled")
@pytest.mark.parametrize("action", ["box", "discrete", "multibinary"])
def test_what_a_graph_acted_by_is_not_overwritten(action: str) -> None:
    _, recorder = collected(PPOX, environments(action=action), compile=True)
    for arrays, then in recorder.kept:
        assert_same(plain(arrays), then)


@pytest.mark.slow
@pytest.mark.usefixtures("compiler")
@pytest.mark.filterwarnings("ignore:You have specified a mini-batch size")
def test_no_step_is_taken_on_a_gradient_that_is_not_finite(monkeypatch: pytest.MonkeyPatch) -> None:
    collected = RowFamily.rollout

    def with_nan(family: RowFamily, run: Run) -> Rollout:
        rollout = collected(family, run)
        rollout.rows.advantage[3] = float("nan")
        return rollout

    model = updated("everything", compile=True)  # by the library of the test before
    monkeypatch.setattr(RowFamily, "rollout", with_nan)
    monkeypatch.setattr(np.random, "permutation", np.arange)  # the fourth row is of the graph's minibatch
    before = {name: tensor.clone() for name, tensor in model.policy.state_dict().items()}
    with pytest.raises(ValueError, match="policy_gradient_loss is nan"):
        model.train()
    for name, tensor in model.policy.state_dict().items():
        assert tensor.isfinite().all(), name
    assert any(not torch.equal(tensor, before[name]) for name, tensor in model.policy.state_dict().items())


class WithDropout(ActorCriticPolicy):
    def _build(self, lr_schedule: Any) -> None:
        super()._build(lr_schedule)
        self.dropout = nn.Dropout(0.1)


@pytest.mark.usefixtures("compiler")
@pytest.mark.parametrize(
    ("policy", "options", "message"),
    [
        ("MlpPolicy", {"rollout_buffer_class": Doubling}, "Doubling"),
        (WithDropout, {}, "dropout is a Dropout"),
        ("MlpPolicy", {"policy_kwargs": {"optimizer_class": torch.optim.SGD}}, "SGD"),
        ("MlpPolicy", {"policy_kwargs": {"optimizer_kwargs": {"amsgrad": True}}}, "amsgrad"),
    ],
    ids=["buffer", "dropout", "optimizer", "amsgrad"],
)
def test_what_cannot_be_compiled_is_refused_with_the_reason(policy: Any, options: dict[str, Any], message: str) -> None:
    model = PPOX(policy, Toy(), compile=True, **SETTINGS, **options)
    with pytest.raises(ValueError, match=f"compile=True: .*{message}.*compile=False"):
        model.learn(64)


@pytest.mark.parametrize("optimizer_class", [torch.optim.Adam, torch.optim.AdamW])
def test_adam_step_is_torchs(optimizer_class: type[torch.optim.Optimizer]) -> None:
    torch.manual_seed(0)
    parameter = nn.Parameter(torch.randn(5))
    optimizer = optimizer_class([parameter], lr=0.01, weight_decay=0.1, eps=1e-5)  # type: ignore[call-arg]
    (group,) = groups_of(optimizer)
    mine: tuple[Tensor, Tensor, Tensor] = (parameter.detach().clone(), torch.zeros(5), torch.zeros(5))
    for step in range(1, 4):
        parameter.grad = torch.randn(5)
        powers = (
            torch.tensor(group.beta1**step, dtype=torch.float64),
            torch.tensor(group.beta2**step, dtype=torch.float64),
        )
        size = step_size(torch.tensor(0.01, dtype=torch.float64), powers)
        mine = adam_step(*mine, gradient=parameter.grad, size=size, group=group)
        optimizer.step()
        torch.testing.assert_close(mine[0], parameter.detach(), rtol=1e-6, atol=1e-7)
