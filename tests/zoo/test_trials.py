"""The settings of a trial: found by study and storage, the best one without a number, and never left out silently."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml
from rl_zoo3.hyperparams_opt import sample_ppo_params
from sb3_ppo_ext_zoo.cli import main
from sb3_ppo_ext_zoo.experiment import Experiment
from sb3_ppo_ext_zoo.registration import register
from sb3_ppo_ext_zoo.search import convert_ppox_params, sample_ppox_params

STORAGE = "sqlite:///studies.db"
TRAIN = ["train", "--env", "CartPole-v1", "-n", "16", "--eval-freq", "-1", "--verbose", "0"]
SHORT = ["-params", "n_steps:16", "batch_size:16", "n_epochs:1"]


def searched(name: str, values: list[float | None], storage: Any, **options: Any) -> optuna.Study:
    """A study with one finished trial for each value; None: a trial that was pruned."""
    study = optuna.create_study(study_name=name, storage=storage, sampler=optuna.samplers.RandomSampler(1), **options)
    for value in values:
        trial = study.ask()
        sample_ppox_params(trial, 2, 8, {})
        study.tell(trial, value, state=None if value is not None else optuna.trial.TrialState.PRUNED)
    return study


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A storage of several studies."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    path = tmp_path_factory.mktemp("storage") / "studies.db"
    storage = f"sqlite:///{path}"
    searched("rewards", [1.0, 3.0, 2.0], storage, direction="maximize")
    searched("losses", [1.0, 3.0], storage, direction="minimize")
    searched("pruned", [None, None], storage, direction="maximize")
    searched("empty", [], storage)
    optuna.create_study(study_name="two", storage=storage, directions=["maximize", "minimize"])
    return path


@pytest.fixture
def folder(database: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working directory with a copy of it."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(database, "studies.db")


def trained_settings() -> dict[str, Any]:
    config = Path("logs/ppox/CartPole-v1_1/CartPole-v1/config.yml")
    settings: dict[str, Any] = yaml.unsafe_load(config.read_text())
    return settings


@pytest.mark.parametrize(
    ("study", "trial_id", "number"),
    [("rewards", None, 1), ("losses", None, 0), ("rewards", 0, 0), ("rewards", 2, 2), ("pruned", 1, 1)],
)
def test_a_training_takes_the_settings_of_the_trial_named_or_of_the_best(
    study: str, trial_id: int | None, number: int, folder: None
) -> None:
    chosen = [] if trial_id is None else ["--trial-id", str(trial_id)]
    assert main([*TRAIN, "--study-name", study, "--storage", STORAGE, *chosen, *SHORT]) == 0
    trials = optuna.load_study(study_name=study, storage=STORAGE).trials
    expected = convert_ppox_params(trials[number].params)
    short = {"n_steps": 16, "batch_size": 16, "n_epochs": 1}  # what is typed wins
    assert trained_settings() == trained_settings() | expected | short


def test_a_journal_is_a_storage_too(folder: None) -> None:
    backend = optuna.storages.journal.JournalFileBackend("study.log")
    study = searched("kept", [1.0, 2.0], optuna.storages.JournalStorage(backend), direction="maximize")
    main([*TRAIN, "--study-name", "kept", "--storage", "study.log", *SHORT])
    assert trained_settings()["clip_range"] == convert_ppox_params(study.best_params)["clip_range"]


NAMED = {"study": ["--study-name", "rewards"], "storage": ["--storage", STORAGE], "trial": ["--trial-id", "0"]}


@pytest.mark.parametrize(
    ("named", "complaint"),
    [
        ("study", "study_name='rewards'.*trial.*storage is missing.*--storage"),
        ("storage", "storage='sqlite.*trial.*study_name is missing.*'rewards'.*--storage"),
        ("trial", "trial_id=0.*study_name and storage are missing.*--study-name.*--storage"),
        ("study trial", "trial_id=0.*storage is missing"),
        ("storage trial", "trial_id=0.*study_name is missing"),
    ],
)
def test_a_trial_named_in_part_is_refused_with_what_is_missing(named: str, complaint: str, folder: None) -> None:
    options = [argument for name in named.split() for argument in NAMED[name]]
    with pytest.raises(ValueError, match=complaint):
        main([*TRAIN, *options])
    assert not Path("logs").exists()


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--study-name", "reward"], "study_name='reward': .*no such study in storage=.*trial.*'rewards'"),
        (["--study-name", ""], "study_name is missing"),
        (["--study-name", "rewards", "--trial-id", "3"], "trial_id=3: no such trial in the study 'rewards'.*0 to 2"),
        (["--study-name", "rewards", "--trial-id", "-1"], "trial_id=-1: no such trial"),
        (["--study-name", "empty", "--trial-id", "0"], "trial_id=0: .*no trials yet"),
        (["--study-name", "empty"], "study_name='empty': none of the 0 trials.*storage=.*ppox optimize.*--trial-id"),
        (["--study-name", "pruned"], "study_name='pruned': none of the 2 trials"),
        (["--study-name", "two"], "study_name='two': .*objective.*--trial-id"),
        (["--study-name", "s", "--storage", "sqlite:///typo.db"], "storage='sqlite:///typo.db': .*no file 'typo.db'"),
        (["--study-name", "s", "--storage", "typo.log"], "storage='typo.log': there is no file"),
        (["--study-name", "s", "--storage", "studies"], "storage='studies': .*cannot be opened"),
    ],
)
def test_what_is_not_there_is_refused_with_what_there_is(options: list[str], complaint: str, folder: None) -> None:
    with pytest.raises(ValueError, match=complaint):
        main([*TRAIN, "--storage", STORAGE, *options])
    assert {path.name for path in Path().iterdir()} == {"studies.db"}


@pytest.mark.parametrize("started", [True, False])
def test_a_trial_of_another_algorithm_s_search_is_refused(started: bool, folder: None) -> None:
    study = optuna.create_study(study_name="ppo", storage=STORAGE)
    if started:
        trial = study.ask()
        sample_ppo_params(trial, 2, 8, {})
        study.tell(trial, 1.0)
    else:
        study.enqueue_trial({"gamma": 0.9})
    with pytest.raises(ValueError, match=r"trial_id=0: .*'ppo'.*no finished trial of a search for 'ppox'"):
        main([*TRAIN, "--study-name", "ppo", "--storage", STORAGE, "--trial-id", "0"])


def test_a_search_needs_no_trial_and_one_named_in_part_is_refused_there_too(folder: None) -> None:
    register()

    def reads(**options: Any) -> Experiment:
        experiment = Experiment(None, "ppox", "CartPole-v1", "logs", optimize_hyperparameters=True, **options)  # type: ignore[arg-type]
        experiment.read_hyperparameters()
        return experiment

    reads(study_name="new", storage="sqlite:///new.db")
    reads(study_name="in memory")
    with pytest.raises(ValueError, match=r"trial_id=0.*storage is missing"):
        reads(study_name="in memory", trial_id=0)
