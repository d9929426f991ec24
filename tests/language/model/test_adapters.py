"""A model that brings an adapter along: training begins as that model, whatever way it is named."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from peft import (
    AdaptionPromptConfig,
    IA3Config,
    LNTuningConfig,
    LoHaConfig,
    LoraConfig,
    PeftMixedModel,
    PeftModel,
    PrefixTuningConfig,
    PromptTuningConfig,
    get_peft_model,
)
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedModel

from sb3_ppo_ext import PPOX
from sb3_ppo_ext.language import CandidatePolicy, ClassifierReward
from sb3_ppo_ext.language.envs.vocabulary import Vocabulary
from sb3_ppo_ext.language.model.adapters import has_adapter, warnings_of_peft
from sb3_ppo_ext.language.model.loading import load_model
from tests.language import setups, tiny
from tests.language.classifiers import ANSWERS, OWN, PROMPTS, alone, classifier
from tests.language.words import tokenizer

IDS = torch.tensor([[3, 4, 5, 9, 7]])
EVERYWHERE: dict[str, Any] = {"r": 2, "target_modules": "all-linear", "fan_in_fan_out": True}  # for GPT-2's weights
MERGEABLE: dict[str, Callable[[], Any]] = {
    "lora": lambda: LoraConfig(**EVERYWHERE),
    "dora": lambda: LoraConfig(**EVERYWHERE, use_dora=True),
    # GPT-2's output layer has the weights of its embedding: an adapter of the one is none of the other.
    "of the embedding": lambda: LoraConfig(r=2, target_modules=["wte"]),
    "of the output layer": lambda: LoraConfig(r=2, target_modules=["lm_head"]),
    "new tokens": lambda: LoraConfig(**EVERYWHERE, trainable_token_indices=[3, 23]),
    "modules to save": lambda: LoraConfig(**EVERYWHERE, modules_to_save=["lm_head"]),
    "ia3": lambda: IA3Config(
        target_modules=["c_attn", "mlp.c_proj"], feedforward_modules=["mlp.c_proj"], fan_in_fan_out=True
    ),
    "norms": lambda: LNTuningConfig(target_modules=["ln_1", "ln_f"]),
}
NOT_MERGEABLE: dict[str, Callable[[], Any]] = {
    "PROMPT_TUNING": lambda: PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"),
    "PREFIX_TUNING": lambda: PrefixTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"),
    "ADAPTION_PROMPT": lambda: AdaptionPromptConfig(adapter_len=3, adapter_layers=1, task_type="CAUSAL_LM"),
}


def tuned(base: Any, config: Any) -> Any:
    """The base model with an adapter that has been trained: every parameter of it is far from where it began."""
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what PEFT says to those who make such adapters
        torch.manual_seed(1)
        model = get_peft_model(base, config).eval()
        moved(model)
    return model


@torch.no_grad()
def moved(model: torch.nn.Module) -> None:
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.add_(0.3 * torch.randn_like(parameter))


def base_model() -> PreTrainedModel:
    model = tiny.model(sharpness=3.0)
    model.eval()
    return model


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = model(input_ids=IDS).logits
    return result


def assert_same(model: Any, expected: torch.Tensor) -> None:
    torch.testing.assert_close(logits(model), expected, rtol=1e-5, atol=1e-5)


def in_folders(folder: Path, config: Any) -> tuple[Any, Path]:
    """A tuned model, and the folder of its adapter; that of its base is beside it."""
    base_model().save_pretrained(folder / "base")
    model = tuned(AutoModelForCausalLM.from_pretrained(folder / "base"), config)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(folder / "adapter")
    return model, folder / "adapter"


@pytest.mark.filterwarnings("ignore:Unsupported layer type")  # PEFT's of norms
@pytest.mark.parametrize("kind", MERGEABLE)
def test_a_folder_with_an_adapter_is_the_model_it_makes_of_its_base(kind: str, tmp_path: Path) -> None:
    model, folder = in_folders(tmp_path, MERGEABLE[kind]())
    expected = logits(model)
    assert (expected - logits(base_model())).abs().max() > 0.05  # the adapter matters
    loaded = load_model(folder)
    assert_same(loaded, expected)
    assert not has_adapter(loaded) and type(loaded) is type(model.get_base_model())
    loaded.save_pretrained(tmp_path / "merged")
    assert_same(AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval(), expected)


SOURCES: dict[str, Callable[[Any, Path], Any]] = {
    "folder": lambda model, folder: str(folder),
    "function": lambda model, folder: lambda: model,  # one and the same each time
    "peft": lambda model, folder: model,
    "injected": lambda model, folder: model.get_base_model(),
    "transformers": lambda model, folder: AutoModelForCausalLM.from_pretrained(folder),
}


@pytest.mark.parametrize("lora", [None, {"r": 2}])
@pytest.mark.parametrize("source", SOURCES)
def test_training_begins_as_the_model_with_its_adapter(source: str, lora: Any, tmp_path: Path) -> None:
    given, folder = in_folders(tmp_path, LoraConfig(**EVERYWHERE))
    expected = logits(given)
    options = {"model": SOURCES[source](given, folder), "lora": lora, "value": "separate"}
    model = setups.ppox(policy_kwargs=options, ref_kl_coef=0.1)
    policy: Any = model.policy
    assert_same(policy.lm.plain, expected)
    with policy.as_reference() as reference:
        assert_same(reference.plain, expected)
    model.learn(16)
    assert model.logger.name_to_value["lm/kl_ref"] == pytest.approx(0.0, abs=1e-4)  # of the first rollout
    assert (logits(policy.lm.plain) - expected).abs().max() > 1e-3
    assert_same(given, expected)  # what was given stays as it was

    model.save(tmp_path / "model")
    loaded: Any = PPOX.load(tmp_path / "model", env=setups.env())
    assert torch.equal(logits(loaded.policy.lm.plain), logits(policy.lm.plain))
    with loaded.policy.as_reference() as reference:
        assert_same(reference.plain, expected)
    loaded.learn(16)
    policy.save_pretrained(tmp_path / "plain")
    assert_same(AutoModelForCausalLM.from_pretrained(tmp_path / "plain").eval(), logits(policy.lm.plain))


def test_only_the_active_one_of_several_adapters_counts() -> None:
    model = tuned(base_model(), LoraConfig(**EVERYWHERE))
    first = logits(model)
    model.add_adapter("second", LoraConfig(**EVERYWHERE, init_lora_weights=False))
    assert_same(load_model(model), first)
    model.set_adapter("second")
    second = logits(model)
    assert (second - first).abs().max() > 0.01
    assert_same(load_model(model), second)
    model.base_model.set_adapter(["default", "second"])
    assert_same(load_model(model), logits(model))


@pytest.mark.parametrize("config", [LoraConfig(**EVERYWHERE), LoraConfig(**EVERYWHERE, modules_to_save=["lm_head"])])
def test_disabled_adapters_are_left_out(config: LoraConfig) -> None:
    model = tuned(base_model(), config)
    model.base_model.disable_adapter_layers()
    assert_same(load_model(model), logits(base_model()))


def test_what_was_merged_and_not_unloaded_is_not_merged_twice() -> None:
    model = tuned(base_model(), LoraConfig(**EVERYWHERE))
    expected = logits(model)
    model.merge_adapter()
    assert_same(load_model(model), expected)
    model.base_model.disable_adapter_layers()  # which takes them out again where it is asked
    assert_same(load_model(model), logits(base_model()))


def test_adapters_of_two_kinds_around_the_same_layers_are_both_merged() -> None:
    base = tiny.model("llama", sharpness=3.0)
    plain = logits(base.eval())
    with warnings_of_peft():
        model = PeftMixedModel(base, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False), "lora")
    model.add_adapter("loha", LoHaConfig(r=2, target_modules=["q_proj", "v_proj"], init_weights=False))
    model.set_adapter(["lora", "loha"])
    expected = logits(model.eval())
    assert (expected - plain).abs().max() > 0.01
    assert_same(load_model(model), expected)


def test_a_tied_embedding_stays_tied_where_no_adapter_made_a_difference() -> None:
    model = load_model(tuned(base_model(), LoraConfig(**EVERYWHERE)))
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    model = load_model(tuned(base_model(), MERGEABLE["of the output layer"]()))
    assert model.get_output_embeddings().weight is not model.get_input_embeddings().weight
    assert not model.config.tie_word_embeddings


@pytest.mark.parametrize("layer", ["wte", "lm_head"])
def test_a_trained_adapter_of_a_tied_layer_is_saved_as_what_it_does(layer: str, tmp_path: Path) -> None:
    policy = setups.policy(model=base_model, lora={"r": 2, "target_modules": [layer], "fan_in_fan_out": False})
    moved(policy.lm)
    policy.save_pretrained(tmp_path)
    assert_same(AutoModelForCausalLM.from_pretrained(tmp_path).eval(), logits(policy.lm.lm))


def test_an_adapter_on_another_adapters_folder_is_merged_after_it(tmp_path: Path) -> None:
    model, folder = in_folders(tmp_path, LoraConfig(**EVERYWHERE))
    model = tuned(model.merge_and_unload(), LoraConfig(r=1, target_modules=["c_attn"], fan_in_fan_out=True))
    model.peft_config["default"].base_model_name_or_path = str(folder)
    model.save_pretrained(tmp_path / "second", save_embedding_layers=False)
    assert_same(load_model(tmp_path / "second"), logits(model))


def test_a_folder_may_hold_the_base_and_its_adapter(tmp_path: Path) -> None:
    model, folder = in_folders(tmp_path, LoraConfig(**EVERYWHERE, use_dora=True))
    shutil.copy(tmp_path / "base" / "config.json", folder)  # settings alone are no base
    assert_same(load_model(folder), logits(model))
    for file in (tmp_path / "base").iterdir():
        shutil.move(file, folder / file.name)
    assert_same(load_model(folder), logits(model))


def test_tokens_that_were_added_with_the_adapter_are_there(tmp_path: Path) -> None:
    base_model().save_pretrained(tmp_path / "base")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    base.resize_token_embeddings(26, mean_resizing=False)
    model = tuned(base, LoraConfig(**EVERYWHERE))
    model.save_pretrained(tmp_path / "adapter", save_embedding_layers=True)
    loaded = load_model(tmp_path / "adapter")
    assert logits(loaded).shape[-1] == 26
    assert_same(loaded, logits(model))


@pytest.mark.parametrize("kind", NOT_MERGEABLE)
def test_adapters_that_are_no_weights_are_refused_with_the_remedy(kind: str, tmp_path: Path) -> None:
    model, folder = in_folders(tmp_path, NOT_MERGEABLE[kind]())
    for source in (folder, model):
        with pytest.raises(
            ValueError, match=rf"model=.*\({kind}\) cannot be merged .* Pass a model without an adapter"
        ):
            load_model(source)


def test_an_adapter_that_is_no_fixed_change_of_weights_is_refused() -> None:
    model = tuned(base_model(), LoraConfig(**EVERYWHERE))
    model.register_forward_hook(lambda _, __, output: output.__setitem__("logits", output.logits * 2))
    with pytest.raises(ValueError, match=r"with its adapter \(LORA\) merged into its weights, its logits differ"):
        load_model(model)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_merged_and_kept(dtype: torch.dtype) -> None:
    base = torch.nn.Module.to(base_model(), dtype)
    model = tuned(base, LoraConfig(**EVERYWHERE))  # PEFT keeps the adapter in float32
    loaded = load_model(model)
    assert {parameter.dtype for parameter in loaded.parameters()} == {dtype}
    expected = logits(model).float()
    assert (logits(loaded).float() - expected).abs().max() < 0.05 * expected.abs().max()


class Packed(torch.nn.Module):
    """Stands for a layer of a library that packs the weights into whole numbers."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.register_buffer("qweight", layer.weight.detach().mul(100).to(torch.int8))
        self.bias = layer.bias

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = hidden @ (self.get_buffer("qweight") / 100) + self.bias
        return result


def test_an_adapter_on_a_quantised_base_is_refused() -> None:
    model = tuned(base_model(), LoraConfig(**EVERYWHERE))
    model.get_base_model().quantization_method = "gguf"  # unpacked as it was loaded, as transformers does
    assert_same(load_model(model), logits(model))
    layer = model.get_base_model().transformer.h[0].attn.c_attn
    layer.base_layer = Packed(layer.base_layer)
    with pytest.raises(ValueError, match=r"its base is quantised .*h\.0\.attn\.c_attn.*merge_and_unload"):
        load_model(model)


@pytest.mark.parametrize("base", ["elsewhere", None])
def test_an_adapter_without_its_base_is_refused_with_the_remedy(base: str | None, tmp_path: Path) -> None:
    _, folder = in_folders(tmp_path, LoraConfig(**EVERYWHERE))
    settings = json.loads((folder / "adapter_config.json").read_text())
    settings["base_model_name_or_path"] = base and str(tmp_path / base)
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    with pytest.raises(
        ValueError, match=r"is an adapter, which cannot be put on its base .*merge_and_unload"
    ) as caught:
        load_model(folder)
    assert (base or "base_model_name_or_path is empty") in str(caught.value)


@pytest.mark.parametrize("other", [{"size": 32}, {"family": "llama"}])
def test_an_adapter_of_another_base_is_refused(other: Any, tmp_path: Path) -> None:
    _, folder = in_folders(tmp_path, LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True))
    shutil.rmtree(tmp_path / "base")
    tiny.model(**other).save_pretrained(tmp_path / "base")
    with pytest.raises(ValueError, match="is an adapter, which cannot be put on its base"):
        load_model(folder)


def test_an_adapter_that_is_partly_missing_is_refused(tmp_path: Path) -> None:
    _, folder = in_folders(tmp_path, LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True))
    settings = json.loads((folder / "adapter_config.json").read_text())
    settings["target_modules"] = ["c_attn", "c_fc"]
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match="missing adapter keys"):
        load_model(folder)


@pytest.mark.parametrize("labels", [1, 3])
@pytest.mark.parametrize("family", ["gpt2", "bert"])
def test_a_classifier_with_an_adapter_scores_as_that_model(family: str, labels: int, tmp_path: Path) -> None:
    # A causal model's folder has no head at all, and BERT's here has one of a single label.
    (base_model() if family == "gpt2" else classifier("bert")).save_pretrained(tmp_path / "base")
    base = AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "base", num_labels=labels, ignore_mismatched_sizes=True
    )
    places = {"gpt2": ["c_attn"], "bert": ["query", "value"]}[family]
    options: dict[str, Any] = {"fan_in_fan_out": family == "gpt2", "task_type": "SEQ_CLS"}
    model = tuned(base, LoraConfig(r=2, target_modules=places, **options))
    model.save_pretrained(tmp_path / "adapter")
    OWN.save_pretrained(tmp_path / "adapter")
    expected = [alone(model, f"{prompt} {answer}")[0].item() for prompt, answer in zip(PROMPTS, ANSWERS, strict=True)]
    for source in (tmp_path / "adapter", model, model.get_base_model()):
        given = None if isinstance(source, Path) else OWN  # the folder of the adapter has one
        reward = ClassifierReward(source, given, label=0, text="{prompt} {response}")
        assert reward(PROMPTS, ANSWERS) == pytest.approx(expected, abs=1e-4)
        assert not has_adapter(reward.model)
    assert has_adapter(model)  # what was given stays as it was


def test_a_classifier_whose_head_would_be_random_is_refused(tmp_path: Path) -> None:
    _, folder = in_folders(tmp_path, LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True))
    with pytest.raises(ValueError, match=r"neither of the two has a score\.weight"):
        ClassifierReward(folder, OWN)


def test_candidates_are_chosen_by_the_model_with_its_adapter() -> None:
    model = tuned(base_model(), LoraConfig(**EVERYWHERE))
    words = tokenizer()
    observations = spaces.Box(0, 255, (16,), np.uint8)
    policy = CandidatePolicy(
        observations, spaces.Discrete(2), lambda _: 1e-3, model, words, ["left", "right"], lora={"r": 2}
    )
    assert_same(policy.lm.plain, logits(model))
    assert Vocabulary.of(words, None, None, None).size <= tiny.VOCABULARY


def test_users_see_no_deprecation_of_pefts_and_keep_their_filters() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        before = list(warnings.filters)
        setups.policy(lora={"r": 2}, value="separate")
        load_model(tuned(base_model(), LoraConfig(**EVERYWHERE)))
        assert warnings.filters == before
    assert isinstance(setups.policy(lora={"r": 2}).lm.lm, PeftModel)
