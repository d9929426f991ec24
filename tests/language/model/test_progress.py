"""While a rollout is generated, the user is told how many responses are done, and how fast tokens come."""

from __future__ import annotations

import copy
import pickle
import re
import sys
import time
from typing import Any

import pytest
import torch
from stable_baselines3.common.callbacks import BaseCallback, ProgressBarCallback

from sb3_ppo_ext.language.model import progress as progress_module
from sb3_ppo_ext.language.model.progress import Report, RolloutProgress
from tests.language import setups

LINE = re.compile(r"Rollout (\d+): (\d+) of (\d+) responses, ([\d,]+) tokens, ([\d,]+) tokens/s")


class Clock:
    """``time.perf_counter`` by hand."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)


def test_reports_count_what_is_complete_and_what_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, shown = Clock(monkeypatch), list[Report]()
    progress = RolloutProgress(4, shown.append, pause=1.0)
    clock.now = 2.0
    progress.after_token(torch.tensor([[True, False], [True, True]]), 1)
    clock.now = 2.5  # not yet due, and not yet all
    progress.after_batch(torch.tensor([[True, False], [True, True]]))
    clock.now = 4.0
    progress.after_token(torch.ones(2, 1, dtype=torch.bool), 0)
    progress.after_batch(torch.ones(2, 2, dtype=torch.bool))  # the last batch is reported at once
    # Tokens: 3 of the first batch; 3 + 2; 3 + 4. Speeds: 3 / 2, 5 / 4 and 7 / 4.
    assert shown == [Report(1, 4, 3, 1.5), Report(2, 4, 5, 1.25), Report(4, 4, 7, 1.75)]
    assert str(shown[0]) == "1 of 4 responses, 3 tokens, 2 tokens/s"


def test_lines_come_at_growing_intervals(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, times = Clock(monkeypatch), list[float]()
    progress = RolloutProgress(9, lambda _: times.append(clock.now), pause=1.0, doubling=True)
    for second in range(1, 101):
        clock.now = float(second)
        progress.after_token(torch.ones(1, 1, dtype=torch.bool), 0)
    assert times == [1, 3, 7, 15, 31, 61, 91]  # pauses of 1, 2, 4, 8 and 16 s, then of 30 s


def test_verbose_prints_the_progress_of_every_rollout(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress_module, "FIRST_LINE", 0.0)  # after every token
    setups.ppox(verbose=1).learn(32)
    found = [tuple(int(number.replace(",", "")) for number in line) for line in LINE.findall(capsys.readouterr().out)]
    for rollout in (1, 2):
        done = [line[1] for line in found if line[0] == rollout]
        tokens = [line[3] for line in found if line[0] == rollout]
        assert len(done) > 2 and done == sorted(done) and tokens == sorted(tokens)
        assert done[-1] == 16 and 16 <= tokens[-1] <= 16 * setups.LENGTH
    assert {line[2] for line in found} == {16}  # 2 steps of 8 environments


def test_without_verbose_nothing_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    setups.ppox(verbose=0).learn(16)
    output = capsys.readouterr()
    assert "responses" not in output.out + output.err


class Bars(BaseCallback):
    """What stands beside the bar at each step."""

    def __init__(self, bar: Any) -> None:
        super().__init__()
        self.bar, self.texts = bar, list[str]()

    def _on_step(self) -> bool:
        self.texts.append(self.bar.pbar.desc)
        return True


@pytest.mark.filterwarnings("ignore:rich is experimental")
def test_the_progress_bar_says_responses_and_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress_module, "SECONDS", 0.0)
    bar = ProgressBarCallback()
    watched = Bars(bar)
    setups.ppox().learn(16, callback=[bar, watched])
    assert re.match(r"8/16 responses, [\d,]+ tokens/s", watched.texts[0])
    assert re.match(r"16/16 responses, [\d,]+ tokens/s", watched.texts[1])


def test_a_terminal_has_one_line_that_is_erased(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress_module, "SECONDS", 0.0)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    setups.ppox(verbose=1).learn(16)
    shown = capsys.readouterr().err
    assert "16 of 16 responses" in shown and "\n" not in shown and shown.endswith("\r\033[K")


def progress_in(model: Any) -> Any:
    return model._monitor.run.progress


class Copying(BaseCallback):
    """Copies and pickles the policy in the middle of a rollout, and lets it answer."""

    def __init__(self, env: Any) -> None:
        super().__init__()
        self.env = env

    def _on_step(self) -> bool:
        progress = progress_in(self.model)
        assert progress is not None
        copied = copy.deepcopy(self.model.policy)
        pickle.dumps(copied)
        before = progress.done
        for policy in (self.model.policy, copied):
            policy.predict(self.env.reset(), deterministic=True)
        assert progress.done == before  # an evaluation is not of the rollout
        return True


def test_the_policy_can_be_copied_and_asked_in_the_middle_of_a_rollout() -> None:
    model = setups.ppox(verbose=1)
    model.learn(16, callback=Copying(setups.env()))
    assert progress_in(model) is None
    with pytest.raises(RuntimeError, match="stop"):
        model.learn(16, callback=lambda *_: (_ for _ in ()).throw(RuntimeError("stop")))
    assert progress_in(model) is None


def test_progress_changes_nothing_of_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress_module, "FIRST_LINE", 0.0)
    quiet, telling = (setups.ppox(verbose=verbose).learn(32) for verbose in (0, 1))
    for one, other in zip(quiet.policy.parameters(), telling.policy.parameters(), strict=True):
        assert torch.equal(one, other)
