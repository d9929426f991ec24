"""What of a language model cannot be divided into shards, or among processes, is refused with the remedy."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from sb3_ppo_ext.distributed.likeness import description
from sb3_ppo_ext.distributed.processes import Errors, OneProcess
from sb3_ppo_ext.distributed.shards import Shards
from sb3_ppo_ext.language import ValuePretraining
from sb3_ppo_ext.language.arguments import check_division
from sb3_ppo_ext.language.training.ratio_check import RatioCheck, RatioError
from tests.language import setups


@pytest.mark.parametrize(
    ("buffer", "n_envs", "message"),
    [
        ({"dynamic_sampling": "refill"}, 8, 'dynamic_sampling="refill" with shards=2: .*pass "mask", or shards=None'),
        ({}, 4, "group_size=4 with shards=2 of 2 environments each: .* a multiple of 8 environments"),
    ],
)
def test_groups_that_would_not_fit_a_shard_are_refused(buffer: dict[str, Any], n_envs: int, message: str) -> None:
    settings = {"group_advantage": "rloo", **buffer}
    with pytest.raises(ValueError, match=message):
        setups.ppox(
            environment=setups.env(n_envs, group_size=4),
            policy_kwargs={"value": "none"},
            rollout_buffer_kwargs=settings,
            shards=2,
        )


@pytest.mark.parametrize(
    ("sampler", "message"),
    [
        ("auto", r'sampler="auto": .*pass "float32" or "bfloat16"'),
        ("vllm", r'sampler="vllm" in several processes.*or pass "continuous_batching"'),
        ({"vllm": {"enable_sleep_mode": True}}, r'sampler="vllm" in several processes'),
    ],
)
def test_samplers_that_are_for_one_process_say_so(sampler: Any, message: str) -> None:
    model: Any = SimpleNamespace(
        rollout_buffer_kwargs={}, policy_kwargs={"sampler": sampler}, env=None, _processes=SimpleNamespace(count=2)
    )
    with pytest.raises(ValueError, match=message):
        check_division(model, Shards(2, range(1), 0))
    model._processes.count = 1
    check_division(model, Shards(2, range(2), 0))


def test_values_are_pretrained_by_one_process() -> None:
    callback, model = ValuePretraining(8), setups.ppox()
    callback.init_callback(model)
    vars(model)["_processes"] = SimpleNamespace(count=2)
    with pytest.raises(ValueError, match="ValuePretraining is for one process"):
        callback._on_training_start()


def test_a_wrong_ratio_is_agreed_on() -> None:
    agreed: list[tuple[BaseException | None, Errors]] = []

    class Recorded(OneProcess):
        def agree(self, error: BaseException | None, kinds: Errors = (), **_: Any) -> tuple[bool, int]:
            agreed.append((error, kinds))
            return super().agree(error, kinds)

    model: Any = setups.ppox().learn(16)
    batch = next(iter(model._family.rollout(model._run()).minibatches(4)))
    check = RatioCheck(model.policy, Recorded())
    check(batch, 0.0)
    with pytest.raises(RatioError, match=r"differ by up to 0[.]5 nats"):
        check(batch, 0.5)
    assert [(type(error), kinds) for error, kinds in agreed] == [
        (type(None), (RatioError,)),
        (RatioError, (RatioError,)),
    ]


def test_arguments_of_a_policy_are_described_without_being_called() -> None:
    def load(progress: float = 0.0) -> object:
        raise AssertionError("it may load gigabytes")

    targets = {"c", "a", "b"}  # in an order of each process's own
    text = description({"model": load, "lora": {"target_modules": targets}, "dtype": [load]})
    assert text.endswith("load}") and "lora: {target_modules: ['a', 'b', 'c']}" in text
