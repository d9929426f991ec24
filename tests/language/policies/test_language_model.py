from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.buffers import DictRolloutBuffer
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from transformers import AutoModelForCausalLM

from sb3_ppo_ext import PPOX, AdaptiveKL, Proportional
from sb3_ppo_ext.language import LanguageModelPolicy, PromptEnv, SequenceRolloutBuffer
from sb3_ppo_ext.language.model.tokens import Tokens
from sb3_ppo_ext.monitoring.diagnostics import TrainingWarning
from tests.language import setups, tiny

LORA = {"r": 2, "init_lora_weights": False}


def parameters(model: PPOX) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.policy.state_dict().items()}


def test_responses_come_with_a_value_and_a_log_probability_for_each_token() -> None:
    policy = setups.policy(value="separate")
    ids, mask = tiny.ragged_prompts()
    observation = {"input_ids": ids, "attention_mask": mask.to(torch.int8)}
    torch.manual_seed(0)
    action, value, log_prob = policy(observation)
    assert action.shape == value.shape == log_prob.shape == (4, 5)
    own, total, entropy = policy.evaluate_actions(observation, action)
    torch.testing.assert_close(total, log_prob.sum(-1), rtol=0, atol=1e-4)
    torch.testing.assert_close(own, value[:, 0])
    torch.testing.assert_close(policy.predict_values(observation)[:, 0], own)
    assert (entropy > 0).all()


@pytest.mark.parametrize("value", ["shared", "branch", "separate"])
def test_values_begin_at_zero_and_depend_on_the_state_before_the_token(value: str) -> None:
    policy, tokens = setups.policy(value=value), tiny.ragged_tokens()
    assert not policy.evaluate_tokens(tokens, entropy_grad=False)[2].any()
    torch.nn.init.normal_(setups.value_head(policy).weight)
    before = policy.evaluate_tokens(tokens, entropy_grad=False)[2]
    other = tokens.response.clone()
    other[:, 2] = 23 - other[:, 2]  # the third token: first seen by the value of the fourth
    after = policy.evaluate_tokens(Tokens(tokens.prompt, tokens.prompt_mask, other, tokens.mask), entropy_grad=False)[2]
    torch.testing.assert_close(after[:, :3], before[:, :3], rtol=0, atol=1e-5)
    long = tokens.mask[:, 3]
    assert long.any() and ((after[long, 3] - before[long, 3]).abs() > 1e-3).all()


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_an_untrained_branch_sees_what_the_last_block_gives(family: str) -> None:
    branch, shared = (setups.policy(model=lambda: tiny.model(family), value=value) for value in ("branch", "shared"))
    setups.value_head(shared).weight.data.copy_(torch.nn.init.normal_(setups.value_head(branch).weight))
    values = [policy.evaluate_tokens(tiny.ragged_tokens(), entropy_grad=False)[2] for policy in (branch, shared)]
    torch.testing.assert_close(*values, rtol=0, atol=1e-5)


def test_a_separate_critic_leaves_the_model_alone() -> None:
    policy = setups.policy(value="separate")
    torch.nn.init.normal_(setups.value_head(policy).weight)
    policy.evaluate_tokens(tiny.ragged_tokens(), entropy_grad=False)[2].sum().backward()
    assert all(parameter.grad is None for parameter in policy.model_parameters())
    assert sum(parameter.grad is not None for parameter in policy.value_parameters()) > 2


def test_the_value_function_has_a_learning_rate_of_its_own() -> None:
    model = setups.ppox(policy_kwargs={"value_lr_ratio": 10.0}, learning_rate="linear:1e-3:0")
    model.learn(16)
    rate = float(model.knobs.values.learning_rate)
    assert [group["lr"] for group in model.policy.optimizer.param_groups] == [rate, pytest.approx(10 * rate)]


def test_its_ratio_is_known_after_loading_and_where_the_rate_starts_at_zero(tmp_path: Path) -> None:
    model = setups.ppox(policy_kwargs={"value_lr_ratio": 10.0}, learning_rate="warmup:0.5:linear:1e-3:0")
    assert [group["lr"] for group in model.policy.optimizer.param_groups] == [0, 0]
    model.learn(48)
    assert [group["lr"] for group in model.policy.optimizer.param_groups] == [0, 0]  # at its end
    model.save(tmp_path / "model")
    loaded = PPOX.load(tmp_path / "model", env=setups.env(), learning_rate=1e-4).learn(16)
    assert [group["lr"] for group in loaded.policy.optimizer.param_groups] == pytest.approx([1e-4, 1e-3])


def test_it_brings_its_buffer_and_trains_eagerly_without_a_warning(capsys: pytest.CaptureFixture[str]) -> None:
    model = setups.ppox(verbose=1)
    model.learn(16)
    assert isinstance(model.rollout_buffer, SequenceRolloutBuffer)
    assert "PPOX trains eagerly: 8 minibatches are planned" in capsys.readouterr().out


def test_values_after_the_last_response_are_not_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    model = setups.ppox()
    monkeypatch.setattr(model.policy, "predict_values", None)  # to call it would raise
    model.learn(16)
    assert not model.rollout_buffer.last_values.any()  # type: ignore[attr-defined]  # a SequenceRolloutBuffer


@pytest.mark.parametrize("policy_kwargs", [{}, {"lora": LORA, "value": "branch"}, {"value": "separate"}])
def test_loading_and_continuing_is_never_having_stopped(policy_kwargs: dict[str, Any], tmp_path: Path) -> None:
    def fresh() -> PPOX:
        coefficient = AdaptiveKL(0.1, 0.5, Proportional(100))
        return setups.ppox(policy_kwargs=policy_kwargs, ref_kl_coef=coefficient)

    whole = fresh()
    whole.learn(32)
    first = fresh()
    first.learn(16)
    first.save(tmp_path / "model")
    where = first.get_env().state_dict()  # type: ignore[union-attr]  # a PromptVecEnv
    torch.manual_seed(99)
    environment = setups.env()
    environment.load_state_dict(where)
    loaded = PPOX.load(tmp_path / "model", env=environment, force_reset=False)
    loaded.learn(16, reset_num_timesteps=False)
    for name, tensor in parameters(whole).items():
        torch.testing.assert_close(parameters(loaded)[name], tensor, rtol=0, atol=0, msg=name)
    assert loaded.knobs.numbers()["ref_kl_coef"] == whole.knobs.numbers()["ref_kl_coef"] != 0.1


def test_files_hold_what_was_trained_and_no_more(tmp_path: Path) -> None:
    sizes = {}
    for name, kwargs in {"full": {}, "lora": {"lora": LORA}}.items():
        model = setups.ppox(policy_kwargs={"model": lambda: tiny.model(size=64, sharpness=1.0), **kwargs})
        model.learn(16)
        model.save(tmp_path / name)
        sizes[name] = (tmp_path / f"{name}.zip").stat().st_size
        assert not any("reference" in key for key in model.policy.state_dict())
    keys = setups.ppox(policy_kwargs={"lora": LORA}).policy.state_dict()
    assert all("lora_" in key or key.startswith("critic.") for key in keys)
    # The model, and twice as much of Adam's. A copy more would show.
    model_bytes = 4 * sum(parameter.numel() for parameter in tiny.model(size=64).parameters())
    assert 3 * model_bytes < sizes["full"] < 3.5 * model_bytes and sizes["lora"] < 0.4 * model_bytes


def test_a_file_of_another_policy_is_refused(tmp_path: Path) -> None:
    setups.ppox(policy_kwargs={"lora": LORA}).save(tmp_path / "lora")
    with pytest.raises(ValueError, match="of another policy"):
        setups.ppox().set_parameters(str(tmp_path / "lora"))


@pytest.mark.parametrize("lora", [None, LORA])
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_save_pretrained_writes_a_model_for_transformers(
    family: str, lora: dict[str, Any] | None, tmp_path: Path
) -> None:
    model = setups.ppox(policy_kwargs={"model": lambda: tiny.model(family), "lora": lora})
    model.learn(16)
    policy = model.policy
    assert isinstance(policy, LanguageModelPolicy)
    policy.save_pretrained(tmp_path)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path)
    ids = torch.arange(8)[None]
    expected = policy.lm.logits(policy.lm.hidden(ids, torch.ones_like(ids, dtype=torch.bool)))
    torch.testing.assert_close(plain(input_ids=ids).logits, expected, rtol=0, atol=1e-4)


def test_the_policy_saves_and_loads_by_itself(tmp_path: Path) -> None:
    policy = setups.policy(lora=LORA)
    policy.save(str(tmp_path / "policy.pth"))
    loaded = LanguageModelPolicy.load(str(tmp_path / "policy.pth"), device="cpu")
    ids, mask = tiny.ragged_prompts(1)
    observation = {"input_ids": ids.numpy(), "attention_mask": mask.numpy().astype(np.int8)}
    one, other = (each.predict(observation, deterministic=True)[0] for each in (policy, loaded))
    assert (one == other).all()


def test_the_kl_to_the_reference_is_zero_before_training_and_steers_its_coefficient() -> None:
    model = setups.ppox(
        ref_kl_coef=AdaptiveKL(0.15, 6.0, Proportional(1e4)), n_steps=64, batch_size=256, learning_rate=1e-5
    )
    model.learn(512)
    assert model.logger.name_to_value["lm/kl_ref"] == pytest.approx(0, abs=1e-3)
    # Ziegler et al. 2019: KL far below its target lowers the coefficient by 0.2 * 512 / 10000 of itself.
    assert model.knobs.numbers()["ref_kl_coef"] == pytest.approx(0.15 * (1 - 0.2 * 0.0512))


def distance_to_the_reference(coefficient: float, **settings: str) -> float:
    """The KL to it after training."""
    model = setups.ppox(ref_kl_coef=coefficient, rollout_buffer_kwargs=settings, learning_rate=1e-3).learn(320)
    return float(model.logger.name_to_value["lm/kl_ref_k3"])


@pytest.fixture(scope="module")
def without_penalty() -> float:
    """Where nothing holds the model."""
    return distance_to_the_reference(0.0)


@pytest.mark.parametrize(("place", "estimator"), [("reward", "k1"), ("loss", "k3"), ("loss", "full"), ("both", "full")])
def test_the_penalty_holds_the_model_near_its_reference(place: str, estimator: str, without_penalty: float) -> None:
    assert distance_to_the_reference(5.0, ref_kl=place, ref_kl_estimator=estimator) < 0.5 * without_penalty


@pytest.mark.parametrize(("estimator", "remedy"), [("k2", "loss"), ("k3", "loss"), ("full", "both")])
def test_a_penalty_that_would_not_hold_is_warned_of(estimator: str, remedy: str) -> None:
    with pytest.warns(TrainingWarning, match=f'"{estimator}" with ref_kl="reward".* or ref_kl="{remedy}"$'):
        setups.ppox(ref_kl_coef=0.1, rollout_buffer_kwargs={"ref_kl_estimator": estimator})


BAD: dict[str, dict[str, Any]] = {
    "top_k=5: it would sample from another distribution": {"policy_kwargs": {"top_k": 5}},
    "top_p=0.9: it would sample from another distribution": {"policy_kwargs": {"top_p": 0.9}},
    "repetition_penalty=1.2: it would sample from another": {"policy_kwargs": {"repetition_penalty": 1.2}},
    "min_new_tokens=2: it would sample from another": {"policy_kwargs": {"min_new_tokens": 2}},
    "model=Linear is a Linear": {"policy_kwargs": {"model": torch.nn.Linear(1, 1)}},
    "temperature=0": {"policy_kwargs": {"temperature": 0}},
    "value='twin'": {"policy_kwargs": {"value": "twin"}},
    "model='nowhere'|nowhere": {"policy_kwargs": {"model": "/nowhere/at/all"}},
    "normalize_value=True": {"normalize_value": True},
    'value_lambda=1.0: .*rollout_buffer_kwargs={"value_lambda": 1.0}': {"value_lambda": 1.0},
    "recompute_advantage=True": {"recompute_advantage": True},
    "with reference=False": {"ref_kl_coef": 0.1, "policy_kwargs": {"reference": False}},
    'every="rollout"': {"ref_kl_coef": AdaptiveKL(0.1, 1.0, every="epoch")},
    "as a loss its gradient is 0": {"rollout_buffer_kwargs": {"ref_kl": "loss"}},
    "loss_mean='sum'": {"rollout_buffer_kwargs": {"loss_mean": "sum"}},
    "missing_eos_penalty=-1": {"rollout_buffer_kwargs": {"missing_eos_penalty": -1}},
    "micro_batch_tokens=0": {"rollout_buffer_kwargs": {"micro_batch_tokens": 0}},
    "needs a SequenceRolloutBuffer": {"rollout_buffer_class": DictRolloutBuffer},
    'kl_estimator="k3"': {"kl_coef": 0.1},
}


@pytest.mark.parametrize("message", BAD)
def test_bad_arguments_are_refused_at_construction(message: str) -> None:
    with pytest.raises((ValueError, OSError), match=message):
        setups.ppox(**BAD[message])


def test_vec_normalize_is_refused() -> None:
    single = lambda: PromptEnv(  # noqa: E731  # a factory
        setups.PROMPTS, setups.low_ids, max_new_tokens=4, vocab_size=24, eos_token_id=1
    )
    settings: list[dict[str, Any]] = [{}, {"norm_obs": False}]
    for options in settings:
        with pytest.raises(ValueError, match="VecNormalize"):
            setups.ppox(batch_size=2, environment=VecNormalize(DummyVecEnv([single]), **options))  # type: ignore[arg-type]  # any env


def test_spaces_of_another_kind_are_refused() -> None:
    with pytest.raises(ValueError, match="needs a ResponseSpace"):
        PPOX(LanguageModelPolicy, "CartPole-v1", policy_kwargs={"model": tiny.model})


def test_sb3s_own_ppo_is_told_that_it_cannot() -> None:
    model = PPO(
        LanguageModelPolicy, setups.env(), n_steps=2, batch_size=8, device="cpu",
        policy_kwargs={"model": tiny.model}, rollout_buffer_class=SequenceRolloutBuffer,
    )  # fmt: skip
    with pytest.raises(TypeError, match="PPOX trains on it"):
        model.learn(16)
