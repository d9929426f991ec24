"""What ``save_pretrained`` leaves on the disk, and when it leaves nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from sb3_ppo_ext.language.model import adapters
from sb3_ppo_ext.language.model.loading import lora_config
from tests.language import setups, tiny, words

LORA = {"r": 2, "target_modules": "all-linear"}
IDS = torch.arange(2, 12)[None]


def policy(**options: Any) -> Any:
    """A policy whose adapter, if it has one, is far from where it began."""
    made = setups.policy(**{"model": lambda: tiny.model("llama", sharpness=3.0), **options})
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(2)
        for parameter in made.model_parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return made


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_folder_has_tokenizer_template_and_the_end_tokens_of_training(tmp_path: Path) -> None:
    trained, tokenizer = policy(lora=LORA), words.tokenizer(chat=True)
    trained.save_pretrained(tmp_path / "new" / "folder", tokenizer)
    read = AutoTokenizer.from_pretrained(tmp_path / "new" / "folder")
    assert read("go left now")["input_ids"] == tokenizer("go left now")["input_ids"]
    assert read.chat_template == words.CHAT
    generation = GenerationConfig.from_pretrained(tmp_path / "new" / "folder")
    assert (generation.eos_token_id, generation.pad_token_id) == (tiny.EOS, tiny.PAD)
    assert trained.lm.plain.generation_config.pad_token_id == tiny.PAD  # the model in training stays as it is
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["folder"]


def test_a_wrong_merge_is_refused_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapters, "_logits", alternating(adapters._logits))
    with pytest.raises(ValueError, match=r"its logits differ by .* of the largest.*model\.save\(\) .*keep the adapter"):
        policy(lora=LORA).save_pretrained(tmp_path / "folder")
    assert not list(tmp_path.iterdir())


def alternating(logits: Any) -> Any:
    """The logits, and at every second call twice as large: what a wrong merge does."""
    calls = []

    def found(model: Any) -> Any:
        calls.append(model)
        return logits(model) * (1 + (len(calls) % 2 == 0))

    return found


def test_an_adapter_on_half_precision_is_added_in_float32_and_rounded_once(tmp_path: Path) -> None:
    trained = policy(lora=LORA, dtype="bfloat16")
    layer = trained.lm.plain.model.layers[0].mlp.up_proj
    a, b = layer.lora_A["default"].weight.float(), layer.lora_B["default"].weight.float()
    expected = (layer.base_layer.weight.float() + layer.scaling["default"] * b @ a).bfloat16()
    trained.save_pretrained(tmp_path)
    saved = AutoModelForCausalLM.from_pretrained(tmp_path, dtype="auto")
    assert saved.dtype == torch.bfloat16
    torch.testing.assert_close(saved.model.layers[0].mlp.up_proj.weight, expected, rtol=0, atol=0)
    assert trained.lm.plain.dtype == torch.bfloat16 and adapters.has_adapter(trained.lm)


def test_a_folder_that_exists_keeps_other_files_and_loses_old_weights(tmp_path: Path) -> None:
    for name in ("notes.txt", "model-00001-of-00002.safetensors", "model.safetensors.index.json", "config.json"):
        (tmp_path / name).write_text("{}")
    policy().save_pretrained(tmp_path)
    assert set(contents(tmp_path)) == {"notes.txt", "config.json", "generation_config.json", "model.safetensors"}
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "llama"


def test_the_folder_of_an_adapter_is_refused(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"holds an adapter.*choose another folder"):
        policy(lora=LORA).save_pretrained(tmp_path)
    assert set(contents(tmp_path)) == {"adapter_config.json"}


@pytest.mark.parametrize("exists", [True, False])
def test_a_failure_while_writing_changes_nothing(exists: bool, tmp_path: Path) -> None:
    class Full:
        def save_pretrained(self, folder: Path) -> None:
            (folder / "tokenizer.json").write_text("half of i")
            raise OSError("No space left on device")

    folder = tmp_path / "folder"
    if exists:
        policy().save_pretrained(folder)
    before = contents(folder) if exists else {}
    with pytest.raises(OSError, match="No space left"):
        policy(lora=LORA).save_pretrained(folder, Full())
    assert (contents(folder) if exists else {}) == before
    assert [path.name for path in tmp_path.iterdir()] == ["folder"] * exists


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_an_adapter_may_be_on_some_blocks_alone(family: str) -> None:
    trained = setups.policy(model=lambda: tiny.model(family), lora={"r": 2, "layers_to_transform": [1]})
    places = [name for name, parameter in trained.lm.named_parameters() if parameter.requires_grad]
    assert places and all(".1." in name for name in places)
    everywhere = setups.policy(model=lambda: tiny.model(family), lora={"r": 2})
    assert 2 * len(places) == sum(parameter.requires_grad for parameter in everywhere.lm.parameters())
    named = lora_config({"target_modules": ["up_proj"], "layers_to_transform": [0]}, trained.lm.plain)
    assert named is not None and set(named.target_modules or ()) == {"up_proj"}
