"""What may be registered as an objective, under which names, and what is said where it may not."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from sb3_ppo_ext import kl_estimator, surrogate, value_clip, value_error
from sb3_ppo_ext.objective.losses import clipped_surrogate, fill_masked, kl_k1, kl_k3, masked_mean
from sb3_ppo_ext.objective.registry import KL_ESTIMATORS, SURROGATES, VALUE_CLIPS, VALUE_ERRORS
from sb3_ppo_ext.objective.terms import KnobValues, Objective, ppo_terms
from tests.objective.minibatches import evaluation, minibatch

pytestmark = pytest.mark.usefixtures("objectives")


def plain(log_ratio: Tensor, advantage: Tensor, *, low: Any, mask: Tensor | None, reduce: Any) -> Tensor:
    loss: Tensor = -reduce(log_ratio * advantage * low, mask)
    return loss


def other(log_ratio: Tensor, advantage: Tensor, *, mask: Tensor | None, reduce: Any) -> Tensor:
    loss: Tensor = -reduce(log_ratio * advantage, mask)
    return loss


def test_ppox_s_own_are_registered_with_what_is_known_of_them() -> None:
    own = ["clip", "spo", "none", "gspo", "cispo", "dppo_kl", "dppo_binary_tv", "dppo_binary_kl", "kl_bound"]
    assert list(SURROGATES) == own and list(KL_ESTIMATORS) == ["k1", "k2", "k3"]
    assert list(VALUE_ERRORS) == ["l2", "l1", "smooth_l1"] and list(VALUE_CLIPS) == ["sb3", "max"]
    assert {name: SURROGATES[name].uses for name in SURROGATES} == {
        "clip": {"clip_range", "clip_range_high", "dual_clip"},
        "spo": {"clip_range"},
        "none": set(),
        "gspo": {"clip_range", "clip_range_high"},
        "cispo": {"clip_range", "clip_range_high"},
        "dppo_kl": {"divergence_limit"},
        "dppo_binary_tv": {"divergence_limit"},
        "dppo_binary_kl": {"divergence_limit"},
        "kl_bound": {"kl_coef", "divergence_limit"},
    }
    assert [name for name in SURROGATES if SURROGATES[name].weighs_kl] == ["kl_bound"]
    assert [name for name in SURROGATES if not SURROGATES[name].keeps_gradient] == ["clip"]
    assert [name for name in SURROGATES if SURROGATES[name].divides_by_clip_range] == ["spo"]
    assert all(VALUE_ERRORS[name].averages for name in VALUE_ERRORS)


def test_a_name_belongs_to_one_function_unless_it_is_to_be_replaced() -> None:
    assert surrogate("mine")(plain) is plain
    entry = SURROGATES["mine"]
    surrogate("mine")(plain)  # a module that is imported twice
    assert SURROGATES["mine"] is entry
    with pytest.raises(ValueError, match=r"surrogate 'mine' is registered already \(.*plain\); choose"):
        surrogate("mine")(other)
    with pytest.raises(ValueError, match="pass replace=True"):
        surrogate("mine", keeps_gradient=False)(plain)
    surrogate("mine", replace=True)(other)
    assert SURROGATES["mine"].function is other
    with pytest.raises(ValueError, match=r"kl_estimator 'exact' is registered already \(PPOX itself"):
        kl_estimator("exact", replace=True)(kl_k1)


def test_an_objective_is_another_one_when_the_function_behind_its_name_is() -> None:
    surrogate("mine")(plain)
    before = Objective("mine")
    assert before == Objective("mine") and hash(before) == hash(Objective("mine"))
    surrogate("mine", replace=True)(other)
    assert before != Objective("mine")
    for field, register, function in (
        ("kl_estimator", kl_estimator, kl_k1),
        ("ref_kl_estimator", kl_estimator, kl_k1),
        ("value_error", value_error, functional.l1_loss),
    ):
        register("own", replace=True)(kl_k3 if register is kl_estimator else functional.mse_loss)
        before = Objective(**{field: "own"})  # type: ignore[arg-type]
        register("own", replace=True)(function)
        assert before != Objective(**{field: "own"})  # type: ignore[arg-type]


def test_an_objective_is_copied_and_pickled_by_its_names() -> None:
    surrogate("mine")(lambda log_ratio, advantage, *, mask, reduce: reduce(advantage * log_ratio, mask))
    objective = Objective("mine", kl_estimator="k3", value_error="l1")
    assert copy.deepcopy(objective) == objective == pickle.loads(pickle.dumps(objective))
    pickled = pickle.dumps(objective)
    del SURROGATES._entries["mine"]
    with pytest.raises(ValueError, match=r"surrogate='mine': .* first import the module that registers it"):
        pickle.loads(pickled)


def test_a_surrogate_is_given_the_knobs_it_names_and_nothing_else() -> None:
    given: dict[str, Any] = {}

    def noting(
        log_ratio: Tensor,
        advantage: Tensor,
        *,
        mask: Tensor | None,
        reduce: Any,
        low: Any = None,
        high: Any = None,
        dual_clip: Any = None,
        ent_coef: Any = None,
        tau: float = 7.0,
    ) -> Tensor:
        given.update(low=low, high=high, dual_clip=dual_clip, ent_coef=ent_coef, tau=tau)
        return reduce(advantage * log_ratio, mask)  # type: ignore[no-any-return]

    surrogate("noting")(noting)
    knobs = KnobValues(0.1, 0.4, ent_coef=0.03)
    ppo_terms(evaluation(), minibatch(), Objective("noting", 3.0, normalize_advantage=False), knobs)
    assert given == {"low": 0.1, "high": 0.4, "dual_clip": 3.0, "ent_coef": 0.03, "tau": 7.0}
    ppo_terms(evaluation(), minibatch(), Objective("noting"), knobs._replace(clip_range_high=None))
    assert (given["high"], given["dual_clip"]) == (0.1, None)


def test_a_function_is_registered_several_times_with_other_constants() -> None:
    new, batch = evaluation(), minibatch()
    for bound in (0.1, 0.5):
        surrogate(f"within {bound}")(partial(clipped_surrogate, low=bound, high=bound))
        mine = ppo_terms(new, batch, Objective(f"within {bound}"), KnobValues(0.2)).policy
        assert mine == ppo_terms(new, batch, Objective(), KnobValues(bound)).policy
    assert SURROGATES["within 0.1"].uses == {"dual_clip"}


def test_padding_reaches_a_surrogate_as_zeros_and_is_left_out_of_its_mean() -> None:
    surrogate("mine")(plain)
    nan = float("nan")
    mask = torch.tensor([[True, True], [True, False]])
    log_prob = torch.tensor([[-0.5, -2.5], [-0.5, nan]], requires_grad=True)
    new = evaluation()._replace(log_prob=log_prob, entropy=None, value=torch.zeros(2, 2), mask=mask, distribution=None)
    batch = minibatch()._replace(
        action_log_prob=torch.tensor([[-1.0, -2.0], [-0.5, nan]]),
        advantage=torch.tensor([[1.0, -1.0], [0.5, nan]]),
        state_value=torch.zeros(2, 2),
        value_target=torch.zeros(2, 2),
    )
    term = ppo_terms(new, batch, Objective("mine", normalize_advantage=False), KnobValues(0.2)).policy
    # log r A = 0.5, 0.5 and 0, times low = 0.2
    torch.testing.assert_close(term, torch.tensor(-0.2 / 3))
    term.backward()
    torch.testing.assert_close(log_prob.grad, -0.2 * torch.tensor([[1.0, -1.0], [0.5, 0.0]]) / 3)


REFUSED: dict[str, tuple[Callable[[], object], str]] = {
    "no mask": (
        lambda: surrogate("mine")(lambda log_ratio, advantage, *, reduce: reduce(advantage, None)),
        r"surrogate 'mine' \(.*<lambda>\) has no parameter 'mask'; end it with",
    ),
    "one tensor": (
        lambda: surrogate("mine")(lambda log_ratio, *, mask, reduce: reduce(log_ratio, mask)),
        "too few tensors by position; 2 come first",
    ),
    "mean over padding": (
        lambda: surrogate("mine")(lambda log_ratio, advantage, *, mask, reduce: (log_ratio * advantage).mean()),
        "surrogate 'mine' .*counts slots that the mask excludes",
    ),
    "not reduced": (
        lambda: surrogate("mine")(lambda log_ratio, advantage, *, mask, reduce: log_ratio * advantage),
        "does not return one number",
    ),
    "fails": (
        lambda: surrogate("mine")(lambda log_ratio, advantage, *, mask, reduce: log_ratio.frobnicate()),
        r"fails on tensors \[2, 2\] and a mask \(AttributeError",
    ),
    "estimator over padding": (
        lambda: kl_estimator("mine")(lambda log_ratio, mask, reduce: log_ratio.square().mean()),
        "kl_estimator 'mine' .*counts slots that the mask excludes",
    ),
    "mean of errors": (
        lambda: value_error("mine")(lambda value, target: (value - target).square().mean()),
        "value_error 'mine' .*does not return one number per slot",
    ),
    "clip without an error": (
        lambda: value_clip("mine")(lambda value, target, old_value, *, clip, mask, reduce: reduce(value, mask)),
        "value_clip 'mine' .*has no parameter 'error'",
    ),
    "no name": (lambda: surrogate("")(plain), r"surrogate\(''\): the name comes first"),
    "forgotten name": (lambda: surrogate(plain), r'the name comes first, as in @surrogate\("mine"\)'),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_trained_by_is_refused_when_it_is_registered(name: str) -> None:
    register, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        register()
    assert "mine" not in (*SURROGATES, *KL_ESTIMATORS, *VALUE_ERRORS, *VALUE_CLIPS)


def test_a_parameter_that_nothing_gives_is_refused_when_the_surrogate_is_chosen() -> None:
    surrogate("mine")(lambda log_ratio, advantage, *, tau, mask, reduce: reduce(advantage * log_ratio * tau, mask))
    with pytest.raises(ValueError, match=r"'mine' takes tau, which is no argument of PPOX; give it a default"):
        Objective("mine")


def test_errors_of_torch_are_registered_as_they_are() -> None:
    value_error("huber")(functional.huber_loss)
    entry = VALUE_ERRORS["huber"]
    value, target = torch.tensor([0.0, 0.0]), torch.tensor([0.5, -3.0])
    # Huber with delta 1: e^2 / 2 within 1, |e| - 1/2 beyond
    torch.testing.assert_close(entry(value, target), torch.tensor([0.125, 2.5]))
    assert entry.averages


def test_estimators_are_the_registered_functions() -> None:
    log_ratio, mask = torch.tensor([0.3, -0.2]), torch.tensor([True, False])
    assert KL_ESTIMATORS["k3"](log_ratio, mask=mask, reduce=masked_mean) == kl_k3(log_ratio, mask)
    assert KL_ESTIMATORS["k1"](log_ratio, mask=mask, reduce=fill_masked).tolist() == [-log_ratio[0].item(), 0.0]
