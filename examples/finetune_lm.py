"""A language model learns to copy: a short supervised warm-up on noisy examples, then PPO on a checkable reward.

The prompt is a word and the sign ">", the right answer is the word. The warm-up's examples are full of mistakes, so the
model begins with less than one answer in four right; PPO then sees only scores. Everything is made in place, nothing is
downloaded.
"""

import argparse
import itertools
import random
from collections.abc import Sequence

import torch
from tokenizers import Tokenizer
from tokenizers.decoders import Fuse
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from transformers import AutoModelForCausalLM, GPT2Config, PreTrainedModel, PreTrainedTokenizerFast

from sb3_ppo_ext import PPOX, AdaptiveKL, Proportional
from sb3_ppo_ext.language import LanguageModelPolicy, PromptVecEnv, SampleTable

LETTERS = "abcdefgh"
LENGTH = 4

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--timesteps", type=int, default=10_000, help="responses")
parser.add_argument("--warm-up", type=int, default=600, help="supervised steps")
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--output", default="copying", help="folder of the trained model")
options = parser.parse_args()
random.seed(options.seed)
torch.manual_seed(options.seed)

vocabulary = {symbol: index for index, symbol in enumerate(["<pad>", "<eos>", ">", *LETTERS])}
splitting = Tokenizer(WordLevel(vocabulary))
splitting.pre_tokenizer = Split("", "isolated")  # every character is a token
splitting.decoder = Fuse()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=splitting, pad_token="<pad>", eos_token="<eos>")

words = random.sample(["".join(letters) for letters in itertools.product(LETTERS, repeat=LENGTH)], 2000)
held_out, training = words[:256], words[256:]


def warmed_up() -> PreTrainedModel:
    """A small GPT-2 after a few hundred steps on copies in which four letters of ten are random."""
    config = GPT2Config(
        vocab_size=len(vocabulary), n_embd=64, n_layer=2, n_head=4, n_positions=16, bos_token_id=1, eos_token_id=1
    )
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(options.warm_up):
        batch = random.choices(training, k=64)
        copies = ["".join(one if random.random() < 0.6 else random.choice(LETTERS) for one in word) for word in batch]
        lines = [f"{word}>{copied}<eos>" for word, copied in zip(batch, copies, strict=True)]
        tokens = tokenizer(lines, padding=True, return_tensors="pt")
        targets = tokens["input_ids"].masked_fill(tokens["attention_mask"] == 0, -100)
        loss = model(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"], labels=targets).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


def similarity(prompts: Sequence[str], responses: Sequence[str]) -> list[float]:
    """The fraction of places with the right letter, and 1 more for the whole word."""
    scores = []
    for prompt, response in zip(prompts, responses, strict=True):
        word = prompt.removesuffix(">")
        right = sum(one == other for one, other in zip(word, response, strict=False))
        scores.append(right / max(len(word), len(response)) + (word == response))
    return scores


def exact_matches(model: PPOX) -> float:
    """The fraction of held-out words that are copied without a mistake, as the policy samples."""
    env = PromptVecEnv(
        [f"{word}>" for word in held_out], similarity, tokenizer,
        n_envs=len(held_out), max_new_tokens=LENGTH + 1, max_prompt_length=LENGTH + 1, shuffle=False,
    )  # fmt: skip
    responses, _ = model.predict(env.reset())
    _, scores, _, _ = env.step(responses)
    return float((scores == 2.0).mean())


env = PromptVecEnv(
    [f"{word}>" for word in training], similarity, tokenizer,
    n_envs=128, max_new_tokens=LENGTH + 1, max_prompt_length=LENGTH + 1,
)  # fmt: skip
model = PPOX(
    LanguageModelPolicy,
    env,
    policy_kwargs={"model": warmed_up()},
    rollout_buffer_kwargs={"missing_eos_penalty": 0.5},
    ref_kl_coef=AdaptiveKL(0.05, 4.0, Proportional(1000)),  # nats per response
    n_steps=2,
    batch_size=64,
    n_epochs=4,
    gamma=1.0,
    learning_rate="linear:1e-3:1e-4",
    seed=options.seed,
    device="cpu",
)
print(f"before: {exact_matches(model):.2f} of the held-out words are copied exactly")
model.learn(options.timesteps, callback=SampleTable(every=10, verbose=1), log_interval=None)
kl = model.logger.name_to_value.get("lm/kl_ref", float("nan"))
print(f"after:  {exact_matches(model):.2f}, with the KL to the model before at {kl:.2f} nats per response")
policy = model.policy
assert isinstance(policy, LanguageModelPolicy)
policy.save_pretrained(options.output)
tokenizer.save_pretrained(options.output)
print(f"AutoModelForCausalLM.from_pretrained({options.output!r}) loads it")
