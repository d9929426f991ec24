"""What the pages for users show: their code runs, their settings are read, their links lead somewhere."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import HumanOutputFormat

from sb3_ppo_ext import PPOX
from tests.environments import needs_envpool

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(page: Path, language: str) -> list[str]:
    return [code for name, code in BLOCK.findall(page.read_text(encoding="utf-8")) if name == language]


def with_code(language: str) -> list[Any]:
    marks = {"vector-environments": needs_envpool}
    return [
        pytest.param(page, id=page.stem, marks=marks.get(page.stem, ())) for page in PAGES if blocks(page, language)
    ]


def questions_and_answers() -> dict[str, Any]:
    """What a reader with a language model has: prompts with right answers, and a tokenizer."""
    pytest.importorskip("transformers")
    from tests.language.words import tokenizer

    held_out = {"test_questions": ["go to the"], "test_answers": ["door"]}
    chat = tokenizer(chat=True)
    return {"questions": ["the door is", "go"], "answers": ["left", "right"], "tokenizer": chat, **held_out}


def torchrl_networks() -> dict[str, Any]:
    """What a reader with a TorchRL loop has: networks, a batch and a minibatch of it; and a trained PPOX model."""
    pytest.importorskip("torchrl")
    from sb3_ppo_ext_torchrl import actor_module, critic_module

    from sb3_ppo_ext.tensordicts import rollout_to_tensordict

    env = make_vec_env("CartPole-v1", 2)
    model = PPOX("MlpPolicy", env, n_steps=8, batch_size=16, n_epochs=1, device="cpu").learn(16)
    actor, critic = actor_module(model.policy), critic_module(model.policy)
    batch = rollout_to_tensordict(model.rollout_buffer)
    with torch.no_grad():
        actor.get_dist_params(batch)  # what collecting with the actor leaves
    return {
        **{
            "model": model,
            "env": env,
            "actor": actor,
            "critic": critic,
            "batch": batch,
            "minibatch": batch.reshape(-1),
        },
        **{"make_actor": lambda *_: actor, "make_critic": lambda *_: critic},
    }


def stopped_runs() -> dict[str, Any]:
    """What goes on after a stop: an environment and callbacks, a logger of another service, a TorchRL loop."""
    pytest.importorskip("torchrl")
    from sb3_ppo_ext_torchrl import KnobScheduler, PPOXLoss, actor_module, critic_module
    from torchrl.collectors import Collector
    from torchrl.envs import GymEnv

    env = make_vec_env("CartPole-v1", 2)
    policy = PPOX("MlpPolicy", env, device="cpu").policy
    loss = PPOXLoss(actor_module(policy), critic_module(policy))
    optimizer = torch.optim.Adam(loss.parameters())
    collector = Collector(
        GymEnv("CartPole-v1", categorical_action_encoding=True), loss.actor_network,
        frames_per_batch=8, total_frames=8, auto_register_policy_transforms=True,
    )  # fmt: skip
    return {
        **{
            "env": env,
            "callbacks": [],
            "wandb": SimpleNamespace(init=dict),
            "MyOutput": lambda: HumanOutputFormat(sys.stdout),
        },
        **{"loss": loss, "optimizer": optimizer, "collector": collector},
        "scheduler": KnobScheduler(loss, {"clip_epsilon": "linear:0.2:0.1"}, total_frames=8),
    }


ASSUMED: dict[str, tuple[Callable[[], dict[str, Any]], ...]] = {
    "README": (questions_and_answers, torchrl_networks),
    "language-models": (questions_and_answers,),
    "torchrl": (torchrl_networks,),
    "resume": (stopped_runs,),
}


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Trainings end after their first rollout, and write into a folder of their own."""
    monkeypatch.chdir(tmp_path)
    learn = PPOX.learn

    def learn_once(self: PPOX, total_timesteps: int, *args: Any, **options: Any) -> PPOX:
        return learn(
            self, min(total_timesteps, self.n_steps * self.n_envs), *args, **{**options, "progress_bar": False}
        )

    monkeypatch.setattr(PPOX, "learn", learn_once)


# What code needs which package of those that the tests do not install.
NOT_INSTALLED = {"reasoning_prompts": "reasoning_gym", "TextGameEnv": "textarena", "RayVecEnv": "ray"}


@pytest.mark.usefixtures("short", "objectives")
@pytest.mark.filterwarnings("ignore::UserWarning")  # of a training of one rollout
@pytest.mark.parametrize("page", with_code("python"))
def test_the_code_of_a_page_runs_from_top_to_bottom(page: Path, request: pytest.FixtureRequest) -> None:
    names: dict[str, Any] = {}
    for assumed in ASSUMED.get(page.stem, ()):
        names.update(assumed())
    for code in blocks(page, "python"):
        if any(name in code and find_spec(package) is None for name, package in NOT_INSTALLED.items()):
            continue
        if "RayVecEnv" in code:
            request.getfixturevalue("cluster")  # the code would start one of its own
        if "PATH/TO/MODEL" in code:
            from tests.language import tiny

            tiny.model(vocabulary=16, size=32).save_pretrained("PATH/TO/MODEL")
        exec(compile(code, str(page), "exec"), names)


@pytest.mark.parametrize("page", with_code("yaml"))
def test_settings_in_yaml_are_those_of_a_model(page: Path) -> None:
    for text in blocks(page, "yaml"):
        model = PPOX("MlpPolicy", "CartPole-v1", n_steps=8, batch_size=8, **yaml.safe_load(text))
        assert model.knobs.controllers


SHORTER = {
    "train": ["-n", "64", "--eval-freq", "-1"],
    "enjoy": ["--no-render", "-n", "10"],
    "record-video": ["-n", "10"],
    "optimize": ["-n", "64", "--n-trials", "1", "--no-optim-plots"],
    "plot": [],
}


def commands(page: Path) -> list[list[str]]:
    """What follows ``ppox`` in the lines of the page's first block that has any."""
    block = next(code for code in blocks(page, "sh") if "ppox " in code)
    lines = [shlex.split(line, comments=True) for line in block.splitlines()]
    return [words[1:] for words in lines if words and words[0] == "ppox"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # those of the progress bar and of a search of one trial
def test_the_commands_of_the_pages_run_one_after_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("rl_zoo3")
    from sb3_ppo_ext_zoo.cli import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    every = commands(ROOT / "docs/zoo.md")
    assert {command[0] for command in every} == SHORTER.keys()
    assert all(command in every for command in commands(ROOT / "README.md"))
    for command in every:
        assert main([*command, *SHORTER[command[0]]]) == 0


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_to_files_and_headings_that_are_there(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)]+)\)", text):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", linked.read_text(encoding="utf-8"), flags=re.MULTILINE)
            anchors = [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]
            assert anchor in anchors, target


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda page: page.stem)
def test_the_readme_leads_to_every_page(page: Path) -> None:
    assert f"docs/{page.name}" in (ROOT / "README.md").read_text(encoding="utf-8")
