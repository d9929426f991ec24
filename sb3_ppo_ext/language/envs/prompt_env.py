"""Environments in which one step is one response: many prompts at once (a VecEnv), or one (a gymnasium environment)."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvStepReturn
from transformers import PreTrainedModel

from sb3_ppo_ext.language.envs.classifier import as_reward_function
from sb3_ppo_ext.language.envs.prompts import PromptOrder, PromptSource, RewardFunction, scores_of
from sb3_ppo_ext.language.envs.spaces import ATTENTION_MASK, INPUT_IDS, ResponseSpace, prompt_space
from sb3_ppo_ext.language.envs.vocabulary import Vocabulary
from sb3_ppo_ext.language.inputs import at_least
from sb3_ppo_ext.language.model.end_tokens import EndTokens
from sb3_ppo_ext.unknown_arguments import named_arguments, refuse_unknown

Observation = dict[str, np.ndarray]


class PromptTask:
    """What both environments share: prompts, a tokenizer, a reward function, and the spaces that follow from them."""

    def __init__(
        self,
        prompts: Iterable[Any],
        reward_fn: RewardFunction | PreTrainedModel,
        tokenizer: Any = None,
        *,
        max_new_tokens: int,
        max_prompt_length: int | None = None,
        long_prompts: str = "refuse",
        ended_prompts: str = "refuse",
        columns: Mapping[str, Iterable[Any]] | None = None,
        vocab_size: int | None = None,
        eos_token_id: EndTokens | None = None,
        pad_token_id: int | None = None,
    ) -> None:
        self.vocabulary = Vocabulary.of(tokenizer, vocab_size, eos_token_id, pad_token_id)
        choices = {"long_prompts": long_prompts, "ended_prompts": ended_prompts}
        self.source = PromptSource(prompts, self.vocabulary, max_prompt_length, columns=columns, **choices)
        self.reward_fn = as_reward_function(reward_fn, reads_text=tokenizer is not None)
        size = self.vocabulary.size
        self.action_space = ResponseSpace(size, max_new_tokens, self.vocabulary.ends, self.vocabulary.pad)
        self.observation_space = prompt_space(size, self.source.length)
        self.scoring_seconds = 0.0  # by reward_fn, since they were last asked for

    def take_scoring_seconds(self) -> float:
        """How long ``reward_fn`` took since this was last asked."""
        seconds, self.scoring_seconds = self.scoring_seconds, 0.0
        return seconds

    def observe(self, rows: np.ndarray) -> Observation:
        """The prompts of these rows."""
        return {INPUT_IDS: self.source.ids[rows], ATTENTION_MASK: self.source.mask[rows]}

    def score(self, rows: np.ndarray, responses: np.ndarray) -> tuple[np.ndarray, list[dict[str, Any]]]:
        """Scores [N] of the responses [N, L] to the prompts of ``rows``, and what the infos say of each."""
        masks = self.action_space.mask_of(responses)
        ids = [response[mask] for response, mask in zip(responses, masks, strict=True)]
        prompts = [self.source.texts[row] for row in rows]
        texts = [self.vocabulary.text_of(response) for response in ids]
        started = time.perf_counter()
        columns = {name: [column[row] for row in rows] for name, column in self.source.columns.items()}
        scores = scores_of(self.reward_fn, prompts, texts, columns)
        self.scoring_seconds += time.perf_counter() - started
        infos: list[dict[str, Any]] = []
        cut_off = self.action_space.cut_off(responses, masks).tolist()
        for prompt, text, cut, mask, score in zip(prompts, texts, cut_off, masks, scores, strict=True):
            episode = {"r": float(score), "l": int(mask.sum())}
            infos.append({"prompt": prompt, "response": text, "cut_off": cut, "episode": episode})
        return scores, infos


class PromptVecEnv(VecEnv):
    """Batches of prompts; a step takes a response to each, scores them together, and gives the next prompts.

    Prompts are taken in random order, each once before any comes twice. The reward is the raw score: what the
    algorithm subtracts (the KL to the reference) does not show in ``rollout/ep_rew_mean``. Each info has ``prompt``,
    ``response``, ``cut_off`` (the response did not end by itself) and ``episode`` (``l`` counts tokens).

    Prompts, columns and scores come in any list, array, tensor, Series or generator, and belong together by position.

    :param prompts: strings, lists of chat messages (the tokenizer's template is applied), or lists of token ids
    :param reward_fn: ``reward_fn(prompts, responses, **columns)`` gives one number per response; prompts and responses
        are texts without special tokens, or lists of ids where there is no tokenizer; or a classifier of transformers
        (see ``ClassifierReward``)
    :param tokenizer: of transformers; None where prompts are ids, which takes ``vocab_size`` and ``eos_token_id``
    :param n_envs: prompts per step
    :param max_new_tokens: the longest response
    :param max_prompt_length: None takes the longest prompt's
    :param long_prompts: what is done with longer ones: "refuse", or "cut" their beginning (``n_cut`` counts them)
    :param ended_prompts: what is done with those that end with an end-of-text token of their own, after which there is
        nothing to go on with: "refuse", "cut" that token off, or "keep" it, for a model whose prompts end so. What the
        tokenizer puts after every text is left off in any case
    :param columns: what ``reward_fn`` is to know of each prompt besides its text: name -> one value per prompt
    :param eos_token_id: what ends a response, one id or several; None takes the tokenizer's. A model with a list of
        them in its ``generation_config`` needs that list here
    :param pad_token_id: what fills the slots after that; None takes the tokenizer's, or the first ``eos_token_id``
    :param shuffle: False takes the prompts as they come
    """

    def __init__(
        self,
        prompts: Iterable[Any],
        reward_fn: RewardFunction | PreTrainedModel,
        tokenizer: Any = None,
        *,
        n_envs: int,
        max_new_tokens: int,
        shuffle: bool = True,
        **options: Any,
    ) -> None:
        refuse_unknown(type(self).__name__, options, named_arguments(PromptVecEnv.__init__, PromptTask.__init__))
        self.task = PromptTask(prompts, reward_fn, tokenizer, max_new_tokens=max_new_tokens, **options)
        self.render_mode = None
        self.order = PromptOrder(len(self.task.source.ids), shuffle=shuffle)
        n_envs = at_least(1, "n_envs", n_envs)
        self.rows = np.zeros(n_envs, np.int64)
        self.started = time.time()
        super().__init__(n_envs, self.task.observation_space, self.task.action_space)

    @property
    def n_cut(self) -> int:
        """How many prompts were longer than ``max_prompt_length``."""
        return self.task.source.n_cut

    def take_scoring_seconds(self) -> float:
        """How long ``reward_fn`` took since this was last asked."""
        return self.task.take_scoring_seconds()

    def reset(self) -> Observation:
        """The next prompts."""
        if self._seeds[0] is not None:
            self.order.seed(self._seeds[0])
        self._reset_seeds()
        return self._next()

    def _next(self) -> Observation:
        self.rows = self.order.take(self.num_envs)
        return self.task.observe(self.rows)

    def step_async(self, actions: np.ndarray) -> None:
        """Takes the responses [N, L]."""
        self.responses = np.asarray(actions)

    def step_wait(self) -> VecEnvStepReturn:
        """Scores them; every response ends its episode."""
        scores, infos = self.task.score(self.rows, self.responses)
        before = self.task.observe(self.rows)
        for index, info in enumerate(infos):
            info["episode"]["t"] = round(time.time() - self.started, 6)
            # Not a time limit: a response that is cut off at max_new_tokens has its score, and nothing follows.
            info["TimeLimit.truncated"] = False
            info["terminal_observation"] = {name: array[index] for name, array in before.items()}
        return self._next(), scores, np.ones(self.num_envs, bool), infos

    def close(self) -> None:
        """Nothing is held."""

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """The attribute, once per environment asked for: they are one object."""
        return [getattr(self, attr_name) for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Sets it for all of them."""
        setattr(self, attr_name, value)

    def env_method(self, method_name: str, *args: Any, indices: VecEnvIndices = None, **kwargs: Any) -> list[Any]:
        """Calls it once, and gives the result once per environment asked for."""
        result = getattr(self, method_name)(*args, **kwargs)
        return [result for _ in self._get_indices(indices)]

    def env_is_wrapped(self, wrapper_class: type[gym.Wrapper], indices: VecEnvIndices = None) -> list[bool]:
        """True for Monitor, whose episode statistics the infos have."""
        return [issubclass(Monitor, wrapper_class) for _ in self._get_indices(indices)]

    def state_dict(self) -> dict[str, Any]:
        """Where in the prompts it is; with the model's file, what is needed to go on as if never stopped."""
        return {"rows": self.rows.copy(), "order": self.order.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from there; pass ``force_reset=False`` to ``PPOX.load`` then."""
        self.rows = np.array(state["rows"])
        self.order.load_state_dict(state["order"])


class PromptEnv(gym.Env[Observation, np.ndarray]):
    """One prompt at a time, for ``gym.make``, the zoo and whatever takes a gymnasium environment.

    The arguments are those of ``PromptVecEnv`` but ``n_envs``.
    """

    def __init__(
        self,
        prompts: Iterable[Any],
        reward_fn: RewardFunction | PreTrainedModel,
        tokenizer: Any = None,
        *,
        max_new_tokens: int,
        shuffle: bool = True,
        **options: Any,
    ) -> None:
        refuse_unknown(type(self).__name__, options, named_arguments(PromptEnv.__init__, PromptTask.__init__))
        self.task = PromptTask(prompts, reward_fn, tokenizer, max_new_tokens=max_new_tokens, **options)
        self.order = PromptOrder(len(self.task.source.ids), shuffle=shuffle)
        self.observation_space = self.task.observation_space  # type: ignore[assignment]  # a Dict of arrays
        self.action_space = self.task.action_space

    @property
    def n_cut(self) -> int:
        """How many prompts were longer than ``max_prompt_length``."""
        return self.task.source.n_cut

    def take_scoring_seconds(self) -> float:
        """How long ``reward_fn`` took since this was last asked."""
        return self.task.take_scoring_seconds()

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """The next prompt."""
        super().reset(seed=seed)
        if seed is not None:
            self.order.seed(seed)
        self.row = self.order.take(1)
        return self._observation(), {}

    def _observation(self) -> Observation:
        return {name: array[0] for name, array in self.task.observe(self.row).items()}

    def step(self, action: np.ndarray) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Scores the response [L] and ends the episode."""
        scores, infos = self.task.score(self.row, np.asarray(action)[None])
        info = {name: value for name, value in infos[0].items() if name != "episode"}  # Monitor's to write
        return self._observation(), float(scores[0]), True, False, info
