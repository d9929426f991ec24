"""Where ClipPPOLoss raises, PPOXLoss raises the same type with the same words, and then the remedy."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from sb3_ppo_ext_torchrl import PPOXLoss, actor_module, critic_module
from tensordict import TensorDictBase
from torchrl.modules import ValueOperator
from torchrl.objectives import ClipPPOLoss

from tests.torchrl.rollouts import collected, moved, rows_of


class Mistake(NamedTuple):
    """What is done wrong, TorchRL's words for it, and the remedy that PPOXLoss adds."""

    words: str
    remedy: str
    arguments: dict[str, Any] = {}  # noqa: RUF012  # never changed
    spoil: Callable[[TensorDictBase], Any] = lambda batch: None
    after: Callable[[Any], Any] = lambda loss: None  # done to the loss once it is built


def flat(*keys: str) -> Callable[[TensorDictBase], None]:
    """Takes the trailing dimension of one away."""

    def spoil(batch: TensorDictBase) -> None:
        for key in keys:
            batch[key] = batch[key][..., 0]

    return spoil


def without(*keys: Any) -> Callable[[TensorDictBase], TensorDictBase]:
    return lambda batch: batch.exclude(*keys, inplace=True)


OUTER = "outer product"
NOT_FOUND = "was not found in the input tensordict"
CLIPPED = "clip_value is set to 0.5, but the key state_value was not found"
NO_NUMBER = "must be a float or a scalar tensor"
MISTAKES: dict[str, Mistake] = {
    "value under a clip": Mistake(CLIPPED, "GAE.*clip_value=None", {"clip_value": 0.5}, without("state_value")),
    "value under its flag": Mistake("clip_value is set", "GAE", {"clip_value": True}, without("state_value")),
    "not functional": Mistake(CLIPPED, "GAE", {"clip_value": 0.5, "functional": False}, without("state_value")),
    "separate losses": Mistake(CLIPPED, "GAE", {"clip_value": 0.5, "separate_losses": True}, without("state_value")),
    "target": Mistake(f"value_target {NOT_FOUND}", "GAE", {}, without("value_target")),
    "renamed target": Mistake(
        f"returns {NOT_FOUND}", "set_keys", after=lambda loss: loss.set_keys(value_target="returns")
    ),
    "renamed value": Mistake(
        "the key V was not found in the critic output tensordict",
        r"writes \['state_value'\].*set_keys\(value=",
        after=lambda loss: loss.set_keys(value="V"),
    ),
    "log-prob": Mistake("Couldn't find the log-prob action_log_prob", "", {}, without("action_log_prob")),
    "action": Mistake("", "the key action was not found.*actions taken", {}, without("action")),
    "observation": Mistake("observation", "", {}, without("observation")),
    "flat advantage": Mistake(OUTER, r"unsqueeze\(-1\)", {}, flat("advantage")),
    "flat, asymmetric": Mistake(OUTER, "unsqueeze", {"clip_epsilon": (0.1, 0.2)}, flat("advantage")),
    "flat, normalised": Mistake(OUTER, "unsqueeze", {"normalize_advantage": True}, flat("advantage")),
    "flat, not reduced": Mistake(OUTER, "unsqueeze", {"reduction": "none"}, flat("advantage")),
    "flat both": Mistake(OUTER, "unsqueeze", {}, flat("advantage", "value_target")),
    "flat target": Mistake("have shapes .* incompatible", r"must be \[\*batch, 1\]", {}, flat("value_target")),
    "flat old value": Mistake(
        "have shapes .* incompatible", r"must be \[\*batch, 1\]", {"clip_value": 0.5}, flat("state_value")
    ),
    "nothing to estimate from": Mistake("", "'advantage' is missing.*'reward'.*GAE", {}, without("advantage", "next")),
    "mask of slots": Mistake(
        "A mask of shape .* cannot be applied to a loss of shape",
        r"\(32, 3, 2\); torch.bool \(32,\)",
        spoil=lambda batch: batch.set("mask", torch.ones(32, 3, 2, dtype=torch.bool)),
        after=lambda loss: setattr(loss, "loss_mask_key", "mask"),
    ),
    "mask of floats": Mistake(
        "",
        r"torch.float32 \(32,\); torch.bool \(32,\)",
        spoil=lambda batch: batch.set("mask", torch.ones(32)),
        after=lambda loss: setattr(loss, "loss_mask_key", "mask"),
    ),
    "log-prob with a gradient": Mistake(
        "stored action_log_prob requires grad", "", {}, lambda batch: batch["action_log_prob"].requires_grad_()
    ),
    "reduction": Mistake("Unknown reduction method median", "one of 'mean', 'sum', 'none'", {"reduction": "median"}),
    "loss": Mistake("Unknown loss l3", "one of 'l2', 'l1', 'smooth_l1'", {"loss_critic_type": "l3"}),
    "assigned reduction": Mistake(
        "Unknown reduction method median", "one of 'mean'", after=lambda loss: setattr(loss, "reduction", "median")
    ),
    "assigned loss": Mistake(
        "Unknown loss l3", "one of 'l2'", after=lambda loss: setattr(loss, "loss_critic_type", "l3")
    ),
    "critic_coef": Mistake("'critic_coef' has been removed", "'critic_coeff'", {"critic_coef": 0.9}),
    "entropy_coef": Mistake("'entropy_coef' has been removed", "'entropy_coeff'", {"entropy_coef": 0.9}),
    "entropy as text": Mistake(
        r"entropy_coeff must be a float or a Mapping\[str, float\]", "entropy_coeff='0.1'", {"entropy_coeff": "0.1"}
    ),
    "entropy of a head": Mistake("", r"entropy_coeff\['a'\]='x': a number", {"entropy_coeff": {"a": "x"}}),
    "critic weight": Mistake(f"critic_coeff {NO_NUMBER}", "critic_coeff='1'", {"critic_coeff": "1"}),
    "value clip as a pair": Mistake(f"clip_value {NO_NUMBER}", r"clip_value=\(0.1, 0.2\)", {"clip_value": (0.1, 0.2)}),
    "clip range as text": Mistake("", "clip_epsilon='0.2': a number is needed", {"clip_epsilon": "0.2"}),
    "ratio": Mistake("max_importance_ratio must be > 0", "", {"max_importance_ratio": 0}),
    "flag with a pair": Mistake("clip_value=True", "", {"clip_value": True, "clip_epsilon": (0.1, 0.2)}),
    "gamma": Mistake("make_value_estimator", "", {"gamma": 0.9}),
    "both norms": Mistake("delay_actor=True requires", "", {"delay_actor": True, "functional": False}),
}


def raised(cls: type[Any], mistake: Mistake, batch: TensorDictBase, *modules: Any) -> Exception:
    """What the mistake ends in, wherever between the construction and the end of a call."""
    batch = batch.clone()
    with pytest.raises(Exception) as caught:  # which one is what is compared
        loss = cls(*modules, **mistake.arguments)
        mistake.after(loss)
        mistake.spoil(batch)
        loss(batch)
    assert isinstance(caught.value, Exception)
    return caught.value


@pytest.mark.parametrize("name", MISTAKES)
def test_it_raises_what_clip_ppo_loss_raises_with_its_words_and_a_remedy(name: str) -> None:
    model = collected("box")
    batch = rows_of(model)
    moved(model)
    mistake, modules = MISTAKES[name], (actor_module(model.policy), critic_module(model.policy))
    mine, theirs = (raised(cls, mistake, batch, *modules) for cls in (PPOXLoss, ClipPPOLoss))
    assert isinstance(mine, type(theirs)), f"{type(mine).__name__}: {mine} instead of {type(theirs).__name__}: {theirs}"
    for error in (mine, theirs):
        assert re.search(mistake.words, str(error)), str(error)
    assert re.search(mistake.remedy, str(mine)), str(mine)
    assert "\\'" not in str(mine)  # as a KeyError shows its argument


def test_without_a_critic_an_advantage_cannot_be_estimated() -> None:
    model = collected("box")
    batch, actor = rows_of(model).exclude("advantage"), actor_module(model.policy)
    for cls in (PPOXLoss, ClipPPOLoss):
        with pytest.raises(RuntimeError, match="Critic network is not specified, cannot compute advantage"):
            cls(actor)(batch)


def test_a_critic_with_another_key_is_named() -> None:
    model = collected("box")
    batch, actor = rows_of(model).exclude("state_value"), actor_module(model.policy)
    critic = ValueOperator(torch.nn.Linear(batch["observation"].shape[-1], 1), in_keys=["observation"], out_keys=["V"])
    for cls in (PPOXLoss, ClipPPOLoss):
        loss = cls(actor, critic)
        for call in (loss, loss.loss_critic):
            with pytest.raises(KeyError, match="state_value was not found in the critic output"):
                call(batch)


def test_a_value_error_that_is_assigned_later_is_the_one_minimised() -> None:
    model = collected("box")
    batch, modules = rows_of(model), (actor_module(model.policy), critic_module(model.policy))
    mine, theirs = (cls(*modules) for cls in (PPOXLoss, ClipPPOLoss))
    mine.loss_critic_type = theirs.loss_critic_type = "l1"
    assert mine(batch)["loss_critic"] != PPOXLoss(*modules)(batch)["loss_critic"]
    torch.testing.assert_close(mine(batch)["loss_critic"], theirs(batch)["loss_critic"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"divergence_limit": 0.1}, r'divergence_limit=0.1: only surrogate="dppo_kl" or .* not "clip"'),
        ({"kl_coef_std": 0.1, "kl_estimator": "k3"}, "kl_estimator='k3': kl_coef_std weighs a part of the exact KL"),
        ({"surrogate": "kl_bound"}, 'kl_coef=None: surrogate="kl_bound" draws back by a penalty of this weight'),
    ],
)
def test_what_does_not_go_with_the_surrogate_is_refused_as_by_ppox(arguments: dict[str, Any], message: str) -> None:
    policy = collected().policy
    with pytest.raises(ValueError, match=message):
        PPOXLoss(actor_module(policy), critic_module(policy), **arguments)
