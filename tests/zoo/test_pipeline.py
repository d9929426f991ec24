"""train -> enjoy -> record-video -> train -i -> optimize -> train --trial-id -> plot, as a user types them."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from sb3_ppo_ext_zoo.cli import main
from sb3_ppo_ext_zoo.search import sample_ppox_params

from sb3_ppo_ext import PPOX

SETTINGS = """
CartPole-v1:
  policy: MlpPolicy
  normalize: true
  n_envs: 2
  n_timesteps: 256
  n_steps: 32
  batch_size: 32
  n_epochs: 2
  clip_range: cosine:0.3:0.1
  learning_rate: {adaptive_kl: {start: 1.0e-3, target: 0.5, law: threshold:1.5:1.2, every: epoch}}
"""
TRAIN = ["train", "--env", "CartPole-v1", "-conf", "mine.yml", "--seed", "1", "--num-threads", "1"]
SHORT = {"n_steps": 32, "batch_size": 32, "n_epochs": 1}
FIRST = "logs/ppox/CartPole-v1_1"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder in which `ppox train` ran twice."""
    folder = tmp_path_factory.mktemp("zoo")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("MPLBACKEND", "Agg")
        patch.setenv("SDL_VIDEODRIVER", "dummy")
        Path("mine.yml").write_text(SETTINGS)
        for seed in ("1", "2"):
            evaluation = ["--eval-freq", "64", "--eval-episodes", "2", "--seed", seed, "--save-freq", "128"]
            assert main([*TRAIN, "--algo", "ppox", *evaluation]) == 0
        yield folder


def test_train_leaves_the_zoo_s_folder_and_a_config_that_loads(trained: Path) -> None:
    from rl_zoo3.utils import get_saved_hyperparams

    written = {path.relative_to(FIRST).as_posix() for path in Path(FIRST).rglob("*") if path.is_file()}
    settings = {f"CartPole-v1/{name}" for name in ("args.yml", "command.txt", "config.yml", "vecnormalize.pkl")}
    models = {"CartPole-v1.zip", "best_model.zip", "rl_model_128_steps.zip", "rl_model_256_steps.zip"}
    assert written == settings | models | {"0.monitor.csv", "1.monitor.csv", "evaluations.npz"}
    config, _ = get_saved_hyperparams(f"{FIRST}/CartPole-v1")
    expected = yaml.safe_load(SETTINGS)["CartPole-v1"]
    assert {name: config[name] for name in expected} == expected


def test_enjoy_plays_what_train_saved(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["enjoy", "--env", "CartPole-v1", "--no-render", "-n", "600", "--exp-id", "1"])
    printed = capsys.readouterr().out
    assert f"Loading {FIRST}/CartPole-v1.zip" in printed and "Mean reward:" in printed


def test_record_video_writes_a_film(trained: Path) -> None:
    main(["record-video", "--env", "CartPole-v1", "-n", "20", "--exp-id", "1"])
    (film,) = Path(FIRST, "videos").glob("*.mp4")
    assert b"ftyp" in film.read_bytes()[:12]


def test_training_continues_from_a_zip_and_so_does_its_controller(trained: Path) -> None:
    before = PPOX.load(f"{FIRST}/CartPole-v1.zip")
    # A KL far below the target raises the rate by 1.2 at each of 4 rollouts * 2 epochs, then at 2 more.
    assert before.knobs.values.learning_rate == pytest.approx(1e-3 * 1.2**8)
    onwards = [*TRAIN, "-i", f"{FIRST}/CartPole-v1.zip", "-f", "more", "--eval-freq", "-1", "-n", "64"]
    main([*onwards, "-params", "kl_coef:0.25", "clip_range:linear:0.2:0.1"])
    after = PPOX.load("more/ppox/CartPole-v1_1/CartPole-v1.zip")
    assert after._n_updates == before._n_updates + 2
    assert after.knobs.values.learning_rate == pytest.approx(1e-3 * 1.2**10)
    assert (after.knobs.values.kl_coef, after.knobs.values.clip_range) == (0.25, 0.2)


def short_trial(*arguments: Any) -> dict[str, Any]:
    """What PPOX's sampler returns, but for a rollout that does not take a minute."""
    return {**sample_ppox_params(*arguments), **SHORT}


def test_a_search_writes_its_report_and_a_trial_of_it_can_be_trained(
    trained: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sb3_ppo_ext_zoo.search.sample_ppox_params", short_trial)
    study = ["--study-name", "tiny", "--storage", "sqlite:///tiny.db", "--eval-freq", "-1"]
    search = ["-n", "128", "--n-trials", "2", "--n-evaluations", "1", "--eval-episodes", "1", "--no-optim-plots"]
    main(["optimize", *TRAIN[1:], *study, *search, "-f", "search"])
    report = list(csv.DictReader(next(Path("search/ppox").glob("report_*.csv")).read_text().splitlines()))
    assert [row["number"] for row in report] == ["0", "1"]
    short = [f"{name}:{value}" for name, value in SHORT.items()]
    main([*TRAIN, *study, "-n", "64", "--trial-id", "0", "-f", "best", "-params", *short])
    config = yaml.unsafe_load(next(Path("best").rglob("config.yml")).read_text())
    assert config["surrogate"] == report[0]["params_surrogate"]
    assert config["gae_lambda"] == pytest.approx(1 - float(report[0]["params_one_minus_gae_lambda"]))


@pytest.mark.parametrize(
    "draw",
    [
        lambda name: main(["plot", "train", "-e", "CartPole-v1", "-w", "2", "--save", name]),
        lambda name: main(["plot", "all", "-e", "CartPole-v1", "--save", name]),
    ],
    ids=["train", "all"],
)
def test_plot_writes_a_picture(draw: Callable[[str], int], trained: Path) -> None:
    assert draw("picture.png") == 0
    assert Path("picture.png").read_bytes()[1:4] == b"PNG"
    Path("picture.png").unlink()


def test_plot_from_file_draws_what_plot_all_wrote(trained: Path) -> None:
    main(["plot", "all", "-e", "CartPole-v1", "--output", "results", "--no-display"])
    main(["plot", "from-file", "-i", "results", "--boxplot", "--save", "box.png"])
    assert sorted(path.name for path in Path().glob("box_*.png")) == ["box_1.png", "box_2.png", "box_3.png"]
