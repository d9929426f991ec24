"""What PPOX takes for an argument, what it refuses at construction, and with which words."""

from __future__ import annotations

from typing import Any

import pytest
from stable_baselines3.common.utils import ConstantSchedule, FloatSchedule
from stable_baselines3.dqn.policies import DQNPolicy

from sb3_ppo_ext import PPOX, AdaptiveKL
from tests.rollout_buffers import Doubling
from tests.small_models import model_with

pytestmark = pytest.mark.filterwarnings("ignore::sb3_ppo_ext.TrainingWarning")  # targets out of reach


def test_knobs_look_as_third_parties_expect() -> None:
    model = model_with(clip_range="0.2", clip_range_vf=0.1, learning_rate=ConstantSchedule(1e-3), ent_coef=0.01)
    assert isinstance(model.clip_range, FloatSchedule) and model.clip_range.value_schedule.val == 0.2  # type: ignore[attr-defined]
    assert isinstance(model.clip_range_vf, FloatSchedule)
    assert model.lr_schedule(0.5) == 1e-3 and model.ent_coef == 0.01


BAD: list[tuple[dict[str, Any], str]] = [
    ({"surrogate": "ppo"}, r"surrogate='ppo': one of 'clip', 'spo', 'none'"),
    ({"kl_estimator": "k4"}, "kl_estimator='k4'"),
    ({"value_clip": True}, "value_clip=True"),
    ({"advantage_scope": "batch"}, "advantage_scope='batch'"),
    ({"surrogate": "spo", "clip_range_high": 0.3}, "clip_range_high=0.3"),
    ({"surrogate": "none", "dual_clip": 3.0}, "dual_clip=3.0"),
    ({"surrogate": "spo", "clip_range": "lin_0.2"}, "clip_range=.*end above 0"),
    ({"divergence_limit": 0.1}, r'divergence_limit=0.1: only surrogate="dppo_kl" or .* not "clip"'),
    ({"surrogate": "kl_bound"}, 'kl_coef=0.0: surrogate="kl_bound" draws back by a penalty of this weight'),
    ({"surrogate": "dppo_kl", "rollout_buffer_class": Doubling}, 'surrogate="dppo_kl" takes the exact KL: Doubling'),
    ({"dual_clip": 1.0}, "dual_clip=1.0: a number above 1"),
    ({"dual_clip": "three"}, "dual_clip='three'"),
    ({"kl_coef": -0.1}, "kl_coef=-0.1"),
    ({"learning_rate": "cos:1:2"}, "learning_rate='cos:1:2'"),
    ({"clip_range": {"adaptive_kl": {"start": 0.2, "target": 0}}}, "clip_range=.*target"),
    ({"ref_kl_coef": 0.1}, "ref_kl_coef=0.1: ActorCriticPolicy has no frozen reference"),
    ({"compile": "always"}, "compile='always'"),
    ({"recompute_advantage": 1}, "recompute_advantage=1"),
    ({"recompute_advantage": True, "rollout_buffer_class": Doubling}, "recompute_advantage=True: Doubling"),
    ({"kl_coef_std": 0.0, "kl_estimator": "k3"}, "kl_estimator='k3': kl_coef_std weighs a part of the exact KL"),
    (
        {"kl_coef_std": 0.1, "kl_coef": 1.0, "surrogate": "kl_bound"},
        'kl_coef_std: surrogate="kl_bound" weighs the whole',
    ),
    ({"value_lambda": 1.5}, "value_lambda=1.5: a number from 0 to 1, or None"),
    ({"value_lambda": 0.0, "rollout_buffer_class": Doubling}, "value_lambda=0.0: Doubling .* pass value_lambda=None"),
    ({"kl_coef": 0.1, "rollout_buffer_class": Doubling}, 'kl_coef.*Doubling.*kl_estimator="k3"'),
    ({"clip_range": AdaptiveKL(0.2, 0.01), "rollout_buffer_class": Doubling}, "clip_range.*Doubling"),
]


@pytest.mark.parametrize(("own", "message"), BAD, ids=lambda part: str(part)[:40])
def test_bad_arguments_are_refused_at_construction(own: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model_with(**own)


def test_a_policy_of_another_algorithm_is_named() -> None:
    with pytest.raises(ValueError, match="DQNPolicy is not an actor-critic policy of PPO"):
        PPOX(DQNPolicy, "CartPole-v1")  # type: ignore[arg-type]


def test_negative_clip_range_vf_fails_as_on_ppo() -> None:
    with pytest.raises(AssertionError, match="clip_range_vf"):
        model_with(clip_range_vf=-0.1)


def test_numbers_written_as_text_are_accepted() -> None:
    model = model_with(learning_rate="1e-4", dual_clip="3", kl_coef="1e-2", clip_range_vf="0.2", value_lambda="1")
    assert model.value_lambda == 1.0
    assert (model.learning_rate, model.dual_clip, model.kl_coef) == (1e-4, 3.0, 0.01)


def test_sampled_kl_serves_where_the_exact_one_cannot() -> None:
    model = model_with(kl_coef=AdaptiveKL(1.0, 1e-9), kl_estimator="k3", rollout_buffer_class=Doubling).learn(64)
    assert model.knobs.values.kl_coef > 1.0
    assert "train/kl_exact" not in model.logger.name_to_value


def test_a_choice_has_no_deviation_to_weigh() -> None:
    with pytest.raises(
        ValueError, match=r"kl_coef_std=0.0: actions of a Discrete have no mean and deviation.* pass None"
    ):
        PPOX("MlpPolicy", "CartPole-v1", kl_coef_std=0)


def test_probabilities_are_not_taken_of_a_density() -> None:
    with pytest.raises(ValueError, match=r'surrogate="dppo_binary_kl": actions of a Box have densities.*"dppo_kl"'):
        PPOX("MlpPolicy", "Pendulum-v1", surrogate="dppo_binary_kl")
