"""The buffer of a language model as a TensorDict and back: tokens under their mask, to the last bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tensordict import TensorDict

from sb3_ppo_ext import PPOX
from sb3_ppo_ext.language import LanguageModelPolicy
from sb3_ppo_ext.language.training.token_buffer import SequenceRolloutBuffer
from sb3_ppo_ext.tensordicts import rollout_to_tensordict, tensordict_to_rollout
from tests.language import setups

ARRAYS = ("actions", "rewards", "episode_starts", "masks", "values", "log_probs", "advantages", "returns", "ended")


def collected(seed: int = 0) -> tuple[PPOX, SequenceRolloutBuffer]:
    """One rollout, with the KL to the reference in its rewards, and no step taken on it."""
    model = setups.ppox(seed=seed, ref_kl_coef=0.1, n_steps=3)
    _, callback = model._setup_learn(24)
    assert model.env is not None and isinstance(model.policy, LanguageModelPolicy)
    assert model.collect_rollouts(model.env, callback, model.rollout_buffer, model.n_steps)
    model.policy.rollout(model)
    buffer = model.rollout_buffer
    assert isinstance(buffer, SequenceRolloutBuffer) and buffer.ref_log_probs is not None
    return model, buffer


def test_tokens_come_under_their_mask_in_torchrls_shapes() -> None:
    _, buffer = collected()
    rows = rollout_to_tensordict(buffer)
    length = setups.LENGTH
    assert rows.batch_size == (3, 8) and rows.names == ["time", None]
    assert rows["mask"].shape == rows["action_log_prob"].shape == rows["ref_log_prob"].shape == (3, 8, length)
    assert rows["advantage"].shape == rows["value_target"].shape == rows["state_value"].shape == (3, 8, length, 1)
    assert rows["next", "reward"].shape == rows["next", "state_value"].shape == (3, 8, 1)  # one score per response
    assert rows["mask"].dtype == torch.bool and 0 < rows["mask"].float().mean() < 1
    assert (rows["action_log_prob"][~rows["mask"]] == 0).all()
    np.testing.assert_array_equal(rows["next", "done"][..., 0].numpy(), buffer.ended)
    # The value of the state after a response is that of the next prompt, which stands at its first token.
    torch.testing.assert_close(rows["next", "state_value"][:-1], rows["state_value"][1:, :, 0], rtol=0, atol=0)


def test_a_round_trip_trains_the_same_parameters() -> None:
    _, buffer = collected()
    rows = rollout_to_tensordict(buffer)
    models = []
    for there_and_back in (False, True):
        model, filled = collected()
        if there_and_back:
            filled.reset()
            filled.last_values = np.zeros(0)
            tensordict_to_rollout(rows, filled)
            for name in ARRAYS:
                array = getattr(filled, name)
                np.testing.assert_array_equal(array, getattr(buffer, name), err_msg=name)
                assert array.dtype == getattr(buffer, name).dtype, name
        torch.manual_seed(0)
        np.random.seed(0)
        model.train()
        models.append(model)
    for name, tensor in models[0].policy.state_dict().items():
        assert torch.equal(models[1].policy.state_dict()[name], tensor), name


def without(key: str) -> TensorDict:
    return rollout_to_tensordict(collected()[1]).exclude(key)


def test_what_is_missing_or_of_another_shape_is_named() -> None:
    _, buffer = collected()
    with pytest.raises(ValueError, match="'mask' is missing"):
        tensordict_to_rollout(without("mask"), buffer)
    rows = rollout_to_tensordict(buffer)
    rows["state_value"] = rows["state_value"][..., 0]
    with pytest.raises(ValueError, match=r"'state_value' has shape .*\(3, 8, 6, 1\) is needed"):
        tensordict_to_rollout(rows, buffer)
    with pytest.raises(ValueError, match="keeps last_values and dones itself"):
        rollout_to_tensordict(buffer, last_values=torch.zeros(8), dones=np.zeros(8))
