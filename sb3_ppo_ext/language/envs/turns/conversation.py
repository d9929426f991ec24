"""The environment of a conversation: each step is a response, and each observation all tokens so far."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import gymnasium as gym
import numpy as np

from sb3_ppo_ext.language.envs.prompt_env import Observation
from sb3_ppo_ext.language.envs.spaces import ATTENTION_MASK, INPUT_IDS, ResponseSpace, prompt_space
from sb3_ppo_ext.language.envs.turns.transcripts import turns_of
from sb3_ppo_ext.language.envs.vocabulary import Vocabulary
from sb3_ppo_ext.language.inputs import at_least, number_of, one_of
from sb3_ppo_ext.language.model.end_tokens import EndTokens

LONG_TRANSCRIPTS = ("end", "cut")


class Turn(NamedTuple):
    """The environment's answer to a response."""

    reply: Any = ""  # a text, or chat messages, that the model reads before its next response
    reward: float = 0.0
    done: bool = False
    success: bool | None = None  # of an episode that is done; None: by ``success_score``
    info: Mapping[str, Any] = MappingProxyType({})
    afresh: bool = False  # the reply is a whole prompt, which takes the place of all before it


class ConversationEnv(gym.Env[Observation, np.ndarray]):
    """An environment of several turns; a game of your own derives from it and has ``begin`` and ``answer``.

    An observation is the transcript: the environment's words by the tokenizer, and the responses as the ids that were
    sampled. Where an episode ends, the info has "is_success", "turns", and "stopped" if it was not over: by "max_turns"
    or, of a transcript beyond ``max_prompt_length``, "too_long". It counts as ended then, not as cut by a time limit.

    :param tokenizer: of transformers; its chat template is the format of the turns where it has one
    :param max_new_tokens: the longest response
    :param max_prompt_length: the longest transcript before a response
    :param max_turns: the most responses of an episode; None: as many as there come
    :param long_transcripts: "end" ends an episode whose transcript is longer, "cut" leaves out its beginning
    :param success_score: an episode whose rewards sum up to this is a success, unless the environment says otherwise
    :param chat: False takes plain text although there is a chat template
    :param system: the system message of the chat
    :param turn_format: of plain text: what stands around a reply, which is {reply}
    :param eos_token_id: what ends a response, one id or several; None takes the tokenizer's
    :param pad_token_id: what fills the slots after that; None takes the tokenizer's
    :param vocab_size: of the model, where it has more tokens than the tokenizer
    """

    # Environments of one group begin each of their episodes from the same seed; ``conversation_vec_env`` sets these.
    index, group_size, n_groups = 0, 1, 1
    beside_others = False  # whether the environments count from one seed; else each has its own
    first = 0  # the place among those of all processes of the one with the index 0

    def __init__(
        self,
        tokenizer: Any,
        *,
        max_new_tokens: int,
        max_prompt_length: int,
        max_turns: int | None = None,
        long_transcripts: str = "end",
        success_score: float = 1.0,
        chat: bool | None = None,
        system: str | None = None,
        turn_format: str = "\n{reply}\n",
        eos_token_id: EndTokens | None = None,
        pad_token_id: int | None = None,
        vocab_size: int | None = None,
    ) -> None:
        self.vocabulary = Vocabulary.of(tokenizer, vocab_size, eos_token_id, pad_token_id)
        self.max_turns = math.inf if max_turns is None else at_least(1, "max_turns", max_turns)
        self.length = at_least(1, "max_prompt_length", max_prompt_length)
        self.long_transcripts = one_of(LONG_TRANSCRIPTS, "long_transcripts", long_transcripts)
        self.success_score = reward_of(success_score, "success_score")
        self.format = turns_of(self.vocabulary, chat=chat, system=system, turn_format=turn_format)
        self.action_space: ResponseSpace = ResponseSpace(
            self.vocabulary.size, max_new_tokens, self.vocabulary.ends, self.vocabulary.pad
        )
        self.observation_space = prompt_space(self.vocabulary.size, self.length)  # type: ignore[assignment]  # a Dict
        self.base_seed = int(np.random.SeedSequence().generate_state(1)[0])
        self.episode = -1

    def begin(self, seed: int) -> Any:
        """Begins an episode that depends on ``seed`` alone; returns its first text, or chat messages."""
        raise NotImplementedError

    def answer(self, response: str) -> Turn:
        """The answer to a response, given as text without special tokens (``self.response`` has its ids)."""
        raise NotImplementedError

    def cut_short(self, reason: str) -> float:
        """The reward of an episode that is stopped by ``max_turns`` or its length, added to that of its last turn."""
        return 0.0

    def replay(self, state: Mapping[str, Any]) -> None:
        """Goes on from ``to_replay()``: begins the episode again and takes the same responses."""
        self.base_seed, self.episode = state["base_seed"], state["episode"]
        if self.episode < 0:
            return
        self.episode -= 1
        self.reset()
        for response in state["responses"]:
            padding = [self.vocabulary.pad] * (self.action_space.max_new_tokens - len(response))
            self.step(np.array([*response, *padding]))

    def to_replay(self) -> dict[str, Any]:
        """The seed, the number of the episode and its responses, of which an episode without other causes is made."""
        responses = self.responses if self.episode >= 0 else []
        return {"base_seed": self.base_seed, "episode": self.episode, "responses": [*responses]}

    @property
    def tools(self) -> list[Any] | None:
        """The tools of this episode, for the template."""
        return None

    @property
    def group_id(self) -> int:
        """The same for the environments of a group in the same episode, and for no others."""
        return (self.group << 32) + max(self.episode, 0)

    @property
    def group(self) -> int:
        """The number of its group among those of all processes."""
        return (self.first + self.index) // self.group_size

    def order_state(self) -> dict[str, Any]:
        """What the processes of a training have alike: the seed from which their environments count."""
        return {"base_seed": self.base_seed, "n_groups": self.n_groups} if self.beside_others else {}

    def take_share(self, first: int, n_envs: int, state: Mapping[str, Any]) -> None:
        """Takes the place from ``first`` on among ``n_envs`` environments of all processes with one ``state``."""
        self.first, self.n_groups = first, n_envs // self.group_size
        self.base_seed = state["base_seed"]

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Begins the next episode; ``seed`` is that of this environment among its neighbours, which count up."""
        if seed is not None:
            self.base_seed, self.episode = seed - self.first - self.index, -1
        self.episode += 1
        drawn = np.random.SeedSequence([self.base_seed % 2**32, self.group, self.episode])
        episode_seed = int(drawn.generate_state(1)[0] >> 1)
        super().reset(seed=episode_seed)
        self.responses: list[list[int]] = []  # of this episode
        self.score = 0.0
        self.ids = self.format.opening(self.begin(episode_seed), self.tools)
        if len(self.ids) > self.length and self.long_transcripts == "end":
            raise ValueError(
                f"an episode begins with {len(self.ids)} tokens, max_prompt_length={self.length}: raise it, or pass "
                'long_transcripts="cut"'
            )
        return self._observation(), {}

    def _observation(self) -> Observation:
        ids = np.full(self.length, self.vocabulary.pad, np.int64)
        end = self.ids[-self.length :]
        ids[self.length - len(end) :] = end
        return {INPUT_IDS: ids, ATTENTION_MASK: (np.arange(self.length) >= self.length - len(end)).astype(np.int8)}

    def step(self, action: np.ndarray) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Takes a response [L]; an episode never ends by ``truncated``."""
        action = np.asarray(action)
        mask = self.action_space.mask_of(action)
        self.response: list[int] = action[mask].tolist()
        self.responses.append(self.response)
        text = self.vocabulary.text_of(self.response)
        prompt = self.vocabulary.text_of(self.ids)
        turn = self.answer(text)
        reward = reward_of(turn.reward, f"the reward of {type(self).__name__}")
        info = {
            "prompt": prompt,
            "response": text,
            "cut_off": bool(self.action_space.cut_off(action, mask)),
            **turn.info,
        }
        self._write(turn)
        stopped = None if turn.done else self._stopped()
        if stopped is not None:
            info["stopped"] = stopped
            reward += reward_of(self.cut_short(stopped), f"the reward of {type(self).__name__}")
        self.score += reward
        done = turn.done or stopped is not None
        if done:
            by_score = self.score >= self.success_score
            info |= {
                "is_success": by_score if turn.success is None else bool(turn.success),
                "turns": len(self.responses),
            }
        return self._observation(), reward, done, False, info

    def _write(self, turn: Turn) -> None:
        """Adds the response and the reply to the transcript."""
        if turn.afresh and not turn.done:
            self.ids = self.format.opening(turn.reply, self.tools)
            return
        self.ids = [*self.ids, *self.response]
        if not turn.done:
            ended = self.response[-1] in self.vocabulary.ends
            self.ids += self.format.between(turn.reply, ended=ended, tools=self.tools)

    def _stopped(self) -> str | None:
        if len(self.responses) >= self.max_turns:
            return "max_turns"
        return "too_long" if len(self.ids) > self.length and self.long_transcripts == "end" else None


def reward_of(value: Any, what: str) -> float:
    """A reward as a finite number; None is 0. ``ValueError`` for text and all else, which calls it ``what``."""
    number = 0.0 if value is None else number_of(value)
    if number is None or not math.isfinite(number):
        raise ValueError(f"{what} is {value!r}: a finite number is needed")
    return number
