"""Text games as environments: transcripts in ids, random states of their own, opponents, rewards that are numbers."""

from __future__ import annotations

import pickle
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from sb3_ppo_ext.language import TextGameEnv
from tests.language import chats
from tests.language.games import HigherLower, Race, Table

LENGTH = 4


def guessing(game: Any = HigherLower, **options: Any) -> TextGameEnv:
    settings: dict[str, Any] = {"max_new_tokens": LENGTH, "max_prompt_length": 200, **options}
    return TextGameEnv(game, chats.tokenizer(), **settings)


def say(env: TextGameEnv, text: str) -> Any:
    return env.step(chats.response(text, LENGTH))


def test_the_transcript_has_the_sampled_ids_and_the_games_words_once() -> None:
    env = guessing(seat=0)
    observation, _ = env.reset(seed=1)
    opening = list(env.ids)
    number = env.game.number
    wrong = (number + 5) % 10
    observation, reward, terminated, truncated, info = say(env, str(wrong))
    hint = "higher" if wrong < number else "lower"
    expected = f"{wrong}<|end|>\n<|start|>user\n{hint}<|end|>\n<|start|>assistant\n"
    assert chats.tokenizer().decode(env.ids[len(opening) :]) == expected
    assert observation["input_ids"][observation["attention_mask"] > 0].tolist() == env.ids
    assert (reward, terminated, truncated) == (0.0, False, False)
    assert info == {"prompt": chats.plain_text(opening), "response": str(wrong), "cut_off": False}
    _, reward, terminated, truncated, info = say(env, str(number))
    assert (reward, terminated, truncated) == (1.0, True, False)
    assert (info["is_success"], info["turns"], info["reason"]) == (True, 2, "found")


def test_partial_credit_is_no_success_and_an_episode_of_many_turns_is_stopped() -> None:
    env = guessing()
    env.reset(seed=1)
    miss = str((env.game.number + 1) % 10)
    ends = [say(env, miss) for _ in range(3)]
    assert 0 < ends[-1][1] < 1 and ends[-1][2] and not ends[-1][4]["is_success"]
    env = guessing(max_turns=2)
    env.reset(seed=1)
    _, reward, terminated, _, info = [say(env, miss) for _ in range(2)][-1]
    assert (reward, terminated, info["stopped"], info["is_success"]) == (0.0, True, "max_turns", False)


def test_a_transcript_that_is_too_long_ends_the_episode_or_loses_its_beginning() -> None:
    env = guessing(max_prompt_length=60)
    observation, _ = env.reset(seed=1)
    _, _, terminated, _, info = say(env, str((env.game.number + 1) % 10))
    assert terminated and info["stopped"] == "too_long"
    env = guessing(max_prompt_length=60, long_transcripts="cut")
    env.reset(seed=1)
    observation, _, terminated, _, _ = say(env, str((env.game.number + 1) % 10))
    assert not terminated and observation["input_ids"].tolist() == env.ids[-60:]
    with pytest.raises(ValueError, match="begins with 35 tokens, max_prompt_length=10: raise it"):
        guessing(max_prompt_length=10).reset(seed=1)


def test_games_beside_each_other_do_not_change_one_anothers_draws_nor_the_trainers() -> None:
    def played(env: TextGameEnv, between: Callable[[], object]) -> list[Any]:
        env.reset(seed=5)
        seen = []
        for _ in range(3):
            between()
            seen.append((env.ids, env.random.inside[0], say(env, "x" if len(env.responses) == 2 else "0")[1:]))
        return seen

    with pytest.warns(UserWarning, match="HigherLower failed"):
        alone = played(guessing(), lambda: None)
    other = guessing()
    random.seed(7)
    np.random.seed(7)
    before = random.getstate(), pickle.dumps(np.random.get_state())
    with pytest.warns(UserWarning, match="HigherLower failed"):
        beside = played(guessing(), lambda: other.reset(seed=3))
    assert beside == alone
    assert (random.getstate(), pickle.dumps(np.random.get_state())) == before


def test_a_seed_gives_the_same_games_and_every_episode_is_another_one() -> None:
    def openings(env: TextGameEnv, seed: int | None) -> list[str]:
        env.reset(seed=seed)
        texts = [chats.text_of(env)]
        for _ in range(3):
            env.reset()
            texts.append(chats.text_of(env))
        return texts

    env = guessing()
    first = openings(env, 4)
    assert len(set(first)) == 4 and openings(env, 4) == openings(guessing(), 4) == first != openings(env, 5)


def test_a_game_that_fails_on_a_move_ends_counted_and_warned_of_once() -> None:
    env = guessing()
    env.reset(seed=0)
    with pytest.warns(UserWarning, match="HigherLower failed.*invalid literal.*ends with the score 0") as caught:
        _, reward, terminated, _, info = say(env, "x")
        env.reset()
        say(env, "y")
    assert (reward, terminated, info["is_success"]) == (0.0, True, False) and "invalid literal" in info["failed"]
    assert len(caught) == 1 and env.failures.counts == {"HigherLower": 2}


def test_a_game_that_fails_is_lost_and_no_success_whatever_its_score() -> None:
    class Broken(Race):
        def step(self, action: str) -> tuple[bool, dict[str, Any]]:
            raise OSError("no board")

    for game, options, score in ((Broken, {"opponents": str}, -1.0), (HigherLower, {"failed_score": 2.0}, 2.0)):
        env = guessing(game, seat=0, **options)
        env.reset(seed=0)
        with pytest.warns(UserWarning, match=f"ends with the score {score:g}"):
            _, reward, terminated, _, info = say(env, "x")
        assert (reward, terminated, info["is_success"]) == (score, True, False)


def ended_with(reward: Any, reason: Any) -> type[HigherLower]:
    class Ended(HigherLower):
        def close(self) -> Any:
            return {0: reward}, {0: {"reason": reason}}

    return Ended


@pytest.mark.parametrize(("reward", "reason", "number"), [
    ("0.25", "over", 0.25), ("no such word", 0.5, 0.5), ("no such word", "Invalid Move: 0.5", 0.5), (True, "", 1.0),
])  # fmt: skip
def test_rewards_that_are_written_as_text_are_read(reward: Any, reason: Any, number: float) -> None:
    env = guessing(ended_with(reward, reason))
    env.reset(seed=0)
    assert [say(env, str(env.game.number))[1] for _ in range(1)] == [number]


@pytest.mark.parametrize("reward", ["good", None, float("nan")])
def test_a_reward_that_is_no_number_is_refused_by_name(reward: Any) -> None:
    env = guessing(ended_with(reward, "over"))
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"reward .*(None|'good'|nan)"):
        say(env, str(env.game.number))


def test_opponents_play_the_other_seat_from_what_they_are_shown() -> None:
    shown: list[str] = []

    def opponent(text: str) -> str:
        shown.append(text)
        return "2"

    env = guessing(Race, opponents=opponent)
    env.reset(seed=0)
    assert "seat 0" in chats.text_of(env)
    _, reward, terminated, _, _ = say(env, "1")
    assert (shown, reward, terminated) == (["seat 1\n[A] 1"], 0.0, False)
    assert chats.text_of(env).count("[B] 2") == 1 and "[A]" not in chats.text_of(env)  # its own move is in ids
    _, reward, terminated, _, info = say(env, "2")
    assert (reward, terminated, info["is_success"]) == (1.0, True, True)
    env = guessing(Race, opponents=[opponent], seat=1)
    env.reset(seed=0)
    assert "[A] 2" in chats.text_of(env)
    _, reward, terminated, _, info = say(env, "1")
    assert (reward, terminated, info["reason"]) == (-1.0, True, "total 5 for seat 1")  # the opponent reaches it
    env = guessing(Race, opponents=opponent, seat=None)
    assert {env.seat for seed in range(8) if env.reset(seed=seed)} == {0, 1}
    for seat, said in enumerate((["9", "0", "1"], ["0", "9", "1"], ["0", "1", "9"])):
        env = guessing(Table, num_players=3, opponents=[lambda _: "0", lambda _: "1"], seat=seat)
        env.reset(seed=0)
        say(env, "9")
        assert say(env, "9")[1:3] == (9.0, True) and env.game.said == said * 2  # by the order of the seats


def test_without_history_each_move_is_answered_from_the_games_own_text() -> None:
    class Board(HigherLower):
        def get_observation(self) -> Any:
            return 0, f"turn {self.turn}"

    env = guessing(Board, history=False)
    env.reset(seed=0)
    say(env, str((env.game.number + 1) % 10))
    assert chats.text_of(env) == "<|start|>user\nturn 1<|end|>\n<|start|>assistant\n"


REFUSED: dict[str, dict[str, Any]] = {
    "opponents=.* for num_players=3: one for each of the 2 other seats": {"opponents": [str], "num_players": 3},
    "seat=2: a seat of 2 players": {"seat": 2, "opponents": [str]},
    "long_transcripts='stop'": {"long_transcripts": "stop"},
    "max_turn'.*max_turns": {"max_turn": 3},
}


@pytest.mark.parametrize("message", REFUSED)
def test_wrong_arguments_are_named(message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        guessing(Race, **REFUSED[message])


def test_a_game_for_another_number_of_players_says_so() -> None:
    with pytest.raises(ValueError, match="Race does not begin with num_players=1"):
        guessing(Race).reset(seed=0)


@pytest.mark.parametrize("name", ["GuessTheNumber-v0", "FrozenLake-v0-train", "Mastermind-v0-raw"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the package's imports
def test_games_of_textarena_by_name(name: str) -> None:
    pytest.importorskip("textarena")
    env = guessing(name, max_prompt_length=4000, history=not name.endswith("-train"))
    env.reset(seed=2)
    first = chats.text_of(env)
    for _ in range(2):
        _, reward, terminated, _, info = say(env, "ab")  # the second invalid move ends these games
    assert terminated and info["invalid_move"] and isinstance(reward, float) and not info["is_success"]
    env.reset(seed=2)
    assert chats.text_of(env) == first


def test_a_name_that_textarena_does_not_have_is_answered_with_similar_ones() -> None:
    pytest.importorskip("textarena")
    with pytest.raises(ValueError, match=r"is none of TextArena's .* games; similar: .*GuessTheNumber-v0"):
        guessing("GuessTheNumber-v9")
