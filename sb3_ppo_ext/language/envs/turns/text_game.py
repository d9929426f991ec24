"""Games of TextArena, or of its interface, as conversations."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sb3_ppo_ext.language.envs.failures import Failures
from sb3_ppo_ext.language.envs.turns.conversation import ConversationEnv, Turn, reward_of
from sb3_ppo_ext.language.envs.turns.random_state import RandomState
from sb3_ppo_ext.language.inputs import at_least, number_of
from sb3_ppo_ext.optional_packages import optional_package
from sb3_ppo_ext.unknown_arguments import accepts_only

Opponent = Callable[[str], str]  # from what the game has told this player since its last move, or in all, to its move

GAME = -1  # the sender of the game's own messages
ACTION = "PLAYER_ACTION"
INVALID = "Invalid Move: "  # before the reason of a game that an invalid move has ended
BEGINNINGS = 100  # that may be over before the first move of the seat


class TextGameEnv(ConversationEnv):
    """A text game in which the model has one seat and opponents have the others.

    Each episode is a new game, which draws from a random state of its own. A game that fails on a move ends with
    ``failed_score``, which is counted in ``failures`` and warned of once.

    :param game: the name of a game of TextArena (extra ``games``), or a function that makes a game of its interface
    :param opponents: a function from the text that a player reads to its move, for all other seats, or one for each;
        ``PolicyOpponent`` plays by a copy of the policy
    :param num_players: None is one, and one more for each opponent
    :param seat: that of the model; None draws it for every episode
    :param history: whether the model reads the game's new messages after its own tokens; False gives it the observation
        that the game writes for each move as a new prompt, which suits the games that end with "-train"
    :param failed_score: None is 0 for one player, and -1, what a loss is, for several
    """

    @accepts_only(ConversationEnv.__init__)
    def __init__(
        self,
        game: str | Callable[[], Any],
        tokenizer: Any,
        *,
        opponents: Opponent | Sequence[Opponent] = (),
        num_players: int | None = None,
        seat: int | None = 0,
        history: bool = True,
        failed_score: float | None = None,
        **options: Any,
    ) -> None:
        super().__init__(tokenizer, **options)
        self.make_game = game if callable(game) else GameOfTextArena(game)
        self.name = game if isinstance(game, str) else getattr(game, "__name__", type(game).__name__)
        listed = [opponents] if callable(opponents) else list(opponents)
        self.players = 1 + len(listed) if num_players is None else at_least(1, "num_players", num_players)
        self.opponents = listed * (self.players - 1) if callable(opponents) else listed
        if len(self.opponents) != self.players - 1:
            raise ValueError(
                f"opponents={opponents!r} for num_players={self.players}: one for each of the {self.players - 1} other "
                "seats is needed, or one function for all of them"
            )
        if seat is not None and at_least(0, "seat", seat) >= self.players:
            raise ValueError(f"seat={seat!r}: a seat of {self.players} players, from 0 on, or None is needed")
        self.fixed_seat, self.history = seat, history
        lost = 0.0 if self.players == 1 else -1.0
        self.failed_score = lost if failed_score is None else reward_of(failed_score, "failed_score")
        self.failures = Failures()

    def state_dict(self) -> dict[str, Any]:
        """What the present game follows from, where opponents depend on the text and on ``random`` alone."""
        return {**self.to_replay(), "failures": dict(self.failures.counts)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Plays the game again up to where ``state_dict()`` was taken."""
        self.replay(state)
        self.failures.counts = dict(state["failures"])

    def begin(self, seed: int) -> str:
        """Makes a game and goes on to the first move of the model's seat."""
        for attempt in range(BEGINNINGS):
            self.random = RandomState((seed + attempt) % 2**31)
            self.seat = int(self.np_random.integers(self.players)) if self.fixed_seat is None else self.fixed_seat
            with self.random:
                self.game = self.make_game()
                try:
                    self.game.reset(num_players=self.players, seed=(seed + attempt) % 2**31)
                except AssertionError as error:
                    raise ValueError(f"{self.name} does not begin with num_players={self.players}: {error}") from error
                text = self._next_text(False)
            if text is not None:
                return text
        raise ValueError(f"{self.name}: {BEGINNINGS} games were over before the first move of seat {self.seat}")

    def answer(self, response: str) -> Turn:
        """Plays the move and those of the opponents."""
        with self.random:
            try:
                done, _ = self.game.step(response)
                text = self._next_text(done)
            except Exception as error:  # whatever a game makes of a move
                self.failures.add(self.name, error, f"the episode ends with the score {self.failed_score:g}")
                return Turn(reward=self.failed_score, done=True, success=False, info={"failed": str(error)})
            if text is not None:
                return Turn(text, afresh=not self.history)
            reward, info = self._outcome()
        return Turn(reward=reward, done=True, info=info)

    def _next_text(self, done: bool) -> str | None:
        """What the model reads before its next move, after the opponents' moves; None where the game is over."""
        while not done:
            seat, text = self._observe()
            if seat == self.seat:
                return text
            opponent = self.opponents[seat - (seat > self.seat)]
            done, _ = self.game.step(opponent(text))
        return None

    def _observe(self) -> tuple[int, str]:
        """The seat to move and what it reads: the new messages, or with ``history=False`` the game's own text."""
        if not self.history:
            seat, observation = self.game.get_observation()
        else:
            seat, observation = unwrapped(self.game).get_observation()
        if isinstance(observation, str):
            return seat, observation
        names = getattr(unwrapped(self.game).state, "role_mapping", {})
        own_move = (seat, ACTION)  # the player has it in its transcript already
        lines = [
            text if sender == GAME else f"[{names.get(sender, f'Player {sender}')}] {text}"
            for sender, text, kind in observation
            if (sender, getattr(kind, "name", kind)) != own_move
        ]
        return seat, "\n".join(lines)

    def _outcome(self) -> tuple[float, dict[str, Any]]:
        """The reward of the model's seat and the game's own info on it; ``ValueError`` where there is no number."""
        rewards, info = self.game.close()
        own = dict((info or {}).get(self.seat, {}))
        reward = rewards[self.seat] if rewards else None
        number = as_number(reward)
        if number is None and isinstance(reward, str):  # some games have reward and reason the other way round
            number = as_number(own.get("reason"))
            own["reason"] = reward
        if number is None:
            raise ValueError(
                f"{self.name} ended with the reward {reward!r} for seat {self.seat}; a number is needed. Wrap the game "
                "and have close() return one"
            )
        return number, {name: own[name] for name in ("reason", "invalid_move") if name in own}


def as_number(value: Any) -> float | None:
    """The number that a reward is, or that is written in it, also after "Invalid Move:"; None where there is none."""
    if not isinstance(value, str):
        return number_of(value)
    try:
        return float(value.removeprefix(INVALID))
    except ValueError:
        return None


class GameOfTextArena:
    """Makes the game of that name; picklable, for environments in processes of their own."""

    def __init__(self, name: str) -> None:
        self.name = name
        textarena = optional_package("textarena", "TextGameEnv of a game's name", '"sb3_ppo_ext[games]"')
        known = importlib.import_module("textarena.envs.registration").ENV_REGISTRY
        if name not in known:
            near = [other for other in known if other.lower().startswith(name.split("-")[0].lower())][:3]
            raise ValueError(f"game={name!r} is none of TextArena's {len(known)} games; similar: {near or 'none'}")
        self.make = textarena.make

    def __call__(self) -> Any:
        """A new game: its observations are not cleared when a game is begun again."""
        try:
            return self.make(self.name)
        except Exception as error:  # missing corpora, keys, packages
            raise ValueError(
                f"the game {self.name!r} cannot be made here ({type(error).__name__}: {error}); some games download "
                "word lists or need a key of a language model"
            ) from error


def unwrapped(game: Any) -> Any:
    """The game under its wrappers, whose observations are lists of messages."""
    while "env" in vars(game):
        game = game.env
    return game
