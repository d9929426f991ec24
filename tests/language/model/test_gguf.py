"""Models from GGUF files and to them, by transformers' reader."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast

from sb3_ppo_ext.language import LanguageModelPolicy
from sb3_ppo_ext.language.model.gguf_writing import (
    CONTROL,
    NORMAL,
    UNUSED,
    USER_DEFINED,
    splitting,
    vocabulary_of,
    write_gguf,
)
from sb3_ppo_ext.language.model.loading import load_model
from tests.language import setups, tiny, words

pytest.importorskip("gguf")
pytestmark = pytest.mark.filterwarnings("ignore:.*:DeprecationWarning")

LETTERS = ["<pad>", "<eos>", *"abcdefghijklmnopqrs", "ab", "cd", "abcd"]
LORA = {"r": 2, "target_modules": "all-linear"}
IDS = torch.arange(2, 12)[None]


def tokenizer(**splits: Any) -> Any:
    """A byte-level BPE of 24 tokens with a chat template."""
    vocabulary = {token: index for index, token in enumerate(LETTERS)}
    built = Tokenizer(models.BPE(vocabulary, [("a", "b"), ("c", "d"), ("ab", "cd")]))
    built.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, **splits)
    wrapped = PreTrainedTokenizerFast(tokenizer_object=built, pad_token="<pad>", eos_token="<eos>")
    wrapped.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    return wrapped


def llama(**changes: Any) -> PreTrainedModel:
    """Two heads of queries, one of keys and values; unequal numbers in every weight."""
    config = tiny.config("llama")
    for name, value in changes.items():
        setattr(config, name, value)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
    model.eval()
    return model


def logits(model: PreTrainedModel) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=IDS).logits
    return found


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_transformers_reads_back_what_is_written(precision: str, tied: bool, tmp_path: Path) -> None:
    model, file = llama(tie_word_embeddings=tied), tmp_path / "new" / "model.gguf"
    write_gguf(model, tokenizer(), file, precision=precision)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2 and precision == "float16":
                parameter.copy_(parameter.half())
    torch.testing.assert_close(logits(load_model(file)), logits(model), rtol=0, atol=1e-5)
    read = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    assert read("abcdab")["input_ids"] == tokenizer()("abcdab")["input_ids"] == [23, 21]
    assert (read.eos_token, read.pad_token) == ("<eos>", "<pad>")
    assert read.chat_template == tokenizer().chat_template
    assert [path.name for path in file.parent.iterdir()] == ["model.gguf"]


def test_the_file_has_the_types_of_tokens_and_whether_texts_begin_with_one(tmp_path: Path) -> None:
    begins = tokenizer()
    begins.add_special_tokens({"bos_token": "<bos>"})
    begins.add_tokens(["word"])
    begins.backend_tokenizer.post_processor = processors.TemplateProcessing("<bos> $A", special_tokens=[("<bos>", 24)])
    vocabulary = vocabulary_of(begins, 27, None)
    # The pad and end tokens are no added ones here; of the three new ids one is special, one a word, one without text.
    assert vocabulary["tokens"][23:] == ["abcd", "<bos>", "word", "[PAD26]"]
    assert vocabulary["types"][22:] == [NORMAL, NORMAL, CONTROL, USER_DEFINED, UNUSED]
    write_gguf(llama(vocab_size=27), begins, tmp_path / "model.gguf")
    from gguf import GGUFReader

    fields = GGUFReader(tmp_path / "model.gguf").fields
    assert fields["tokenizer.ggml.add_bos_token"].contents() is True
    assert fields["tokenizer.ggml.bos_token_id"].contents() == 24


def test_a_policy_from_a_gguf_file_trains_and_saves_in_both_forms(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    write_gguf(llama(), tokenizer(), file, precision="float32")
    model = setups.ppox(policy_kwargs={"model": str(file), "lora": LORA, "value": "none"}, **GROUPS)
    model.learn(16)
    policy = model.policy
    assert isinstance(policy, LanguageModelPolicy)
    expected = policy.lm.logits(policy.lm.hidden(IDS, torch.ones_like(IDS, dtype=torch.bool))).detach()
    assert not torch.allclose(expected, logits(llama()), atol=1e-3)  # it has learned something
    policy.save_pretrained(tmp_path / "folder", tokenizer())
    policy.save_gguf(tmp_path / "trained.gguf", tokenizer(), precision="float32")
    for saved in (tmp_path / "folder", tmp_path / "trained.gguf"):
        torch.testing.assert_close(logits(load_model(saved)), expected, rtol=0, atol=1e-4)


GROUPS: dict[str, Any] = {
    "environment": setups.env(group_size=4),
    "rollout_buffer_kwargs": {"group_advantage": "rloo"},
    "compile": False,
}


def test_a_model_that_a_user_has_loaded_from_gguf_saves(tmp_path: Path) -> None:
    write_gguf(llama(), tokenizer(), tmp_path / "model.gguf")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="model.gguf", dtype=torch.float32)
    with pytest.raises(ValueError, match="not serializable"):
        loaded.save_pretrained(tmp_path / "refused")
    load_model(loaded).save_pretrained(tmp_path / "folder")
    torch.testing.assert_close(logits(load_model(tmp_path / "folder")), logits(loaded))


def test_what_cannot_be_written_is_refused_with_the_way_out(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    with pytest.raises(ValueError, match=r"GPT2LMHeadModel is not written as GGUF.*convert_hf_to_gguf"):
        write_gguf(tiny.model("gpt2"), tokenizer(), file)
    with pytest.raises(ValueError, match=r"has biases.*convert_hf_to_gguf"):
        write_gguf(llama(attention_bias=True), tokenizer(), file)
    with pytest.raises(ValueError, match=r"no byte-level BPE.*convert_hf_to_gguf"):
        write_gguf(llama(), words.tokenizer(), file)
    with pytest.raises(ValueError, match=r"ends in \.gguf"):
        write_gguf(llama(), tokenizer(), tmp_path / "model")
    with pytest.raises(ValueError, match=r"pass it as pre_tokenizer"):
        write_gguf(llama(), tokenizer(use_regex=False), file)
    with pytest.raises(ValueError, match=r"precision='int4': one of"):
        write_gguf(llama(), tokenizer(), file, precision="int4")
    with pytest.raises(ValueError, match="there is no such file"):
        load_model(file)
    assert not list(tmp_path.iterdir())


def test_the_splitting_of_smollm_is_known() -> None:
    assert (
        splitting({"pretokenizers": [{"type": "Digits", "individual_digits": True}, {"type": "ByteLevel"}]}) == "smollm"
    )
