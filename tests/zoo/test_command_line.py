from __future__ import annotations

import sys
from pathlib import Path

import pytest
from sb3_ppo_ext_zoo.arguments import joined, quote_texts, warn_of_idle_options
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


@pytest.mark.parametrize(
    ("typed", "passed_on"),
    [
        (["-params", "a:1", "-n", "5", "-params", "b:2"], ["-n", "5", "-params", "a:1", "b:2"]),
        (["--hyperparams=a:1", "-params", "b:2", "c:3"], ["-params", "a:1", "b:2", "c:3"]),
        (["--env-kwargs", "a:1", "--env", "E", "--env-kwargs", "b:2"], ["--env", "E", "--env-kwargs", "a:1", "b:2"]),
        (["--gym-packages", "one", "--gym-packages", "two"], ["--gym-packages", "one", "two"]),
        (["-n", "5", "--eval-freq", "-1", "-P"], ["-n", "5", "--eval-freq", "-1", "-P"]),
    ],
)
def test_an_option_of_several_values_may_be_repeated(typed: list[str], passed_on: list[str]) -> None:
    assert joined("train", typed) == passed_on


@pytest.mark.parametrize(
    ("command", "typed", "message"),
    [
        ("train", ["--n-trials", "50"], "--n-trials has no effect: it is for a search"),
        ("train", ["--n-jobs=2"], "--n-jobs has no effect"),
        ("train", ["--save-replay-buffer"], "PPOX has no replay buffer"),
        ("train", ["--wandb-project-name", "mine"], "it needs --track"),
        ("optimize", ["--optimize-hyperparameters", "--save-freq", "9"], "--save-freq has no effect: .*training"),
    ],
)
def test_an_option_without_effect_is_warned_of(command: str, typed: list[str], message: str) -> None:
    with pytest.warns(UserWarning, match=f"ppox {command}: .*{message}"):
        warn_of_idle_options(command, typed)


def test_an_option_with_effect_is_not_warned_of() -> None:
    warn_of_idle_options("train", ["--save-freq", "9", "-P", "--track", "--wandb-tags", "a"])
    warn_of_idle_options("train", ["-optimize", "--n-trials", "50", "--n-jobs", "2"])


@pytest.mark.parametrize("command", ["enjoy", "record-video"])
@pytest.mark.parametrize("typed", [["--load-best", "--load-checkpoint", "64"], ["--deterministic", "--stochastic"]])
def test_of_two_options_that_exclude_each_other_none_is_passed_over(
    command: str, typed: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        main([command, "--env", "CartPole-v1", *typed])
    assert left.value.code == 2 and f"not allowed with {typed[0]}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "typed", "message"),
    [
        ("optimize", ["-i", "agent.zip"], "trained_agent='agent.zip': a search starts every trial from new parameters"),
        ("train", ["-n", "0"], "n_timesteps=0: a positive number"),
        ("train", ["-n", "-5"], "n_timesteps=-5: a positive number"),
    ],
)
def test_what_would_be_passed_over_is_refused(
    command: str, typed: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("agent.zip").touch()
    with pytest.raises(ValueError, match=message):
        main([command, "--env", "CartPole-v1", *typed])
    assert not Path("logs").exists()
