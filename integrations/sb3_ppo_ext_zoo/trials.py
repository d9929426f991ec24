"""The trial of an Optuna study whose settings are trained: the named trial, or the best."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna
from sqlalchemy.exc import SQLAlchemyError


def require_whole_name(*, study_name: str | None, storage: str | None, trial_id: int | None, searching: bool) -> bool:
    """Whether a trial's settings are to be trained; ``ValueError`` where the trial is named in part.

    A training names a trial by study and storage. A search fills the study, and names a trial only with ``trial_id``.
    """
    if trial_id is None and (searching or (study_name is None and storage is None)):
        return False
    names = {"study_name": study_name, "storage": storage}
    missing = [name for name, value in names.items() if not value]
    if missing:
        values = {**names, "trial_id": trial_id}
        passed = ", ".join(f"{name}={value!r}" for name, value in values.items() if value is not None)
        lacking = f"{' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} missing"
        known = f" (there are: {_study_names(storage)})" if storage else ""
        raise ValueError(
            f"{passed}: for the settings of a trial {lacking}. A trial is found by its study and the "
            f"study's storage: pass --study-name{known} and --storage as for `ppox optimize`; without --study-name, "
            "--storage and --trial-id the settings file is trained"
        )
    return True


def trial_number(storage: str, study_name: str, trial_id: int | None) -> int:
    """The number of the trial, of the best one where ``trial_id`` is None; ``ValueError`` where there is none."""
    try:
        study = optuna.load_study(study_name=study_name, storage=_opened(storage))
    except KeyError:
        raise ValueError(
            f"study_name={study_name!r}: there is no such study in storage={storage!r}, so no trial of it can be "
            f"trained; studies there: {_study_names(storage)}"
        ) from None
    count = len(study.get_trials(deepcopy=False))
    if trial_id is None:
        return _best(study, storage, count)
    if not 0 <= trial_id < count:
        existing = f"there are 0 to {count - 1}" if count else "it has no trials yet"
        raise ValueError(
            f"trial_id={trial_id}: no such trial in the study {study_name!r} of storage={storage!r}; {existing}. "
            "Without --trial-id the best one is trained"
        )
    return trial_id


def _best(study: optuna.Study, storage: str, count: int) -> int:
    try:
        number: int = study.best_trial.number
    except (ValueError, RuntimeError) as error:  # none is complete, or there are several objectives
        raise ValueError(
            f"study_name={study.study_name!r}: none of the {count} trials of this study in storage={storage!r} is the "
            f"best one ({str(error).rstrip('.')}); let `ppox optimize` finish one, or name one with --trial-id"
        ) from None
    return number


def _study_names(storage: str) -> str:
    names = optuna.get_all_study_names(_opened(storage))
    return ", ".join(map(repr, names)) or "none"


def _opened(storage: str) -> Any:
    """The storage by rl_zoo3's rule: a file that ends in .log is a journal, any other text a database's address."""
    file = storage if storage.endswith(".log") else storage.partition("sqlite:///")[2].partition("?")[0]
    if file and not Path(file).is_file():  # Optuna would create it
        raise ValueError(f"storage={storage!r}: there is no file {file!r}, so there is no study and no trial in it")
    try:
        if file == storage:
            return optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(storage))
        return optuna.storages.get_storage(storage)
    except (SQLAlchemyError, ImportError, OSError) as error:
        raise ValueError(f"storage={storage!r}: the study's storage cannot be opened: {error}") from error
