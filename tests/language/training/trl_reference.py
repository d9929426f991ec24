"""One update of TRL 1.12's PPOTrainer, what it computed on the way, written to the file named on the command line.

The second argument is the logit of the end-of-text token: -400 for responses of full length, 0 for some that end.

Runs in a process of its own: TRL changes global settings when it is imported.
"""

from __future__ import annotations

import sys
import tempfile
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import GPT2ForSequenceClassification, PreTrainedTokenizerFast
from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

from tests.language import tiny

PROMPTS = [[3, 4, 5], [5, 6, 7], [8, 9, 10], [9, 10, 11], [12, 13, 14], [15, 16, 17], [18, 3, 20], [21, 22, 23]]
SETTINGS: dict[str, Any] = {
    **{"per_device_train_batch_size": 8, "gradient_accumulation_steps": 1, "num_mini_batches": 1, "num_ppo_epochs": 2},
    **{"total_episodes": 8, "response_length": 5, "temperature": 0.7, "kl_coef": 0.05, "whiten_rewards": True},
    **{"learning_rate": 1e-3, "lr_scheduler_type": "constant", "weight_decay": 0.0, "gamma": 1.0, "lam": 0.95},
    **{"bf16": False, "use_cpu": True, "gradient_checkpointing": False, "report_to": "none", "save_strategy": "no"},
    **{"num_sample_generations": 0, "seed": 0, "stop_token": "eos"},
}


def scorer(seed: int) -> GPT2ForSequenceClassification:
    torch.manual_seed(seed)
    model = GPT2ForSequenceClassification(tiny.never_ending(seed).config)  # type: ignore[arg-type]  # GPT-2's
    model.config.num_labels = 1
    model.score = torch.nn.Linear(16, 1, bias=False)
    model.transformer.load_state_dict(tiny.never_ending(seed).base_model.state_dict())
    return model


def recorded(name: str, into: dict[str, list[Any]]) -> None:
    """Has every result of one of the trainer's functions kept."""
    original = getattr(ppo_trainer, name)

    def record(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        into.setdefault(name, []).append(result)
        return result

    setattr(ppo_trainer, name, record)


def main(path: str, ending: float) -> None:
    words = {f"t{index}": index for index in range(tiny.VOCABULARY)}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words, unk_token="t2")),
        pad_token="t0",
        eos_token="t1",
        padding_side="left",
    )
    kept: dict[str, list[Any]] = {}
    for name in ("masked_whiten", "masked_mean", "batch_generation", "get_reward"):
        recorded(name, kept)
    ppo_trainer.np.random.permutation = lambda size: np.arange(size)
    policy, reference = (tiny.never_ending(seed, ending=ending) for seed in (0, 1))
    value, reward = scorer(2), scorer(3)
    # Not a datasets.Dataset, which pickles itself and fails with some versions of pyarrow; a list is all it takes.
    rows: Any = [{"input_ids": prompt} for prompt in PROMPTS]
    with tempfile.TemporaryDirectory() as folder:
        trainer = PPOTrainer(
            args=PPOConfig(output_dir=folder, **SETTINGS),
            processing_class=tokenizer,
            model=policy,
            ref_model=reference,
            reward_model=reward,
            value_model=value,
            train_dataset=rows,
            eval_dataset=rows,
        )
        score_head = value.score.weight.detach().clone()
        trainer.train()
    generated, logits = kept["batch_generation"][0]
    torch.save(
        {
            "tokens": generated,
            "log_prob": (logits.log_softmax(-1)).gather(-1, generated[:, 3:, None])[..., 0],
            "value": kept["get_reward"][0][0][:, 2:-1].squeeze(-1),
            "score": kept["get_reward"][1][1],
            "reward": kept["masked_whiten"][0],
            "advantage": kept["masked_whiten"][1],
            # Per epoch: the value loss (without its factor 1/2) and its clip fraction, the policy loss and its.
            "means": torch.stack(kept["masked_mean"][-8:]).detach().view(2, 4),
            "score_head": score_head,
            "policy": policy.state_dict(),
            "critic": value.state_dict(),
            "logged": trainer.state.log_history[0],
        },
        path,
    )


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]))
