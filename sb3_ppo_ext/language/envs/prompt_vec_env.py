"""The vector environment of prompts: a step takes many responses at once."""

from __future__ import annotations

import time
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvStepReturn

from sb3_ppo_ext.language.envs.prompt_env import Observation, PromptEnvironment, PromptTask, RewardSource
from sb3_ppo_ext.language.envs.prompts import PromptOrder
from sb3_ppo_ext.language.inputs import at_least
from sb3_ppo_ext.unknown_arguments import accepts_only


class PromptVecEnv(PromptEnvironment, VecEnv):
    """Batches of prompts; a step takes a response to each, scores them together, and gives the next prompts.

    Prompts are taken in random order, each once before any is taken again. The reward is the raw score: what the
    algorithm subtracts (the KL to the reference) does not show in ``rollout/ep_rew_mean``. Each info has ``prompt``,
    ``response``, ``cut_off`` (the response did not end by itself) and ``episode`` (``l`` counts tokens).

    Prompts, columns and scores come in any list, array, tensor, Series or generator, and belong together by position.
    With ``success`` each info has ``is_success`` (``rollout/success_rate`` in the log); with several reward functions,
    ``scores`` by function (their means are ``lm/reward/...`` in the log).

    :param prompts: strings, lists of chat messages (the tokenizer's template is applied), or lists of token ids; or a
        table of them with their columns: a ``datasets.Dataset``, a DataFrame, a list of rows, or the path of a JSONL
        file
    :param reward_fn: ``reward_fn(prompts, responses, **columns)`` gives one number per response; prompts and responses
        are texts without special tokens, or lists of ids where there is no tokenizer; it gets the columns that it has
        parameters for, among them ``cut_off``, True for a response that did not end by itself. Or a classifier of
        transformers (see ``ClassifierReward``). A list or a mapping by name of several is summed; None from one of
        them adds nothing: it does not apply to that response
    :param tokenizer: of transformers; None where prompts are ids, which takes ``vocab_size`` and ``eos_token_id``
    :param n_envs: prompts per step
    :param max_new_tokens: the longest response
    :param max_prompt_length: None takes the longest prompt's
    :param long_prompts: what is done with longer ones: "refuse", or "cut" their beginning (``n_cut`` counts them)
    :param ended_prompts: what is done with those that end with an end-of-text token of their own, after which there is
        nothing to continue: "refuse", "cut" that token off, or "keep" it, for a model whose prompts end so. What the
        tokenizer puts after every text is left off in any case
    :param prompt_column: the column of a table that has the prompts
    :param columns: what ``reward_fn`` is to know of each prompt besides its text: name -> one value per prompt
    :param tools: of all chats, for the template; a column "tools" has those of each. Entries of messages and tools that
        are None, as Arrow fills them in, are left out
    :param reward_weights: of several reward functions, in their order or by name; None: 1 each
    :param success: which responses solve their prompts: those of at least this score, or of at least the score that a
        mapping has for each reward function it names, or those for which a function ``(prompts, responses, **columns)``
        returns True; None: there is no such rule
    :param eos_token_id: what ends a response, one id or several; None takes the tokenizer's. A model with a list of
        them in its ``generation_config`` needs that list here
    :param pad_token_id: what fills the slots after that; None takes the tokenizer's, or the first ``eos_token_id``
    :param group_size: how many responses each prompt has in a step, in neighbouring environments; they share a group
        id, in ``group_ids`` [N] and in their infos as ``group_id``
    :param shuffle: False takes the prompts as they come
    """

    rows_of_state = ("rows", "group_ids", "seeds")  # of its state, in a checkpoint that other processes go on with

    @accepts_only(PromptTask.__init__)
    def __init__(
        self,
        prompts: Any,
        reward_fn: RewardSource,
        tokenizer: Any = None,
        *,
        n_envs: int,
        max_new_tokens: int,
        group_size: int = 1,
        shuffle: bool = True,
        **options: Any,
    ) -> None:
        task = PromptTask(prompts, reward_fn, tokenizer, max_new_tokens=max_new_tokens, **options)
        self._begin(task, n_envs, group_size=group_size, shuffle=shuffle)

    @classmethod
    def of_task(cls, task: PromptTask, n_envs: int, *, group_size: int = 1, shuffle: bool = True) -> PromptVecEnv:
        """The environment of a task that is there already, that of a ``PromptEnv`` for example."""
        env = cls.__new__(cls)
        env._begin(task, n_envs, group_size=group_size, shuffle=shuffle)
        return env

    def _begin(self, task: PromptTask, n_envs: int, *, group_size: int = 1, shuffle: bool) -> None:
        self.task = task
        self.render_mode = None
        self.order = PromptOrder(len(self.task.source.ids), shuffle=shuffle)
        n_envs = at_least(1, "n_envs", n_envs)
        self.group_size = group_size_of(group_size, n_envs)
        self.first, self.n_envs_of_all = 0, n_envs  # in all processes: that of index 0 here, and how many there are
        self.rows = np.zeros(n_envs, np.int64)
        self.group_ids = np.zeros(n_envs, np.int64)  # different for every draw of a prompt
        self.n_groups = 0  # begun so far
        self.successes = np.full(n_envs, -1, np.int8)  # of the last step: 1 or 0; -1 without a rule of success
        self.started = time.time()
        super().__init__(n_envs, self.task.observation_space, self.task.action_space)

    def held_out(
        self, prompts: Any, columns: Mapping[str, Iterable[Any]] | None = None, n_envs: int | None = None
    ) -> PromptVecEnv:
        """The environment of other prompts, in their order, that is otherwise as this one: for ``EvalCallback``.

        It has this one's ``max_prompt_length``, without which a policy could not read its observations. ``n_envs=None``
        takes this one's.
        """
        n_envs = self.num_envs if n_envs is None else n_envs
        return PromptVecEnv.of_task(self.task.with_prompts(prompts, columns), n_envs, shuffle=False)

    def reset(self) -> Observation:
        """The next prompts."""
        if self._seeds[0] is not None:
            self.order.seed(self._seeds[0] - self.first)
        self._reset_seeds()
        return self._next()

    def _next(self) -> Observation:
        """The next prompts; those of other processes are taken from the order as well."""
        count = self.n_envs_of_all // self.group_size
        here = slice(self.first, self.first + self.num_envs)
        self.rows = self.order.take(count).repeat(self.group_size)[here]
        self.group_ids = np.arange(self.n_groups, self.n_groups + count).repeat(self.group_size)[here]
        self.n_groups += count
        return self.task.observe(self.rows)

    def step_async(self, actions: np.ndarray) -> None:
        """Keeps the responses [N, L] for ``step_wait``."""
        self.responses = np.asarray(actions)

    def step_wait(self) -> VecEnvStepReturn:
        """Scores them; every response ends its episode."""
        scores, infos = self.task.score(self.rows, self.responses)
        before = self.task.observe(self.rows)
        for index, info in enumerate(infos):
            info["episode"]["t"] = round(time.time() - self.started, 6)
            # Not a time limit: a response that is cut off at max_new_tokens has its score, and nothing follows.
            info["TimeLimit.truncated"] = False
            info["group_id"] = int(self.group_ids[index])
            self.successes[index] = info.get("is_success", -1)
            info["terminal_observation"] = {name: array[index] for name, array in before.items()}
        return self._next(), scores, np.ones(self.num_envs, bool), infos

    def order_state(self) -> dict[str, Any]:
        """What the processes of a training have alike: the prompts, their order, and how many groups have begun."""
        source = self.task.source
        prompts = f"{len(source.ids)} with the checksum {zlib.crc32(source.ids.tobytes()):x}"
        return {"prompts": prompts, "order": self.order.state_dict(), "n_groups": self.n_groups}

    def take_share(self, first: int, n_envs: int, state: Mapping[str, Any]) -> None:
        """Takes the place from ``first`` on among ``n_envs`` environments of all processes with one ``state``."""
        self.first, self.n_envs_of_all = first, n_envs
        self.order.load_state_dict(state["order"])
        self.n_groups = state["n_groups"]

    def close(self) -> None:
        """Does nothing: the environment holds no resources."""

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """The attribute, once per index: all environments are one object."""
        return [getattr(self, attr_name) for _ in self._get_indices(indices)]

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Sets the attribute, for all environments."""
        setattr(self, attr_name, value)

    def env_method(self, method_name: str, *args: Any, indices: VecEnvIndices = None, **kwargs: Any) -> list[Any]:
        """Calls the method once; its result, once per index."""
        result = getattr(self, method_name)(*args, **kwargs)
        return [result for _ in self._get_indices(indices)]

    def env_is_wrapped(self, wrapper_class: type[gym.Wrapper], indices: VecEnvIndices = None) -> list[bool]:
        """True for Monitor: the infos have its episode statistics."""
        return [issubclass(Monitor, wrapper_class) for _ in self._get_indices(indices)]

    def state_dict(self) -> dict[str, Any]:
        """The place among the prompts, and the seeds that the next reset takes."""
        elapsed = time.time() - self.started
        groups = {"group_ids": self.group_ids.tolist(), "n_groups": self.n_groups}
        return {**super().state_dict(), **groups, "seeds": list(self._seeds), "elapsed": elapsed}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues from ``state_dict()``; ``PPOX.load(..., force_reset=False)`` keeps a model from resetting it."""
        super().load_state_dict(state)
        self.group_ids, self.n_groups = np.array(state["group_ids"], np.int64), state["n_groups"]
        self._seeds = list(state["seeds"])  # a model that is loaded has seeded the environment once more
        self.started = time.time() - state["elapsed"]


def group_size_of(group_size: int, n_envs: int) -> int:
    """``group_size`` as an int; ``ValueError`` where ``n_envs`` environments are not whole groups."""
    group_size = at_least(1, "group_size", group_size)
    if n_envs % group_size:
        whole = -(-n_envs // group_size) * group_size
        raise ValueError(
            f"n_envs={n_envs} is no multiple of group_size={group_size}: a step takes whole groups; pass n_envs={whole}"
        )
    return group_size


def group_ids_of(env: VecEnv | None) -> np.ndarray | None:
    """The group [N] of each prompt that is being answered; None where the environments have no groups.

    It is the attribute ``group_ids`` of a vector environment, or ``group_id`` of each of its environments.
    """
    if env is None:
        return None
    if env.has_attr("group_ids"):
        return np.asarray(env.get_attr("group_ids", 0)[0])
    return np.array(env.get_attr("group_id"), np.int64) if env.has_attr("group_id") else None


def successes_of(env: VecEnv) -> np.ndarray | None:
    """Whether each response [N] of the last step was a success, 1 or 0, or -1; None for environments without a rule."""
    return np.array(env.get_attr("successes", 0)[0]) if env.has_attr("successes") else None


def take_scoring_seconds(env: VecEnv | None) -> float | None:
    """The seconds that the reward functions took since the last call; None for environments without such a count."""
    if env is None or not env.has_attr("take_scoring_seconds"):
        return None
    each = env.env_method("take_scoring_seconds")
    # A PromptVecEnv counts all of its rows together.
    return float(each[0] if isinstance(env.unwrapped, PromptVecEnv) else sum(each))


def take_reward_sums(env: VecEnv | None) -> dict[str, np.ndarray]:
    """The sum of the scores since the last call and their number, [2], for each of several reward functions."""
    if env is None or not env.has_attr("take_reward_sums"):
        return {}
    each = env.env_method("take_reward_sums")
    return _added_up(each[:1] if isinstance(env.unwrapped, PromptVecEnv) else each)


def reward_means(sums: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The mean score by each reward function over the responses it applies to, from the sums of several processes."""
    return {name: float(total / count) for name, (total, count) in _added_up(sums).items() if count}


def _added_up(sums: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    names = dict.fromkeys(name for entry in sums for name in entry)
    return {name: np.sum([entry[name] for entry in sums if name in entry], axis=0) for name in names}
