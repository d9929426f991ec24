"""Fixtures of the rl_zoo3 tests: they run in a folder of their own, in which no warning of ours is hidden."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from sb3_ppo_ext_zoo import register
from sb3_ppo_ext_zoo.experiment import Experiment

from sb3_ppo_ext import PPOX

HERE = Path(__file__).parent

# Other people's warnings, by text; none of them is about what PPOX does.
NOISE = (
    "ignore:builtin type .* has no __module__ attribute:DeprecationWarning",  # Box2D; as an error it kills the process
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            for noise in NOISE:
                item.add_marker(pytest.mark.filterwarnings(noise))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def build(tmp_path: Path) -> Iterator[Callable[..., PPOX]]:
    """``build(lines of YAML)``: the model that ``ppox train`` would train on CartPole with these settings."""

    register()
    models: list[PPOX] = []

    def build_from(settings: str, **options: Any) -> PPOX:
        config = tmp_path / "settings.yml"
        lines = [
            "CartPole-v1:",
            "  policy: MlpPolicy",
            "  n_timesteps: 100",
            *(f"  {s}" for s in settings.splitlines()),
        ]
        config.write_text("\n".join(lines), encoding="utf-8")
        experiment = Experiment(
            Namespace(),
            "ppox",
            "CartPole-v1",
            str(tmp_path / "logs"),
            **{"config": str(config), "verbose": 0, "eval_freq": -1, **options},
        )
        model = experiment.setup_experiment()[0]
        assert isinstance(model, PPOX)
        models.append(model)
        return model

    yield build_from
    for model in models:
        assert model.env is not None
        model.env.close()  # its monitor file
