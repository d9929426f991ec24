"""Games of TextArena's interface, without that package: what the tests of its adapter and of groups play."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any


class HigherLower:
    """One player guesses a number of 0 to 9, in three turns."""

    def reset(self, num_players: int, seed: int | None = None) -> None:
        assert num_players == 1
        random.seed(seed)
        self.number, self.turn = random.randrange(10), 0
        self.messages: list[Any] = [(-1, f"Guess (luck {random.randrange(100)}).", SimpleNamespace(name="PROMPT"))]
        self.rewards: dict[int, Any] | None = None
        self.info: dict[str, Any] = {"reason": "", "invalid_move": False, "turn_count": 0}
        self.state = self  # where TextArena has the names of the players
        self.role_mapping = {0: "You"}

    def get_observation(self) -> tuple[int, list[Any]]:
        observation, self.messages = self.messages, []
        return 0, observation

    def step(self, action: str) -> tuple[bool, dict[str, Any]]:
        self.messages.append((0, action, SimpleNamespace(name="PLAYER_ACTION")))
        self.turn += 1
        guess = int(action)  # fails on text
        random.random()
        if guess == self.number or self.turn == 3:
            self.rewards = {0: 1.0 if guess == self.number else 1 - abs(guess - self.number) / 10}
            self.info["reason"] = "found" if guess == self.number else "over"
            return True, {}
        hint = "higher" if guess < self.number else "lower"
        self.messages.append((-1, hint, SimpleNamespace(name="GAME_MESSAGE")))
        return False, {}

    def close(self) -> Any:
        return self.rewards, {0: self.info}


class Race:
    """Two players add 1 or 2 in turn; reaching 5 wins. A text that is neither loses."""

    def reset(self, num_players: int, seed: int | None = None) -> None:
        assert num_players == 2
        self.total, self.seat = 0, 0
        self.messages: dict[int, list[Any]] = {seat: [(-1, f"seat {seat}", "PROMPT")] for seat in (0, 1)}
        self.rewards: dict[int, float] = {}
        self.state = SimpleNamespace(role_mapping={0: "A", 1: "B"})

    def get_observation(self) -> tuple[int, list[Any]]:
        observation, self.messages[self.seat] = self.messages[self.seat], []
        return self.seat, observation

    def step(self, action: str) -> tuple[bool, dict[str, Any]]:
        for messages in self.messages.values():
            messages.append((self.seat, action, "PLAYER_ACTION"))
        self.total += int(action) if action in ("1", "2") else 0
        if self.total >= 5 or action not in ("1", "2"):
            won = 1.0 if self.total >= 5 else -1.0
            self.rewards = {self.seat: won, 1 - self.seat: -won}
            return True, {}
        self.seat = 1 - self.seat
        return False, {}

    def close(self) -> Any:
        return self.rewards, {seat: {"reason": f"total {self.total} for seat {seat}"} for seat in (0, 1)}


class Table:
    """Three players speak in turn, and the game is over after two rounds. The words are what is won."""

    def reset(self, num_players: int, seed: int | None = None) -> None:
        assert num_players == 3
        self.said: list[str] = []
        self.state = SimpleNamespace(role_mapping={0: "A", 1: "B", 2: "C"})

    def get_observation(self) -> tuple[int, list[Any]]:
        return len(self.said) % 3, [(-1, "go on", "GAME_MESSAGE")]

    def step(self, action: str) -> tuple[bool, dict[str, Any]]:
        self.said.append(action)
        return len(self.said) == 6, {}

    def close(self) -> Any:
        return {seat: float(self.said[seat]) for seat in range(3)}, {}
