from __future__ import annotations

from typing import Any

import gymnasium as gym
import optuna
import pytest
from sb3_ppo_ext_zoo.search import convert_ppox_params, sample_ppox_params

from sb3_ppo_ext import PPOX, surrogate

optuna.logging.set_verbosity(optuna.logging.WARNING)

# Small minibatches of a short rollout: the search space, not Stable-Baselines3's warning, is what is tried here.
SHORT = {"n_steps": 64, "batch_size": 32, "n_epochs": 1}


def sampled(seed: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the sampler returned, and the same trial's parameters as the study remembers them."""
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    kept: dict[str, Any] = {}

    def objective(trial: optuna.Trial) -> float:
        kept.update(sample_ppox_params(trial, 1, 1, {}))
        return 0.0

    study.optimize(objective, n_trials=1)
    return kept, study.best_params


def test_the_converter_gives_back_what_the_sampler_returned() -> None:
    for seed in range(200):
        kwargs, remembered = sampled(seed)
        assert convert_ppox_params(remembered) == kwargs


def test_every_trial_suggests_the_same_names() -> None:
    # rl_zoo3's TPE is multivariate: it samples a name blindly that some trials lack.
    assert len({frozenset(sampled(seed)[1]) for seed in range(50)}) == 1


def test_ppox_constructs_from_every_trial_and_reads_every_knob() -> None:
    env = gym.make("CartPole-v1")
    for seed in range(100):
        kwargs, remembered = sampled(seed)
        model = PPOX("MlpPolicy", env, **{**kwargs, **SHORT}, device="cpu")
        values = model.knobs.values
        assert values.learning_rate == remembered["learning_rate"]
        assert values.clip_range == pytest.approx(remembered["clip_range"])
        penalized = remembered["kl_penalty"] or remembered["surrogate"] == "none"
        assert values.kl_coef == (remembered["kl_coef"] if penalized else 0.0)


@pytest.mark.parametrize("seed", range(12))
def test_a_trial_learns_to_the_end_of_its_schedules(seed: int) -> None:
    kwargs, _ = sampled(seed)
    model = PPOX("MlpPolicy", "CartPole-v1", **{**kwargs, **SHORT}, device="cpu", seed=seed)
    model.learn(100)  # the second rollout overshoots, so schedules are read at their very end
    assert model._n_updates == 2


def test_the_upper_clip_range_is_the_ratio_times_the_lower_and_only_with_the_clipped_surrogate() -> None:
    _, params = sampled(0)
    params |= {"clip_range": 0.2, "clip_ratio": 1.4, "clip_schedule": "constant"}
    assert convert_ppox_params({**params, "surrogate": "clip"})["clip_range_high"] == pytest.approx(0.28)
    assert convert_ppox_params({**params, "surrogate": "spo"})["clip_range_high"] is None


def test_a_registered_surrogate_is_searched_with_the_arguments_it_uses(objectives: None) -> None:
    surrogate("upwards")(lambda log_ratio, advantage, *, high, mask, reduce: reduce(advantage * log_ratio * high, mask))
    surrogate("free")(lambda log_ratio, advantage, *, mask, reduce: reduce(advantage * log_ratio, mask))
    assert {sampled(seed)[0]["surrogate"] for seed in range(60)} == {
        *("clip", "spo", "none", "cispo", "dppo_kl", "upwards", "free")
    }
    _, params = sampled(0)
    params |= {"clip_range": 0.2, "clip_ratio": 1.4, "clip_schedule": "constant", "dual_clip": 3.0, "kl_penalty": False}
    upwards = convert_ppox_params({**params, "surrogate": "upwards"})
    assert (upwards["clip_range_high"], upwards["dual_clip"], upwards["kl_coef"]) == (pytest.approx(0.28), None, 0.0)
    # Nothing limits its step, so the penalty does.
    assert convert_ppox_params({**params, "surrogate": "free"})["kl_coef"] != 0.0


def test_schedules_fall_the_learning_rate_to_0_and_the_clip_range_to_a_tenth() -> None:
    _, params = sampled(0)
    params |= {"clip_range": 0.4, "clip_schedule": "cosine", "learning_rate": 1e-3, "learning_rate_control": "linear"}
    kwargs = convert_ppox_params(params)
    assert kwargs["learning_rate"] == {"linear": {"start": 1e-3, "end": 0.0}}
    assert kwargs["clip_range"] == {"cosine": {"start": 0.4, "end": pytest.approx(0.04)}}
