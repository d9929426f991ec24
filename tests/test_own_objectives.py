"""A person's own objective, registered from outside the package, works by name wherever PPOX's own do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from sb3_ppo_ext_torchrl import PPOXLoss, actor_module, critic_module
from torch import Tensor
from torch.nn import functional

from sb3_ppo_ext import PPOX, kl_estimator, surrogate, value_clip, value_error
from sb3_ppo_ext.objective.registry import SURROGATES, VALUE_ERRORS
from tests.environments import Toy
from tests.language import setups
from tests.torchrl.rollouts import collected, moved, rollout_of
from tests.traced_graphs import graphs_of, trace_only

pytestmark = pytest.mark.filterwarnings("ignore::sb3_ppo_ext.TrainingWarning")

SETTINGS: dict[str, Any] = {"n_steps": 32, "batch_size": 16, "n_epochs": 4, "seed": 0, "device": "cpu"}


def twin(
    log_ratio: Tensor, advantage: Tensor, *, low: Any, high: Any, dual_clip: Any, mask: Tensor | None, reduce: Any
) -> Tensor:
    """ "clip" once more."""
    ratio = log_ratio.exp()
    gain = torch.min(ratio * advantage, ratio.clamp(1 - low, 1 + high) * advantage)
    if dual_clip is not None:
        gain = torch.where(advantage < 0, gain.max(dual_clip * advantage), gain)
    loss: Tensor = -reduce(gain, mask)
    return loss


def capped(log_ratio: Tensor, advantage: Tensor, *, high: Any, mask: Tensor | None, reduce: Any) -> Tensor:
    """Weights of their own gradient: no objective of PPOX has it."""
    weight = log_ratio.exp().clamp(max=1 + high).detach()
    loss: Tensor = -reduce(weight * advantage * log_ratio, mask)
    return loss


def squares(log_ratio: Tensor, mask: Tensor | None, reduce: Any) -> Tensor:
    """k2 once more."""
    return reduce(log_ratio**2 / 2, mask)  # type: ignore[no-any-return]


def squared(value: Tensor, target: Tensor) -> Tensor:
    """l2 once more."""
    return (value - target) ** 2


def clipped_only(
    value: Tensor, target: Tensor, old_value: Tensor, *, clip: Any, mask: Any, error: str, reduce: Any
) -> Any:
    """ "sb3" once more."""
    near = old_value + (value - old_value).clamp(-clip, clip)
    return reduce(VALUE_ERRORS[error](near, target), mask)


@pytest.fixture(autouse=True)
def registered(objectives: None) -> None:
    surrogate("twin", keeps_gradient=False)(twin)
    surrogate("capped")(capped)
    kl_estimator("squares")(squares)
    value_error("squared")(squared)
    value_error("huber")(functional.huber_loss)
    value_clip("clipped only")(clipped_only)


OWN = {"surrogate": "twin", "kl_estimator": "squares", "value_error": "squared", "value_clip": "clipped only"}
BUILT_IN = {"surrogate": "clip", "kl_estimator": "k2", "value_error": "l2", "value_clip": "sb3"}
KNOBS: dict[str, Any] = {"clip_range": "linear:0.02:0.01", "kl_coef": 0.3, "clip_range_vf": 0.05, "learning_rate": 3e-3}
CASES: dict[str, dict[str, Any]] = {
    "symmetric": KNOBS,
    "upper clip and dual clip": {**KNOBS, "clip_range_high": 0.05, "dual_clip": 1.05},
}


def learned(traced: bool = False, **options: Any) -> tuple[PPOX, Tensor]:
    """The model after one rollout, which is the same whatever it is trained by, and its parameters."""
    model = PPOX("MlpPolicy", Toy(action="box"), **{**SETTINGS, "compile": traced, **options})
    if traced:
        trace_only(model)
    model.learn(SETTINGS["n_steps"])
    return model, torch.cat([parameter.detach().flatten() for parameter in model.policy.parameters()])


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("traced", [False, True], ids=["eager", "traced"])
def test_a_twin_of_ppox_s_own_objectives_learns_what_they_learn(name: str, traced: bool) -> None:
    # Rounding: the mean of its squares is not taken in one pass; over 8 steps of Adam.
    mine, theirs = (learned(traced, **CASES[name], **names)[1] for names in (OWN, BUILT_IN))
    torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=2e-6)
    other = learned(traced, **{**CASES[name], "clip_range": 0.5}, **OWN)[1]
    assert (mine - other).abs().max() > 1e-3  # the clip range does bind


def test_eagerly_it_is_the_same_to_the_bit() -> None:
    chosen: list[dict[str, Any]] = [{**names, "value_error": "l2"} for names in (OWN, BUILT_IN)]
    mine, theirs = (learned(**KNOBS, **names)[1] for names in chosen)
    assert torch.equal(mine, theirs)


@pytest.mark.parametrize("name", ["capped", "huber"])
def test_an_objective_that_ppox_does_not_have_is_learned_alike_by_the_graphs(name: str) -> None:
    choice = {"surrogate" if name == "capped" else "value_error": name}
    options: dict[str, Any] = {**choice, "clip_range_high": 0.01 if name == "capped" else None, "learning_rate": 3e-3}
    eager, (model, traced) = learned(**options)[1], learned(True, **options)
    torch.testing.assert_close(traced, eager, rtol=1e-5, atol=2e-6)
    assert graphs_of(model).calls["update, whole"] == 8
    assert (eager - learned(learning_rate=3e-3)[1]).abs().max() > 1e-3


def test_its_gradient_is_that_of_its_formula() -> None:
    # ratios 2, 1 and 0.5 under a bound of 1.2: weights 1.2, 1 and 0.5; d(-E[w A log r]) / d log r = -w A / 3
    log_ratio = torch.tensor([2.0, 1.0, 0.5]).log().requires_grad_()
    advantage = torch.tensor([1.0, -2.0, 3.0])
    capped(log_ratio, advantage, high=0.2, mask=None, reduce=lambda tensor, _: tensor.mean()).backward()
    torch.testing.assert_close(log_ratio.grad, torch.tensor([-1.2, 2.0, -1.5]) / 3)


def test_another_function_under_a_known_name_is_traced_anew() -> None:
    model, _ = learned(True, surrogate="capped", clip_range_high=0.01)
    graphs = graphs_of(model)
    before = graphs.made

    @surrogate("capped", replace=True)
    def opposite(log_ratio: Tensor, advantage: Tensor, *, high: Any, mask: Tensor | None, reduce: Any) -> Tensor:
        return -capped(log_ratio, advantage, high=high, mask=mask, reduce=reduce)

    model.learn(32)
    assert graphs.made == before + 1
    assert len(set(graphs.libraries)) == len(graphs.libraries)  # nor would its compiled library be the other's


@pytest.mark.parametrize("traced", [False, True], ids=["eager", "traced"])
def test_tokens_are_trained_by_it(traced: bool) -> None:
    learned = []
    for names in (OWN, BUILT_IN, {**BUILT_IN, "value_error": "huber"}):
        model = setups.ppox(compile=traced, **{**KNOBS, "clip_range_high": 0.05, **names})
        if traced:
            trace_only(model)
        model.learn(16)
        if traced:
            assert graphs_of(model).calls["gradient of tokens"] > 0
        learned.append(torch.cat([parameter.detach().flatten() for parameter in model.policy.parameters()]))
    # Adam turns rounding of tiny gradients into steps of up to the learning rate, 3e-3.
    torch.testing.assert_close(*learned[:2], rtol=0, atol=6e-4)
    assert (learned[2] - learned[1]).abs().max() > 6e-4


def test_the_kl_to_a_reference_is_by_it_in_reward_and_loss() -> None:
    learned = []
    for name in ("squares", "k2"):
        model = setups.ppox(ref_kl_coef=0.5, rollout_buffer_kwargs={"ref_kl": "loss", "ref_kl_estimator": name})
        model.learn(16)
        learned.append(torch.cat([parameter.detach().flatten() for parameter in model.policy.parameters()]))
    assert torch.equal(*learned)
    buffer: Any = model.rollout_buffer
    assert (buffer.token_kl("squares") == buffer.token_kl("k2")).all() and (buffer.token_kl("k2") > 0).any()


@pytest.mark.parametrize("mode", ["mean", "sum", "none"])
def test_the_loss_of_torchrl_takes_it(mode: str) -> None:
    model = collected()
    batch = rollout_of(model)
    moved(model)
    actor, critic = actor_module(model.policy), critic_module(model.policy)
    shared: dict[str, Any] = {"clip_epsilon": (0.02, 0.05), "dual_clip": 1.05, "kl_coef": 0.3, "clip_value": 0.05}
    losses = []
    for names in (OWN, BUILT_IN):
        choices: dict[str, Any] = {**names, "loss_critic_type": names["value_error"]}
        del choices["value_error"]
        losses.append(PPOXLoss(actor, critic, reduction=mode, **shared, **choices)(batch))
    assert set(losses[0].keys()) == set(losses[1].keys())
    for key, value in losses[0].items():
        torch.testing.assert_close(value, losses[1][key], msg=key)
    whole = PPOXLoss.from_ppox(collected(**OWN, kl_coef=0.3))
    assert (whole.objective.surrogate, whole.objective.kl_estimator) == ("twin", "squares")
    assert (whole.objective.value_error, whole.objective.value_clip) == ("squared", "clipped only")


def test_a_saved_model_asks_for_its_objective_to_be_registered(tmp_path: Path) -> None:
    learned(surrogate="capped")[0].save(tmp_path / "model")
    entry = SURROGATES._entries.pop("capped")
    with pytest.raises(
        ValueError, match=r"surrogate='capped': one of 'clip', .*first import the module that registers"
    ):
        PPOX.load(tmp_path / "model", env=Toy(action="box"))
    SURROGATES._entries["capped"] = entry
    assert PPOX.load(tmp_path / "model", env=Toy(action="box")).learn(32).surrogate == "capped"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"surrogate": "capped", "dual_clip": 3.0},
            r'dual_clip=3.0: only with surrogate="clip" or "twin", not "capped"',
        ),
        (
            {"surrogate": "none", "clip_range_high": 0.3},
            r'only surrogate="clip" or .*"twin" or "capped" has a use for it',
        ),
        ({"kl_estimator": "cubes"}, r"kl_estimator='cubes': one of 'exact', 'k1', 'k2', 'k3', 'squares' is needed"),
        ({"value_error": "cubed"}, r"value_error='cubed': one of 'l2', 'l1', 'smooth_l1', 'squared', 'huber' is"),
        ({"value_clip": ["sb3"]}, r"value_clip=\['sb3'\]: one of 'sb3', 'max', 'clipped only' is needed"),
    ],
)
def test_what_does_not_go_together_is_refused_by_what_is_registered(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PPOX("MlpPolicy", Toy(action="box"), **SETTINGS, **options)


def test_a_surrogate_that_divides_by_the_clip_range_is_kept_away_from_zero() -> None:
    surrogate("soft", divides_by_clip_range=True)(
        lambda log_ratio, advantage, *, clip_range, mask, reduce: -reduce(advantage * log_ratio / clip_range, mask)
    )
    with pytest.raises(ValueError, match=r'clip_range=.*surrogate="soft" divides by it'):
        PPOX("MlpPolicy", Toy(action="box"), surrogate="soft", clip_range="lin_0.2")
    PPOX("MlpPolicy", Toy(action="box"), surrogate="soft", clip_range="linear:0.2:0.02")


def test_a_surrogate_is_warned_of_much_clipping_only_where_clipping_takes_the_gradient(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, judged in (("twin", True), ("capped", False)):
        model = PPOX("MlpPolicy", Toy(action="box"), surrogate=name, **SETTINGS)
        seen: list[bool] = []
        monkeypatch.setattr(
            model._monitor.diagnostics,
            "check",
            lambda values, seen=seen, **_: seen.append("train/clip_fraction" in values),
        )
        model.learn(32)
        assert seen == [judged]
