"""Images are laid out for the convolutions once, before the compiled update, and nowhere inside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from stable_baselines3.common.vec_env import DummyVecEnv
from torch import fx, nn

from sb3_ppo_ext import PPOX, AdaptiveKL
from sb3_ppo_ext.engines.channels_last import channels_last, convolves, images_channels_last
from sb3_ppo_ext.engines.cpu import libraries as artifacts
from sb3_ppo_ext.engines.cpu.libraries import Job
from sb3_ppo_ext.engines.errors import CompileError
from sb3_ppo_ext.knobs.laws import Threshold
from tests.environments import Toy

aten = torch.ops.aten
CONVOLUTIONS = (aten.convolution.default, aten.convolution_backward.default)


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Job]:
    """What would have been compiled; nothing is."""
    seen: list[Job] = []

    def refuse(wanted: list[Job]) -> None:
        seen.extend(wanted)
        raise CompileError("nothing is compiled in this test")

    monkeypatch.setattr(artifacts, "compile_all", refuse)
    monkeypatch.setenv("SB3_PPO_EXT_CACHE_DIR", str(tmp_path))
    return seen


def updates_of(jobs: list[Job], **options: Any) -> list[fx.GraphModule]:
    """The graphs of an update over images, without that of acting."""
    env = DummyVecEnv([lambda: Toy("image")])
    model = PPOX("CnnPolicy", env, n_steps=8, batch_size=4, seed=0, device="cpu", compile=True, **options)
    with pytest.raises(ValueError, match="nothing is compiled"):
        model.learn(8)
    return [job.traced for job in jobs[1:]]


def is_channels_last(node: fx.Node) -> bool:
    return bool(node.meta["val"].is_contiguous(memory_format=torch.channels_last))


def test_every_convolution_of_the_update_finds_its_tensors_laid_out(jobs: list[Job]) -> None:
    (update,) = updates_of(jobs)
    nodes = [node for node in update.graph.nodes if node.target in CONVOLUTIONS]
    assert len(nodes) == 6  # three layers, there and back
    tensors = [arg for node in nodes for arg in node.args if isinstance(arg, fx.Node) and arg.meta["val"].dim() == 4]
    assert len(tensors) == 3 * 2 + 3 * 3  # input and weights; and the output's gradient
    assert all(is_channels_last(tensor) for tensor in tensors)


def test_the_pixels_come_laid_out_and_stay_so_in_the_update(jobs: list[Job]) -> None:
    (update,) = updates_of(jobs)
    values = {node: node.meta.get("val") for node in update.graph.nodes}
    pixels = [node for node, value in values.items() if getattr(value, "shape", ())[1:] == (3, 36, 36)]
    assert len(pixels) == 4  # of the rollout; of the minibatch, as floats, over 255
    assert all(is_channels_last(node) for node in pixels)


def test_gradients_between_two_graphs_lie_end_to_end_as_their_parameters(jobs: list[Job]) -> None:
    gradient, _ = updates_of(jobs, learning_rate=AdaptiveKL(1e-3, 0.01, Threshold(2.0, 1.5), every="minibatch"))
    (outputs,) = next(node for node in gradient.graph.nodes if node.op == "output").args
    (flat,) = outputs
    assert all(node.meta["val"].is_contiguous() for node in flat.args[0])


def test_only_what_has_channels_is_laid_out() -> None:
    image, speed = torch.arange(24).reshape(1, 2, 3, 4), torch.zeros(1, 3)
    laid_out = images_channels_last({"image": image, "speed": speed})
    assert isinstance(laid_out, dict)
    assert laid_out["image"].stride() == (24, 1, 8, 2)
    assert laid_out["image"].equal(image)
    assert laid_out["speed"] is speed
    assert channels_last(image.to("meta")).stride() == (24, 1, 8, 2)  # on any device


def test_a_policy_convolves_where_any_of_its_parts_does() -> None:
    assert convolves(nn.Sequential(nn.Sequential(nn.Conv1d(1, 1, 1))))
    assert not convolves(nn.Sequential(nn.Linear(1, 1)))
