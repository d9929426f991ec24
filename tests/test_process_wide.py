"""What the whole process shares is put back by the last training that needed it, in whatever order they end."""

from __future__ import annotations

import os
import stat
import threading
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Distribution

from sb3_ppo_ext import PPOX
from sb3_ppo_ext.engines.cpu.threads import available_threads, computing_with
from sb3_ppo_ext.engines.tracing import Inputs, trace
from sb3_ppo_ext.policies.adapter import unvalidated_distributions
from sb3_ppo_ext.process_wide import ignoring_warnings
from sb3_ppo_ext.saving import random_state, restore_random_state, save_atomically
from tests.environments import Toy

pytestmark = pytest.mark.filterwarnings("ignore::sb3_ppo_ext.TrainingWarning")


def in_a_thread(work: Callable[[], object]) -> Any:
    found: list[object] = []
    thread = threading.Thread(target=lambda: found.append(work()))
    thread.start()
    thread.join()
    return found[0]


def overlapping(
    first: AbstractContextManager[object], second: AbstractContextManager[object], state: Callable[[], object]
) -> list[object]:
    """``state`` while both hold, after the first has ended, and after the second, which another thread holds."""
    may_end, begun = threading.Event(), threading.Event()

    def hold() -> None:
        with second:
            begun.set()
            may_end.wait(10)

    thread = threading.Thread(target=hold)
    with first:
        thread.start()
        assert begun.wait(10)
        seen = [state()]
    seen.append(state())
    may_end.set()
    thread.join()
    return [*seen, state()]


def test_the_checks_of_distributions_are_on_again_when_the_last_update_ends() -> None:
    assert Distribution._validate_args
    checks = overlapping(
        unvalidated_distributions(), unvalidated_distributions(), lambda: bool(Distribution._validate_args)
    )
    assert checks == [False, False, True]


def test_checks_that_were_off_stay_off() -> None:
    Distribution.set_default_validate_args(False)
    try:
        assert overlapping(
            unvalidated_distributions(), unvalidated_distributions(), lambda: Distribution._validate_args
        ) == [False, False, False]
    finally:
        Distribution.set_default_validate_args(True)


def test_warnings_are_shown_again_when_the_last_holder_ends() -> None:
    ignored = ignoring_warnings(".*rounded")

    def shown() -> bool:
        try:
            warnings.warn("it is rounded", UserWarning, stacklevel=1)
        except UserWarning:  # pytest's own setting of this project
            return True
        return False

    assert overlapping(ignored, ignored, shown) == [False, False, True]


def test_every_thread_has_its_own_number_of_threads_and_the_process_the_former_one() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert overlapping(computing_with(1), computing_with(2), torch.get_num_threads) == [1, 3, 3]
        assert in_a_thread(torch.get_num_threads) == 3
        with computing_with(1):
            assert available_threads() == 1  # within a block: never more than it has
            assert in_a_thread(available_threads) == 3  # that other trainings have
            with computing_with(2):
                assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_trainings_in_threads_leave_the_process_as_it_was() -> None:
    before = torch.get_num_threads(), nn.Module.__call__

    def learn(seed: int) -> None:
        PPOX("MlpPolicy", Toy(), n_steps=16, batch_size=16, n_epochs=2, seed=seed, device="cpu").learn(160)

    threads = [threading.Thread(target=learn, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Distribution._validate_args
    assert (in_a_thread(torch.get_num_threads), nn.Module.__call__) == before


def test_graphs_are_traced_one_at_a_time() -> None:
    # A trace replaces nn.Module.__call__ and puts back what it found.
    before = nn.Module.__call__
    others: list[threading.Thread] = []

    def beside(inputs: Inputs) -> tuple[Tensor, ...]:
        more: Any = (lambda inputs: (inputs["x"] + 1,), {"x": torch.zeros(1)}, nn.Identity())
        inner = threading.Thread(target=trace, args=more)
        inner.start()
        inner.join(0.2)
        others.append(inner)
        assert inner.is_alive()
        return (inputs["x"] * 2,)

    trace(beside, {"x": torch.zeros(1)}, nn.Identity())
    others[0].join()
    assert nn.Module.__call__ is before


def test_saving_changes_no_umask_and_files_are_as_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = os.umask(0o027)
    try:
        with monkeypatch.context() as patched:
            patched.setattr(os, "umask", None)  # to read it is to change it, for all threads
            save_atomically(tmp_path / "model", lambda file: None)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "model.zip").stat().st_mode) == 0o640


def test_a_gpu_that_nothing_has_used_stays_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    def opened(*_: Any) -> None:
        raise AssertionError("a CUDA context was opened")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_rng_state_all", opened)
    monkeypatch.setattr(torch.cuda, "set_rng_state_all", opened)
    state = random_state(0)
    assert state["cuda"] == []
    restore_random_state(state)
