from __future__ import annotations

import sys
from pathlib import Path

import pytest
from sb3_ppo_ext_zoo.arguments import quote_texts
from sb3_ppo_ext_zoo.cli import COMMANDS, main


def test_help_lists_every_command_with_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert list(COMMANDS) == ["train", "enjoy", "record-video", "optimize", "plot"]
    assert all(f"ppox {name} " in text and command.summary in text for name, command in COMMANDS.items())


@pytest.mark.parametrize("given", [[], ["fly"]])
def test_no_command_or_an_unknown_one_is_an_error_that_lists_them(
    given: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(given) == 2
    output = capsys.readouterr()
    assert "record-video" in output.out + output.err


@pytest.mark.parametrize(
    ("command", "script"),
    [("train", "train"), ("enjoy", "enjoy"), ("record-video", "record_video"), ("optimize", "train")],
)
def test_another_algorithm_is_refused_with_the_command_for_it(
    command: str, script: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        main([command, "--env", "CartPole-v1", "--algo=sac"])
    assert left.value.code == 2
    assert f"python -m rl_zoo3.{script} --algo sac" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["train", "enjoy", "record-video", "optimize"])
def test_help_of_a_command_is_that_of_rl_zoo3(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main([command, "--help"])
    assert left.value.code == 0
    text = capsys.readouterr().out
    assert (text.startswith(f"usage: ppox {command}") and "--gym-packages" in text) or command == "record-video"


@pytest.mark.parametrize(
    ("typed", "passed_on"),
    [
        ("clip_range:cosine:0.2:0.05", "clip_range:'cosine:0.2:0.05'"),
        ("learning_rate:lin_3e-4", "learning_rate:'lin_3e-4'"),
        ("surrogate:spo", "surrogate:'spo'"),
        ("n_steps:64", "n_steps:64"),
        ("clip_range_vf:None", "clip_range_vf:None"),
        ("kl_coef:{'adaptive_kl': {'start': 1, 'target': 0.01}}", None),
        ("policy_kwargs:dict(net_arch=[64 for _ in range(2)], activation_fn=nn.ReLU)", None),
        ("env_wrapper:gymnasium.wrappers.FlattenObservation", "env_wrapper:'gymnasium.wrappers.FlattenObservation'"),
    ],
)
def test_texts_among_params_are_quoted_and_python_is_not(typed: str, passed_on: str | None) -> None:
    assert list(quote_texts(["--env", "a:b", "-params", typed, "-n", "5"])) == [
        "--env", "a:b", "-params", passed_on or typed, "-n", "5",
    ]  # fmt: skip


def test_the_user_s_own_modules_are_found_in_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A console script, unlike `python -m`, starts without the working directory on its path.
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    (tmp_path / "my_tasks.py").write_text(
        "import gymnasium\ngymnasium.register('Mine-v0', 'gymnasium.envs.classic_control:CartPoleEnv')\n"
    )
    (tmp_path / "mine.yml").write_text("Mine-v0: {policy: MlpPolicy, n_timesteps: 8, n_steps: 8, batch_size: 8}")
    main(["train", "-conf", "mine.yml", "--env", "Mine-v0", "--gym-packages", "my_tasks", "--eval-freq", "-1"])
    assert (tmp_path / "logs/ppox/Mine-v0_1/Mine-v0.zip").is_file()
