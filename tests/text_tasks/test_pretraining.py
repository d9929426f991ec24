"""The models of the text tasks: trained once, stored completely or not at all."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers")

from text_tasks import copying, grid, pretraining, storage, walks
from text_tasks.pretraining import Pretrained
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel


def lines() -> tuple[str, ...]:
    return ("one two three", "two three one", "three one two") * 4


TINY = Pretrained("Tiny-v0", lines, vocabulary=300, positions=8, steps=2, width=8, layers=1, heads=1, batch_size=4)
ROOT = Path(__file__).parents[2]
PATH = os.pathsep.join(map(str, (ROOT, ROOT / "integrations", ROOT / "examples")))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SB3_PPO_EXT_CACHE_DIR", str(tmp_path))
    return tmp_path / "models"


def weights(model: PreTrainedModel) -> torch.Tensor:
    return torch.nn.utils.parameters_to_vector(model.parameters()).detach()


def test_the_second_start_loads_what_the_first_has_made(
    cache: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = TINY()
    printed = capsys.readouterr().out
    (folder,) = cache.iterdir()
    assert (
        printed.startswith("Tiny-v0: pretraining its language model")
        and str(folder) in printed
        and printed.count("\n") == 1
    )
    monkeypatch.setattr(pretraining, "pretrained", lambda recipe: pytest.fail("made again"))
    assert torch.equal(weights(first), weights(TINY()))
    assert capsys.readouterr().out == ""
    assert torch.equal(weights(first), weights(AutoModelForCausalLM.from_pretrained(folder)))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer("one two")["input_ids"] == TINY.tokenizer()("one two")["input_ids"]


def test_other_settings_or_another_text_are_another_model() -> None:
    others = [replace(TINY, steps=3), replace(TINY, seed=1), replace(TINY, corpus=lambda: lines()[:-1])]
    assert len({recipe.folder_name() for recipe in (TINY, *others)}) == 4
    assert replace(TINY).folder_name() == TINY.folder_name()


def test_pretraining_lowers_the_loss_and_no_steps_leave_the_drawn_weights(cache: Path) -> None:
    ids = torch.tensor([TINY.tokenizer()("one two three")["input_ids"]])

    @torch.no_grad()
    def loss(model: PreTrainedModel) -> float:
        log_p = model(input_ids=ids).logits[0, :-1].log_softmax(-1)
        return -float(log_p.gather(-1, ids[0, 1:, None]).mean())

    drawn = replace(TINY, steps=0)()
    assert torch.equal(weights(drawn), weights(pretraining.new_model(TINY)))
    assert not cache.exists()
    assert loss(replace(TINY, steps=60, learning_rate=1e-2)()) < 0.7 * loss(drawn)


def test_making_one_leaves_the_run_s_random_numbers_as_they_were() -> None:
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    TINY()
    assert torch.equal(torch.rand(3), expected)


def test_what_is_interrupted_leaves_nothing(cache: Path) -> None:
    def half(folder: Path) -> None:
        (folder / "config.json").write_text("{")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        storage.store("half", half)
    assert list(cache.iterdir()) == [] and storage.stored("half") is None


@pytest.mark.parametrize("damaged", [storage.SEAL, "model.safetensors"])
def test_a_folder_that_is_not_whole_is_made_again(damaged: str, cache: Path) -> None:
    first = weights(TINY())
    (folder,) = cache.iterdir()
    content = (folder / damaged).read_bytes()
    (folder / damaged).write_bytes(content[:-1])
    assert storage.stored(folder.name) is None
    assert torch.equal(weights(TINY()), first)
    assert storage.stored(folder.name) == folder and (folder / damaged).read_bytes() == content


def test_two_at_once_leave_the_first_one_s(cache: Path) -> None:
    def fast(folder: Path) -> None:
        (folder / "writer").write_text("first")

    def slow(folder: Path) -> None:
        storage.store("same", fast)
        (folder / "writer").write_text("second")

    assert (storage.store("same", slow) / "writer").read_text() == "first"
    assert [path.name for path in cache.iterdir()] == ["same"]


def test_without_a_folder_to_write_to_it_is_made_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("SB3_PPO_EXT_CACHE_DIR", str(tmp_path / "file"))  # no folder can be made below a file
    assert isinstance(TINY(), PreTrainedModel)
    assert "cannot be stored" in (printed := capsys.readouterr().out) and "SB3_PPO_EXT_CACHE_DIR" in printed


def test_a_line_longer_than_the_model_reads_is_refused() -> None:
    with pytest.raises(ValueError, match="Tiny-v0 has 14 tokens, positions=3"):
        replace(TINY, positions=3, vocabulary=258)()  # bytes only: 13 of them and the end


def test_tokenizers_are_the_same_in_every_process() -> None:
    # Otherwise a model would be given other tokens than it was trained on. The name has a digest of the tokenizer.
    code = (
        "from text_tasks import copying, grid, walks;"
        "print(*(module.MODEL.folder_name() for module in (copying, grid, walks)))"
    )
    environment = {**os.environ, "PYTHONPATH": PATH, "RAYON_NUM_THREADS": "1", "PYTHONHASHSEED": "7"}
    printed = subprocess.run(
        [sys.executable, "-c", code], env=environment, check=True, text=True, stdout=subprocess.PIPE
    ).stdout
    assert printed.split() == [module.MODEL.folder_name() for module in (copying, grid, walks)]
