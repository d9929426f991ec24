"""Rollouts drawn by another than the trained model: what is trained on, what is corrected, and what is refused."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from sb3_ppo_ext import PPOX
from sb3_ppo_ext.language import Generated, LanguageModelPolicy, Request, SamplerError, SequenceRolloutBuffer
from sb3_ppo_ext.language.engines.engine import CompiledTokenEngine, EagerTokenEngine
from sb3_ppo_ext.language.engines.sampler_actor import SamplerActor
from sb3_ppo_ext.language.model.causal_lm import CausalLM
from sb3_ppo_ext.language.model.generation import generate
from sb3_ppo_ext.language.model.samplers import CopySampler, sampler_of
from sb3_ppo_ext.language.training.micro_batches import MicroBatch
from sb3_ppo_ext.language.training.token_update import EagerGradients
from sb3_ppo_ext.monitoring.diagnostics import TrainingWarning
from sb3_ppo_ext.objective.statistics import Statistics
from sb3_ppo_ext.objective.terms import KnobValues
from tests.language import setups, tiny


class StandIn:
    """A generator over a model of its own, at ``factor`` times the temperature that was requested."""

    factor, lag, with_log_probs = 1.0, 0, True

    def __init__(self) -> None:
        self.model = CausalLM(tiny.model().eval(), vocab_size=tiny.VOCABULARY, temperature=1.0)
        self.versions: list[int] = []

    def update_weights(self, weights: Iterator[tuple[str, Tensor]], version: int) -> None:
        self.versions.append(version)
        self.model.plain.load_state_dict(dict(weights))

    def generate(self, prompts: list[list[int]], request: Request) -> Generated:
        self.model.temperature = request.temperature * self.factor
        token_ids, log_probs = [], []
        for prompt in prompts:
            found = generate(
                self.model, torch.tensor([prompt]), torch.ones(1, len(prompt)), max_new_tokens=request.max_new_tokens,
                eos_token_id=request.end_tokens, pad_token_id=request.pad_token_id,
            )  # fmt: skip
            token_ids.append(found.token[found.mask].tolist())
            log_probs.append(found.log_prob[found.mask].tolist())
        return Generated(token_ids, log_probs if self.with_log_probs else None, self.versions[-1] - self.lag)


class Hotter(StandIn):
    factor = 1.5


class Behind(StandIn):
    lag = 1


class Silent(StandIn):
    with_log_probs = False


def model_with(sampler: Any, **options: Any) -> PPOX:
    kwargs = {"sampler": sampler, "temperature": 0.7, **options.pop("policy_kwargs", {})}
    return setups.ppox(policy_kwargs=kwargs, **options)


def buffer_of(model: PPOX) -> SequenceRolloutBuffer:
    assert isinstance(model.rollout_buffer, SequenceRolloutBuffer)
    return model.rollout_buffer


def own_log_probs(model: PPOX, learning_rate: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """The buffer's log-probabilities and values, and those of the policy, which has not moved."""
    policy, buffer = model.policy, buffer_of(model)
    assert isinstance(policy, LanguageModelPolicy)
    observation = {name: buffer.flat(array) for name, array in buffer.observations.items()}
    tokens = policy.tokens(observation, buffer.flat(buffer.actions), buffer.flat(buffer.masks))
    with torch.no_grad():
        log_prob, _, value = policy.evaluate_tokens(tokens, entropy_grad=False)
    shape = buffer.masks.shape
    return log_prob.numpy().reshape(shape), value.numpy().reshape(shape)


@pytest.mark.parametrize("value", ["shared", "separate", "none"])
@pytest.mark.parametrize("sampler", ["float32", "bfloat16", Hotter])
def test_trained_on_are_the_log_probabilities_and_values_of_the_policy(sampler: Any, value: str) -> None:
    options: dict[str, Any] = {"lora": {"r": 2, "init_lora_weights": False}, "value": value}
    if value == "none":
        settings = {"rollout_buffer_kwargs": {"group_advantage": "rloo"}, "environment": setups.env(group_size=4)}
    else:
        settings = {}
    model = model_with(sampler, learning_rate=0.0, n_epochs=1, policy_kwargs=options, **settings)
    model.learn(16)
    log_prob, values = own_log_probs(model)
    np.testing.assert_allclose(buffer_of(model).log_probs, log_prob, atol=2e-4)
    np.testing.assert_allclose(buffer_of(model).values, values, atol=2e-4)
    assert (buffer_of(model).sampler_log_probs is None) == (sampler == "float32")


def test_the_distance_of_the_sampler_is_logged_apart_from_the_ratio() -> None:
    near, far = model_with(StandIn), model_with(Hotter)
    for model in (near, far):
        model.learn(16)
        log = model.logger.name_to_value
        assert log["sampler/kl"] == pytest.approx(0, abs=1e-4) if model is near else log["sampler/kl"] > 0.01
        assert log["train/ratio_max"] < 3.0 and log["time/rescoring_tokens_per_second"] > 0
    assert near.logger.name_to_value["sampler/effective_fraction"] == pytest.approx(1, abs=1e-4)
    assert far.logger.name_to_value["sampler/effective_fraction"] < 0.99


def test_the_policys_loss_is_weighed_by_policy_over_sampler(monkeypatch: pytest.MonkeyPatch) -> None:
    """The advantage of a token, to which its loss is proportional, is that of GAE times the token's weight."""
    settings: dict[str, Any] = {"normalize_advantage": False, "n_epochs": 1, "batch_size": 16, "learning_rate": 0.0}
    buffer_settings = {"importance_bound": 1.5, "positive_nll_coef": 0.5, "success_score": 2.0}
    model = model_with(Hotter, rollout_buffer_kwargs=buffer_settings, **settings)
    trained: list[Tensor] = []
    imitated: list[Tensor] = []
    add = EagerGradients.add

    def recorded(gradients: EagerGradients, micro_batch: MicroBatch, knobs: KnobValues) -> Statistics:
        rows = micro_batch.minibatch
        assert rows.mask is not None and rows.nll_weight is not None
        trained.append(rows.advantage[rows.mask > 0])
        imitated.append(rows.nll_weight[rows.mask > 0])
        return add(gradients, micro_batch, knobs)

    monkeypatch.setattr(EagerGradients, "add", recorded)
    model.learn(16)
    buffer = buffer_of(model)
    assert buffer.sampler_log_probs is not None
    ratio = np.exp(buffer.log_probs - buffer.sampler_log_probs)[buffer.masks]
    weights = buffer.importance_weights()
    assert weights is not None and (weights[~buffer.masks] == 1).all()
    np.testing.assert_allclose(weights[buffer.masks], np.minimum(ratio, 1.5), rtol=1e-4)
    assert (ratio > 1.5).any() and (ratio < 0.9).any()
    expected = np.minimum(ratio, 1.5) * buffer.advantages[buffer.masks]
    np.testing.assert_allclose(np.sort(torch.cat(trained)), np.sort(expected), rtol=1e-4)
    # The mean over the right responses' tokens is 0.5 n / n_right times the mean over all n tokens.
    right = np.broadcast_to(buffer.right()[..., None], buffer.masks.shape)[buffer.masks]
    assert 0 < right.sum() < right.size
    expected = 0.5 * right * right.size / right.sum() * np.minimum(ratio, 1.5)
    np.testing.assert_allclose(np.sort(torch.cat(imitated)), np.sort(expected), rtol=1e-4)


def test_the_weights_reach_a_generator_whenever_they_change() -> None:
    generators: list[StandIn] = []

    def make() -> StandIn:
        generators.append(StandIn())
        return generators[-1]

    model = model_with(make)
    model.learn(48)  # three rollouts, each of two steps
    assert generators[0].versions == [1, 2, 3]


def test_a_response_by_weights_of_another_version_is_an_error() -> None:
    with pytest.raises(SamplerError, match=r"version 0, and the policy's are of version 1: update_weights\(\)"):
        model_with(Behind).learn(16)


def test_without_log_probabilities_nothing_is_corrected_and_one_warning_says_so() -> None:
    model = model_with(Silent)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.learn(32)
    ours = [str(each.message) for each in caught if each.category is TrainingWarning]
    assert sum("returns no log-probabilities" in text for text in ours) == 1
    weights = buffer_of(model).importance_weights()
    assert weights is not None and (weights == 1).all()
    assert "sampler/kl" not in model.logger.name_to_value


@pytest.mark.parametrize(
    ("ids", "reason"),
    [
        ([], "has 0 tokens"),
        ([3] * 7, "has 7 tokens; 1 to 6"),
        ([3, 24, 1], "has the token 24"),
        ([3, 1, 4], "goes on after the end token 1"),
        ([3, 4], "stops after 2 tokens without an end token"),
    ],
)
def test_a_response_that_was_not_drawn_as_requested_is_an_error(ids: list[int], reason: str) -> None:
    class Wrong(StandIn):
        def generate(self, prompts: list[list[int]], request: Request) -> Generated:
            return Generated([ids] * len(prompts), None, self.versions[-1])

    with pytest.raises(SamplerError, match=reason):
        model_with(Wrong).learn(16)


def test_what_is_no_sampler_is_refused() -> None:
    model = CausalLM(tiny.model(), vocab_size=24, temperature=1.0)
    for choice, reason in (("int8", "'auto', 'float32'"), (3, "a function"), (dict, "has returned a dict")):
        with pytest.raises(ValueError, match=reason):
            sampler_of(choice, model)
    half = CausalLM(tiny.model().bfloat16(), vocab_size=24, temperature=1.0)
    with pytest.raises(ValueError, match="a copy of bfloat16 in bfloat16"):
        sampler_of("float32", half)


def test_a_compiled_run_samples_by_its_sampler_too() -> None:
    model = model_with("float32", compile=False)
    run = model._run()
    for engine in (EagerTokenEngine(), CompiledTokenEngine("cpu")):
        assert isinstance(engine.actor(run), SamplerActor)


def test_a_copy_is_not_made_where_it_would_not_be_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sb3_ppo_ext.language.model.packed_layers.seconds_per_pass", lambda *_: 1.0)
    model = model_with("auto")
    model.learn(16)
    assert isinstance(model.policy, LanguageModelPolicy) and isinstance(model.policy.sampler, CopySampler)
    assert model.policy.sampler.copy is None and model.policy.sampler.layout is not None


@pytest.mark.parametrize("sampler", ["float32", StandIn])
def test_a_policy_that_has_sampled_can_be_copied(sampler: Any) -> None:
    model = model_with(sampler)
    model.learn(16)
    copied = copy.deepcopy(model.policy)
    assert isinstance(copied, LanguageModelPolicy) and copied.sampler is not None
    prompt, mask = tiny.ragged_prompts()
    if sampler == "float32":
        assert isinstance(copied.sampler, CopySampler) and copied.sampler.trained is copied.lm
        assert copied.sampler.respond(prompt, mask, copied.request()).mask.any()
    else:
        with pytest.raises(SamplerError, match="is a copy of another"):
            copied.sampler.respond(prompt, mask, copied.request())


def test_a_saved_model_samples_as_before(tmp_path: Any) -> None:
    model = model_with("float32")
    model.learn(16)
    model.save(tmp_path / "model.zip")
    loaded = PPOX.load(tmp_path / "model.zip", env=setups.env())
    assert isinstance(loaded.policy, LanguageModelPolicy) and isinstance(loaded.policy.sampler, CopySampler)
    loaded.learn(16)


def test_of_several_shards_each_response_has_its_own_log_probabilities() -> None:
    model = model_with(StandIn, shards=2)
    model.learn(16)
    buffer = buffer_of(model)
    assert buffer.sampler_log_probs is not None
    np.testing.assert_allclose(buffer.sampler_log_probs[buffer.masks], buffer.log_probs[buffer.masks], atol=2e-4)
