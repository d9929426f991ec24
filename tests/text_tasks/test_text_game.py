"""The example of a game of several turns: its rules, and a training of each arm that ends in a table."""

from __future__ import annotations

import numpy as np
import pytest
import text_game
from text_game import LENGTHS, TURNS, WORDS, Treasure


def test_the_way_there_wins_and_any_other_last_position_does_not() -> None:
    game = Treasure(text_game.tokenizer(), **LENGTHS)
    for seed in range(5):
        for missed in (False, True):
            game.reset(seed=seed)
            vertical, horizontal = ("north" if game.north > 0 else "south"), ("east" if game.east > 0 else "west")
            way = [vertical] * abs(game.north) + [horizontal] * abs(game.east)
            moves = [*way[missed:], *["stay"] * TURNS][:TURNS]
            for move in moves:
                _, reward, done, _, info = game.step(np.array([WORDS.index(move), WORDS.index("<eos>")]))
            assert (done, reward, info["is_success"]) == (True, float(not missed), not missed)


@pytest.mark.filterwarnings("ignore::sb3_ppo_ext.TrainingWarning")
def test_every_arm_trains_on_as_many_responses(capsys: pytest.CaptureFixture[str]) -> None:
    text_game.main(["--timesteps", "80", "--warm-up", "2", "--games", "8", "--n-envs", "16"])
    rows = capsys.readouterr().out.splitlines()[1:]
    assert [row.split()[0] for row in rows] == list(text_game.ARMS)
    assert all(0 <= float(row.split("|")[-1]) <= 1 for row in rows)
