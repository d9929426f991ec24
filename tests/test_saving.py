"""Saved means resumable, and nothing is half written."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.utils import FloatSchedule

from sb3_ppo_ext import PPOX, AdaptiveClipFraction, AdaptiveKL, Cosine, Threshold
from tests.environments import Periodic, Toy

pytestmark = pytest.mark.filterwarnings("ignore::sb3_ppo_ext.TrainingWarning")  # targets out of reach

SETTINGS: dict[str, Any] = {"n_steps": 32, "batch_size": 16, "n_epochs": 2, "seed": 1, "device": "cpu"}


def assert_same_parameters(one: PPO, other: PPO) -> None:
    for name, tensor in one.policy.state_dict().items():
        torch.testing.assert_close(other.policy.state_dict()[name], tensor, rtol=0, atol=0, msg=name)


def everything_alive() -> PPOX:
    return PPOX(
        "MlpPolicy",
        Periodic(),
        learning_rate=AdaptiveKL(1e-3, 1e-3, Threshold(1.5, 1.3), every="minibatch"),
        clip_range=AdaptiveClipFraction(0.2, 0.1),
        kl_coef=AdaptiveKL(0.5, 1e-3, every="epoch"),
        ent_coef="cosine:0.01:0:horizon=512",
        normalize_value=True,
        recompute_advantage=True,
        **SETTINGS,
    )


def test_save_load_and_continue_equals_never_having_stopped(tmp_path: Path) -> None:
    straight = everything_alive().learn(256)
    straight.save(tmp_path / "half")
    straight.learn(256, reset_num_timesteps=False)

    resumed = PPOX.load(tmp_path / "half", env=Periodic(), device="cpu")
    assert resumed.num_timesteps == 256
    resumed.learn(256, reset_num_timesteps=False)

    assert_same_parameters(straight, resumed)
    assert straight.knobs.state_dict() == resumed.knobs.state_dict()
    assert straight.knobs.values == resumed.knobs.values
    for mine, theirs in zip(
        straight.policy.optimizer.state_dict()["state"].values(),
        resumed.policy.optimizer.state_dict()["state"].values(),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=0)


def test_controllers_have_moved_and_are_readable_in_the_file(tmp_path: Path) -> None:
    model = everything_alive().learn(256)
    model.save(tmp_path / "model")
    assert {"learning_rate", "clip_range", "kl_coef"} == set(model.knobs.controllers)
    assert all(controller.value != controller.start for controller in model.knobs.controllers.values())
    with zipfile.ZipFile(tmp_path / "model.zip") as archive:
        data = archive.read("data").decode()
    assert f'"value": {model.knobs.values.kl_coef}' in data


def test_a_controller_given_again_with_its_settings_continues_and_with_others_starts(tmp_path: Path) -> None:
    model = PPOX("MlpPolicy", Toy(), kl_coef={"adaptive_kl": {"start": 0.5, "target": 1e-6}}, **SETTINGS).learn(64)
    model.save(tmp_path / "model")
    value = model.knobs.values.kl_coef
    assert value != 0.5
    same = PPOX.load(tmp_path / "model", env=Toy(), kl_coef={"adaptive_kl": {"start": 0.5, "target": 1e-6}})
    assert same.knobs.values.kl_coef == value
    other = PPOX.load(tmp_path / "model", env=Toy(), kl_coef={"adaptive_kl": {"start": 0.5, "target": 1e-3}})
    assert other.knobs.values.kl_coef == 0.5


OWN: dict[str, Any] = {
    "surrogate": "spo",
    "dual_clip": 1.001,
    "clip_range_high": 0.3,
    "kl_coef": 0.3,
    "kl_coef_std": 0.3,
    "kl_estimator": "k3",
    "value_clip": "max",
    "advantage_scope": "rollout",
    "recompute_advantage": True,
    "value_lambda": 0.5,
    "normalize_value": True,
}


@pytest.mark.parametrize("name", OWN)
def test_every_own_argument_takes_effect_on_load(name: str, tmp_path: Path) -> None:
    def build(**own: Any) -> PPOX:
        arguments = {"kl_coef": 0.1, "clip_range": 0.02, "clip_range_vf": 0.2, "learning_rate": 1e-2, **SETTINGS}
        return PPOX("MlpPolicy", Toy(action="box"), **{**arguments, **own})

    build().save(tmp_path / "model")
    overridden = PPOX.load(tmp_path / "model", env=Toy(action="box"), **{name: OWN[name]})
    plain = PPOX.load(tmp_path / "model", env=Toy(action="box"))
    constructed = build(**{name: OWN[name]})
    for model in (overridden, plain, constructed):
        model.set_random_seed(7)
        model.learn(96)
    assert getattr(overridden, name) == OWN[name]
    if name != "normalize_value":  # a loaded head is taken for a trained one, whose values are kept
        assert_same_parameters(overridden, constructed)
    flat = [torch.cat([p.flatten() for p in model.policy.parameters()]) for model in (overridden, plain)]
    assert not torch.equal(*flat)


def test_knobs_take_effect_on_load(tmp_path: Path) -> None:
    PPOX("MlpPolicy", Toy(), **SETTINGS).save(tmp_path / "model")
    model = PPOX.load(tmp_path / "model", env=Toy(), learning_rate="cosine:1e-3:0", clip_range="0.1", vf_coef="0.7")
    assert model.learning_rate == Cosine(1e-3, 0.0)
    assert model.lr_schedule(1.0) == 1e-3
    assert isinstance(model.clip_range, FloatSchedule) and model.clip_range(0.5) == 0.1
    assert model.vf_coef == 0.7
    with pytest.raises(ValueError, match="kl_coef=-1"):
        PPOX.load(tmp_path / "model", kl_coef=-1)


def test_zips_load_both_ways(tmp_path: Path) -> None:
    ppo = PPO("MlpPolicy", Toy(), **SETTINGS).learn(64)
    ppo.save(tmp_path / "ppo")
    ppox = PPOX.load(tmp_path / "ppo", env=Toy(), kl_coef=0.1)
    assert_same_parameters(ppo, ppox)
    ppox.learn(64)
    default = PPOX("MlpPolicy", Toy(), **SETTINGS).learn(64)
    default.save(tmp_path / "ppox")
    back = PPO.load(tmp_path / "ppox", env=Toy())
    assert_same_parameters(default, back)
    back.learn(64)


def test_the_zoos_custom_objects_load(tmp_path: Path) -> None:
    everything_alive().save(tmp_path / "model")
    custom = {"learning_rate": 0.0, "lr_schedule": lambda _: 0.0, "clip_range": lambda _: 0.0}
    model = PPOX.load(tmp_path / "model", custom_objects=custom)
    observation = np.zeros(2, np.float32)
    assert model.predict(observation, deterministic=True)[0].shape == (1,)


def test_a_crash_while_saving_leaves_the_previous_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = PPOX("MlpPolicy", Toy(), **SETTINGS)
    model.save(tmp_path / "model")
    before = (tmp_path / "model.zip").read_bytes()

    def crash(file: Any, *args: Any, **kwargs: Any) -> None:
        file.write(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr("stable_baselines3.common.base_class.save_to_zip_file", crash)
    with pytest.raises(OSError, match="no space left"):
        model.save(tmp_path / "model")
    assert (tmp_path / "model.zip").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["model.zip"]


def test_saving_again_replaces_the_file(tmp_path: Path) -> None:
    model = PPOX("MlpPolicy", Toy(), **SETTINGS)
    model.save(tmp_path / "model")
    model.learn(64).save(tmp_path / "model")
    assert_same_parameters(model, PPOX.load(tmp_path / "model"))


def test_saving_to_a_stream_and_to_a_new_folder(tmp_path: Path) -> None:
    model = PPOX("MlpPolicy", Toy(), **SETTINGS)
    stream = io.BytesIO()
    model.save(stream)
    stream.seek(0)
    assert_same_parameters(model, PPOX.load(stream))
    model.save(str(tmp_path / "new" / "folder" / "best_model"))
    assert_same_parameters(model, PPOX.load(tmp_path / "new" / "folder" / "best_model.zip"))


def test_another_seed_on_load_starts_its_own_random_stream(tmp_path: Path) -> None:
    model = PPOX("MlpPolicy", Toy(), **SETTINGS).learn(64)
    model.save(tmp_path / "model")
    PPOX.load(tmp_path / "model")
    continued = torch.rand(3)
    model.set_random_seed(None)
    PPOX.load(tmp_path / "model", seed=5)
    torch.manual_seed(5)
    assert not torch.equal(continued, torch.rand(3))


def test_unseeded_models_leave_the_generators_alone_on_load(tmp_path: Path) -> None:
    PPOX("MlpPolicy", Toy(), **{**SETTINGS, "seed": None}).save(tmp_path / "model")
    with zipfile.ZipFile(tmp_path / "model.zip") as archive:
        assert '"_random_state": null' in archive.read("data").decode()
    assert PPOX.load(tmp_path / "model")._random_state is None
