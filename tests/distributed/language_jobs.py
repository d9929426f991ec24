"""Trainings of language models that one process and several are compared on, as those of ``jobs``."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from sb3_ppo_ext import PPOX, Checkpoints
from sb3_ppo_ext.distributed import gradient_sums, join_processes
from sb3_ppo_ext.distributed.gradient_sums import GradientSums
from sb3_ppo_ext.language import ConversationEnv, LanguageModelPolicy, Turn, conversation_vec_env
from tests.distributed.jobs import Result, result_of
from tests.distributed.resumed import StopAt, Stopped
from tests.language import chats, setups, tiny
from tests.language.cases import TOKEN_CASES
from tests.traced_graphs import run_as_traced

ENVS = 8  # of all processes
ROLLOUT = 2 * ENVS  # timesteps
COMPARED = (
    *("LoRA, branch, k2, micro-batches", "separate critic, Llama, mean by response", "reference in the reward"),
    "separate critic, LoRA, mean by length, micro-batches, controllers",
    "critic corrected by the group, dynamic sampling, overlong penalty",
    "imitation of right responses, mean by response, micro-batches",
    *("critic epochs, target_kl, micro-batches", "reference in both, temperature, warm-up"),
    "scaled by the batch, whitened over the rollout",
    "shared prompts, LoRA, micro-batches",
)
MEANS = ("token", "response", "length")


def often_ending() -> Any:
    """A model of one block whose responses end at each token with a probability of a third."""
    built: Any = tiny.never_ending(0, ending=2.5)
    built.transformer.h = built.transformer.h[:1]
    built.config.n_layer = 1
    return built


def case(name: str, **more: Any) -> PPOX:
    """A case of ``tests.language.cases`` over the environments of this process, its responses of many lengths."""
    settings = {**TOKEN_CASES[name], "shards": 2, "seed": 3, "compile": False, **more}
    kwargs = {"model": often_ending, **settings.pop("policy_kwargs", {})}
    environment = setups.env(ENVS // join_processes().count, group_size=settings.pop("group_size", 1))
    torch.manual_seed(0)  # of the parameters that an adapter draws
    return setups.ppox(environment=environment, policy_kwargs=kwargs, **settings)


def trained(model: PPOX, before_update: Callable[[PPOX], None] = lambda model: None) -> Result:
    """The model after two rollouts, with the prompts and responses of each."""
    torch.set_num_threads(1)
    seen = []
    inherited = model.train

    def train() -> None:
        before_update(model)
        buffer: Any = model.rollout_buffer
        seen.append(np.concatenate((buffer.observations["input_ids"], buffer.actions), axis=-1))
        inherited()

    model.train = train  # type: ignore[method-assign]
    return {**result_of(model.learn(2 * ROLLOUT)), "observations": seen}


def learned(name: str, **more: Any) -> Result:
    return trained(case(name, **more))


def by_graphs(name: str) -> Result:
    """A case through the graphs of a CPU, as they were traced."""
    with pytest.MonkeyPatch.context() as patch:
        run_as_traced(patch)
        return learned(name, compile=True)


def in_small_buckets() -> Result:
    """Many sums for each gradient, which begin while it is computed; one process makes none."""
    processes, early = join_processes(), []

    class Watched(GradientSums):
        @contextmanager
        def begun_early(self) -> Iterator[None]:
            with super().begun_early():
                yield
                early.append(len(self._begun))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gradient_sums, "BUCKET", 2**10)
        patch.setattr("sb3_ppo_ext.update.eager.GradientSums", Watched)
        result = learned("separate critic, LoRA, mean by length, micro-batches, controllers")
    return {**result, "log": {**result["log"], "sums begin early": float(processes.count == 1 or min(early) > 1)}}


def without_tokens(loss_mean: str) -> Result:
    """The second shard has no token, as if its responses were empty."""

    def empty(model: PPOX) -> None:
        buffer: Any = model.rollout_buffer
        if 1 in vars(model)["_shards"].own:
            buffer.masks[:, -ENVS // 2 :] = False

    settings = {"loss_mean": loss_mean, "micro_batch_tokens": 20}
    return trained(case("AdamW", n_epochs=1, rollout_buffer_kwargs=settings), empty)


class Counting(ConversationEnv):
    """Two turns; the number that an episode begins with depends on its seed, and is a point for each of its digits."""

    def begin(self, seed: int) -> str:
        self.number = str(seed % 10_000)
        return self.number

    def answer(self, response: str) -> Turn:
        return Turn("more", reward=sum(map(response.count, self.number)), done=len(self.responses) == 2)


def conversations() -> Result:
    """Groups of four that talk about the same number; the environments are not seeded by the model."""
    processes = join_processes()
    make = partial(Counting, chats.tokenizer(), max_new_tokens=4, max_prompt_length=80)
    env = conversation_vec_env(make, ENVS // processes.count, group_size=4)
    settings: dict[str, Any] = {"n_steps": 2, "batch_size": 8, "n_epochs": 1, "gamma": 1.0, "seed": 0, "device": "cpu"}
    buffer = {"group_advantage": "grpo", "loss_mean": "response"}
    model = PPOX(
        *(LanguageModelPolicy, env),
        policy_kwargs={"model": chats.model, "value": "none"},
        rollout_buffer_kwargs=buffer,
        **{**settings, "compile": False, "shards": 2},
    )
    return trained(model)


def stopped_and_resumed() -> Result:
    """A run that is stopped in its third rollout, and goes on from its checkpoint in other objects."""
    name, folder = "reference in the loss", join_processes().objects(tempfile.mkdtemp())[0]
    stop, saved = 2 * ROLLOUT + ENVS, Checkpoints(folder, every=0, keep=1)
    with suppress(Stopped):
        case(name).learn(3 * ROLLOUT, StopAt(True, stop), checkpoint=saved)
    fresh: Any = case(name).env
    model = PPOX.resume(folder, fresh, StopAt(False, stop), device="cpu").learn()
    whole = case(name).learn(3 * ROLLOUT).policy.state_dict()
    equal = all(tensor.equal(whole[name]) for name, tensor in model.policy.state_dict().items())
    result = result_of(model)
    return {**result, "log": {**result["log"], "as if it had not stopped": float(equal)}}


JOBS: dict[str, Callable[[], Result]] = {
    **{f"tokens, {name}": partial(learned, name) for name in COMPARED},
    **{f"shard without tokens, mean by {mean}": partial(without_tokens, mean) for mean in MEANS},
    "tokens in small buckets": in_small_buckets,
    "tokens by graphs": partial(by_graphs, "Dr. GRPO, clip higher, micro-batches"),
    "tokens, stopped and resumed": stopped_and_resumed,
    "conversations": conversations,
}
