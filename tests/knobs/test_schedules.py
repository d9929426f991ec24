import math
import pickle

import pytest

from sb3_ppo_ext import PPOX, Cosine, Exponential, Linear, Piecewise, Warmup
from sb3_ppo_ext.knobs.schedules import ProgressSchedule

SCHEDULES = [
    Linear(0.2, 0.1),
    Cosine(0.2, 0.05),
    Exponential(1e-3, 1e-5),
    Piecewise(((0.0, 0.2), (0.5, 0.1))),
    Warmup(0.1, Cosine(3e-4, 0.0)),
]


def test_linear_and_cosine_at_the_quarters() -> None:
    assert [Linear(1.0, 0.0)(p) for p in (1.0, 0.75, 0.25, 0.0)] == [1.0, 0.75, 0.25, 0.0]
    # (1 + cos(pi / 4)) / 2 = 0.853553 of the way from 0.1 back to 0.5
    assert Cosine(0.5, 0.1)(0.75) == pytest.approx(0.1 + 0.4 * (1 + math.sqrt(0.5)) / 2)
    assert Cosine(0.5, 0.1)(0.5) == pytest.approx(0.3)


def test_exponential_is_the_geometric_mean_half_way() -> None:
    assert Exponential(1e-3, 1e-5)(0.5) == pytest.approx(1e-4)  # sqrt(1e-3 * 1e-5)


def test_piecewise_interpolates_holds_its_ends_and_jumps() -> None:
    schedule = Piecewise(((0.25, 1.0), (0.5, 3.0), (0.5, 10.0), (0.75, 20.0)))
    # done:        0    0.25  0.375  0.5   0.625  1
    values = [schedule(1 - done) for done in (0.0, 0.25, 0.375, 0.5, 0.625, 1.0)]
    assert values == [1.0, 1.0, 2.0, 10.0, 15.0, 20.0]


def test_warmup_rises_to_the_first_value_and_then_plays_the_whole_schedule() -> None:
    schedule = Warmup(0.2, Linear(1.0, 0.0), start=0.5)
    # half of the ramp: 0.75; at done 0.2 the linear schedule begins; at done 0.6 it is half through
    assert [schedule(p) for p in (1.0, 0.9, 0.8)] == pytest.approx([0.5, 0.75, 1.0])
    assert schedule(0.4) == pytest.approx(0.5)
    assert schedule(0.0) == 0.0


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_progress_is_clamped(schedule: ProgressSchedule) -> None:
    assert schedule(-0.01) == schedule(0.0)
    assert schedule(1.5) == schedule(1.0)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
def test_schedules_are_values(schedule: ProgressSchedule) -> None:
    assert eval(repr(schedule)) == schedule
    pickled = pickle.dumps(schedule)
    assert pickle.loads(pickled) == schedule
    assert f"{type(schedule).__name__}".encode() in pickled and b"sb3_ppo_ext" in pickled  # no byte code


def test_horizon_counts_timesteps_of_all_learn_calls() -> None:
    schedule = Linear(1.0, 0.0, horizon=1000)
    assert schedule.progress_remaining_at(250, progress_remaining=0.1) == 0.75
    assert Linear(1.0).progress_remaining_at(250, progress_remaining=0.1) == 0.1


def test_repeated_learn_calls_continue_a_schedule_with_a_horizon() -> None:
    continued = PPOX("MlpPolicy", "CartPole-v1", n_steps=64, n_epochs=1, clip_range="linear:0.4:0:horizon=256")
    restarted = PPOX("MlpPolicy", "CartPole-v1", n_steps=64, n_epochs=1, clip_range="linear:0.4:0")
    seen = []
    for model in (continued, restarted):
        for _ in range(2):
            model.learn(128)
            seen.append(model.knobs.values.clip_range)
    assert seen == pytest.approx([0.2, 0.0, 0.0, 0.0])


@pytest.mark.parametrize(
    ("build", "named"),
    [
        (lambda: Linear("a"), "start"),  # type: ignore[arg-type]
        (lambda: Linear(math.inf), "start"),
        (lambda: Exponential(1.0, 0.0), "above 0"),
        (lambda: Piecewise(((0.5, 1.0), (0.2, 1.0))), "fractions"),
        (lambda: Piecewise(()), "fractions"),
        (lambda: Warmup(1.0, Linear(1.0)), "fraction"),
        (lambda: Warmup(0.1, Linear(1.0, horizon=5)), "horizon"),
        (lambda: Cosine(0.1, horizon=0), "horizon"),
    ],
)
def test_a_wrong_schedule_says_what_is_wrong(build: object, named: str) -> None:
    assert callable(build)
    with pytest.raises(ValueError, match=named):
        build()
