"""What works on PPO works on PPOX, and what PPOX adds does what it says."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback, StopTrainingOnMaxEpisodes
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import SubprocVecEnv

from sb3_ppo_ext import PPOX, AdaptiveKL, Cosine, Threshold, Warmup
from tests.environments import Toy
from tests.small_models import SETTINGS, model_with

pytestmark = pytest.mark.filterwarnings("ignore::sb3_ppo_ext.TrainingWarning")  # targets out of reach


def test_the_signature_is_ppos_followed_by_our_own() -> None:
    host = [name for name in inspect.signature(PPO.__init__).parameters if name != "_init_setup_model"]
    own = list(inspect.signature(PPOX.__init__).parameters)
    assert own[: len(host)] == host
    assert own[len(host) :] == [
        *("clip_range_high", "kl_coef", "ref_kl_coef", "divergence_limit", "kl_coef_std"),  # knobs
        *("surrogate", "dual_clip", "kl_estimator", "value_clip", "value_error", "advantage_scope"),
        *(
            "value_lambda",
            "recompute_advantage",
            "normalize_value",
            "shards",
            "vec_normalize_sync",
            "compile",
            "_init_setup_model",
        ),
    ]


def test_positional_arguments_are_ppos_and_typos_raise() -> None:
    model = PPOX("MlpPolicy", Toy(), 1e-3, 16, 8, 2)
    assert (model.learning_rate, model.n_steps, model.batch_size, model.n_epochs) == (1e-3, 16, 8, 2)
    with pytest.raises(TypeError, match="kl_coeff"):
        PPOX("MlpPolicy", Toy(), kl_coeff=0.1)


@pytest.mark.parametrize(
    "own",
    [
        {"surrogate": "spo"},
        {"surrogate": "none", "kl_coef": 1.0},
        {"clip_range_high": 0.3, "dual_clip": 3.0},
        {"kl_coef": 0.5, "kl_estimator": "k1"},
        {"kl_coef_std": 0.5},
        {"kl_coef": 0.5, "kl_estimator": "k2"},
        {"clip_range_vf": 0.1, "value_clip": "max"},
        {"advantage_scope": "rollout"},
        {"recompute_advantage": True},
        {"value_lambda": 0.5},
        {"normalize_value": True},
        {"learning_rate": Warmup(0.5, Cosine(1e-2, 0.0))},
        {"ent_coef": "0.05"},
    ],
    ids=lambda own: " ".join(own),
)
def test_every_knob_changes_what_is_learned(own: dict[str, Any]) -> None:
    # So narrow a clip range that some ratio is beyond it on every path: then its other end matters too.
    base = {"learning_rate": 3e-3, "clip_range": 0.02}
    default, turned = model_with(**base).learn(96), model_with(**{**base, **own}).learn(96)
    flat = [torch.cat([p.flatten() for p in model.policy.parameters()]) for model in (default, turned)]
    assert flat[1].isfinite().all()
    assert not torch.equal(*flat)


@pytest.mark.parametrize("action", ["box", "discrete", "multidiscrete", "multibinary"])
def test_a_heavy_kl_penalty_keeps_the_policy_where_it_was(action: str) -> None:
    kls = []
    for kl_coef in (0.0, 100.0):
        env = Toy(action=action)
        model = PPOX(
            "MlpPolicy", env, learning_rate=1e-3, kl_coef=kl_coef, clip_range=10.0, **{**SETTINGS, "n_epochs": 10}
        )
        kls.append(model.learn(64).logger.name_to_value["train/kl_exact"])
    assert 0 <= kls[1] < 0.3 * kls[0]


def test_exact_and_sampled_kl_agree() -> None:
    model = PPOX("MlpPolicy", Toy(action="box"), n_steps=2048, batch_size=256, seed=0, learning_rate=1e-3).learn(2048)
    values = model.logger.name_to_value
    assert values["train/kl_exact"] == pytest.approx(values["train/approx_kl"], rel=0.2)


def test_kl_is_summed_over_action_dimensions() -> None:
    class Wide(Toy):
        def __init__(self) -> None:
            super().__init__()
            self.action_space = gym.spaces.Box(-1, 1, (8,), np.float32)

    model = PPOX("MlpPolicy", Wide(), n_steps=1024, batch_size=256, seed=0, learning_rate=1e-3).learn(1024)
    values = model.logger.name_to_value
    # The sampled KL is of the joint action; the mean over the 8 dimensions would be 8 times smaller.
    assert values["train/kl_exact"] == pytest.approx(values["train/approx_kl"], rel=0.3)


class Values(BaseCallback):
    """Notes what train() recorded."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[dict[str, Any]] = []

    def _on_step(self) -> bool:
        return True

    def _on_rollout_start(self) -> None:
        self.rows.append(dict(self.logger.name_to_value))


def test_knobs_follow_their_schedules_and_are_logged() -> None:
    model = model_with(clip_range=Cosine(0.4, 0.0), ent_coef=LinearSchedule(0.1, 0.0, 1.0), vf_coef=lambda p: 1 - p)
    callback = Values()
    model.learn(128, callback=callback, log_interval=None)
    done = [0.25, 0.5, 0.75]
    rows = [row for row in callback.rows if "train/clip_range" in row]
    assert [row["train/clip_range"] for row in rows] == pytest.approx([Cosine(0.4, 0.0)(1 - x) for x in done])
    assert [row["train/ent_coef"] for row in rows] == pytest.approx([0.1 * (1 - x) for x in done])
    assert [row["train/vf_coef"] for row in rows] == pytest.approx(done)


def test_progress_never_goes_below_zero() -> None:
    seen: list[float] = []
    model = model_with(learning_rate=lambda p: seen.append(p) or 1e-3)  # type: ignore[func-returns-value]
    model.learn(40)  # the second rollout of 32 overshoots
    assert min(seen) == 0.0


@pytest.mark.parametrize("endless", [float("inf"), 10**400])
def test_a_training_that_only_a_callback_ends_stays_at_the_start_of_its_schedules(endless: Any, tmp_path: Path) -> None:
    model = model_with(learning_rate="linear:1e-3:0", compile=False)
    for episodes in (6, 12):  # of 10 steps each
        model.learn(endless, callback=StopTrainingOnMaxEpisodes(6), reset_num_timesteps=False)
        assert (model.num_timesteps, model._current_progress_remaining) == (10 * episodes, 1.0)
        assert model.logger.name_to_value["train/learning_rate"] == 1e-3
    model.save(tmp_path / "model")
    PPOX.load(tmp_path / "model", env=Toy(action="box")).learn(32)


def test_no_number_of_timesteps_and_no_environment_are_refused(tmp_path: Path) -> None:
    model = model_with()
    with pytest.raises(ValueError, match=r'total_timesteps=nan: .*float\("inf"\)'):
        model.learn(float("nan"))  # type: ignore[arg-type]
    model.save(tmp_path / "model")
    with pytest.raises(ValueError, match=r"learn\(\): the model has no environment; call set_env"):
        PPOX.load(tmp_path / "model").learn(32)


def test_callbacks_may_assign_knobs_as_on_ppo() -> None:
    class Assign(BaseCallback):
        def _on_step(self) -> bool:
            return True

        def _on_rollout_end(self) -> None:
            self.model.ent_coef = 0.123  # type: ignore[attr-defined]
            self.model.clip_range = lambda _: 0.05  # type: ignore[attr-defined]
            self.model.lr_schedule = lambda _: 1e-5

    model = model_with()
    model.learn(32, callback=Assign())
    values = model.logger.name_to_value
    assert (values["train/ent_coef"], values["train/clip_range"]) == (0.123, 0.05)
    assert model.policy.optimizer.param_groups[0]["lr"] == values["train/learning_rate"] == 1e-5


def test_a_controller_assigned_by_hand_remembers() -> None:
    model = model_with()
    model.kl_coef = AdaptiveKL(1.0, 1e-9)
    model.learn(96)
    assert model.knobs.values.kl_coef > 2.0  # doubled more than once


def test_a_controller_belongs_to_one_model() -> None:
    controller = AdaptiveKL(1.0, 1e-9)
    one, other = model_with(kl_coef=controller), model_with(kl_coef=controller)
    one.learn(64)
    assert one.knobs.values.kl_coef != 1.0
    assert controller.value == other.knobs.values.kl_coef == 1.0


def test_minibatch_controller_moves_the_learning_rate_within_an_epoch() -> None:
    rates = []
    model = model_with(learning_rate=AdaptiveKL(1e-3, 1e-7, Threshold(2.0, 1.5), every="minibatch"))
    step = model.policy.optimizer.step
    model.policy.optimizer.step = lambda: (rates.append(model.policy.optimizer.param_groups[0]["lr"]), step())  # type: ignore[assignment,func-returns-value]
    model.learn(32)
    # 2 epochs of 2 minibatches; before the first step the KL is exactly 0, so the rate stands; then it only falls
    assert rates[0] == 1e-3
    assert rates == pytest.approx([1e-3, 1e-3 / 1.5, 1e-3 / 1.5**2, 1e-3 / 1.5**3])


def test_early_stop_tells_the_epoch() -> None:
    model = model_with(target_kl=1e-7, n_epochs=5, learning_rate=1e-2).learn(32)
    values = model.logger.name_to_value
    assert values["train/early_stop_epoch"] == 0.0
    assert values["train/kl_target"] == 1e-7
    assert model._n_updates == 1


@pytest.mark.filterwarnings("ignore:Training and eval env are not of the same type")
def test_eval_callback_predict_and_subprocesses(tmp_path: Path) -> None:
    env = make_vec_env("CartPole-v1", 2, seed=0, vec_env_cls=SubprocVecEnv)
    callback = EvalCallback(make_vec_env("CartPole-v1", 1), eval_freq=64, best_model_save_path=str(tmp_path), verbose=0)
    model = PPOX("MlpPolicy", env, **SETTINGS).learn(128, callback=callback)
    env.close()
    best = PPOX.load(tmp_path / "best_model")
    returns, lengths = evaluate_policy(
        best, make_vec_env("CartPole-v1", 1), n_eval_episodes=2, return_episode_rewards=True
    )
    assert returns == lengths  # 1 per step
    parameters: Any = model.get_parameters()
    best.set_parameters(parameters)
    observation = np.zeros((1, 4), np.float32)
    assert best.predict(observation, deterministic=True)[0] == model.predict(observation, deterministic=True)[0]


def test_recomputed_advantages_come_from_the_new_values() -> None:
    # With a value function that learns fast, later epochs see other targets; one epoch has nothing to refresh.
    def after(n_epochs: int, recompute: bool) -> torch.Tensor:
        model = model_with(n_epochs=n_epochs, recompute_advantage=recompute, learning_rate=1e-2).learn(32)
        return model.policy.value_net.weight.detach().clone()

    assert torch.equal(after(1, True), after(1, False))
    assert not torch.equal(after(2, True), after(2, False))


def test_value_targets_by_the_same_lambda_are_those_of_ppo() -> None:
    def trained(value_lambda: float | None, **more: Any) -> torch.Tensor:
        model = model_with(gae_lambda=0.9, value_lambda=value_lambda, **more).learn(64)
        return torch.cat([parameter.detach().flatten() for parameter in model.policy.parameters()])

    for recompute in (False, True):
        plain = trained(None, recompute_advantage=recompute)
        assert torch.equal(trained(0.9, recompute_advantage=recompute), plain)
        assert not torch.equal(trained(0.2, recompute_advantage=recompute), plain)
