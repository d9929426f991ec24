"""Prompts with their columns in any table; chats as Arrow keeps them, with tools."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from sb3_ppo_ext.language import PromptVecEnv
from tests.language.words import tokenizer

GO, LEFT, RIGHT, STAY = 3, 4, 5, 6
ROWS = [{"prompt": "go left", "answer": 1}, {"prompt": "stay", "answer": 2}, {"prompt": "right go go", "answer": 3}]


class Dataset:
    """What ``datasets.Dataset`` has of a table: names, a length, and lazy columns."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.rows, self.column_names = rows, list(rows[0])

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, name: str) -> Any:
        return tuple(row[name] for row in self.rows)


class IterableDataset:
    column_names = None


class DatasetDict(dict[str, Any]):
    column_names: dict[str, list[str]] = {"train": ["prompt"], "test": ["prompt"]}  # noqa: RUF012  # a stand-in


def reward(prompts: list[str], responses: list[str], answer: list[int]) -> list[int]:
    return answer


def env_of(prompts: Any, reward_fn: Any = reward, words: Any = None, **options: Any) -> PromptVecEnv:
    return PromptVecEnv(prompts, reward_fn, words or tokenizer(), n_envs=3, max_new_tokens=2, shuffle=False, **options)


def file_of(folder: Path, rows: list[Any]) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    return path


TABLES: dict[str, Callable[[Path], Any]] = {
    "rows": lambda folder: ROWS,
    "Dataset": lambda folder: Dataset(ROWS),
    "DataFrame, shuffled": lambda folder: pd.DataFrame(ROWS, index=[2, 0, 1]),
    "path": lambda folder: file_of(folder, ROWS),
    "name of a file": lambda folder: str(file_of(folder, ROWS)),
}


@pytest.mark.parametrize("table", TABLES)
def test_a_table_has_prompts_and_their_columns(table: str, tmp_path: Path) -> None:
    env = env_of(TABLES[table](tmp_path))
    env.reset()
    assert env.step([[GO, 1]] * 3)[1].tolist() == [1, 2, 3]  # type: ignore[arg-type]  # an array will do
    assert env.task.source.texts == ["go left", "stay", "right go go"]


def test_the_prompts_may_be_in_a_column_of_another_name() -> None:
    rows = [{"question": row["prompt"], "answer": row["answer"]} for row in ROWS]
    assert env_of(rows, prompt_column="question").task.source.texts[1] == "stay"


BAD: dict[str, tuple[Any, dict[str, Any]]] = {
    "the table has no column 'question' of prompts; its columns are 'prompt', 'answer'": (
        ROWS,
        {"prompt_column": "question"},
    ),
    "row 1 is 'go'; a mapping": ([ROWS[0], "go"], {}),
    "several splits; pass one of them: 'train', 'test'": (DatasetDict(), {}),
    r"which has no length: pass its first rows, as list\(dataset.take\(n\)\)": (IterableDataset(), {}),
    r"columns\['answr'\]: no function of reward_fn has a parameter": (["go"], {"columns": {"answr": [1]}}),
}


@pytest.mark.parametrize("message", BAD)
def test_what_is_no_table_is_refused(message: str) -> None:
    prompts, options = BAD[message]
    with pytest.raises(ValueError, match=message):
        env_of(prompts, **options)


def test_a_broken_line_of_a_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "go"}\n{"prompt"\n')
    with pytest.raises(ValueError, match=r"rows.jsonl, line 2: .*one JSON object per line"):
        env_of(path)


# A template as of chat models with tools: it fails at an entry that is there and None.
TEMPLATE = (
    "{% for t in tools or [] %}{{ t.name }} {% if 'more' in t %}{{ t.more + 'x' }}{% endif %}{% endfor %}"
    "{% for m in messages %}{{ m.role }} "
    "{% if 'tool_calls' in m %}{% for c in m.tool_calls %}{{ c.name }} {% endfor %}{% endif %}"
    "{% if 'content' in m %}{{ m.content + ' ' }}{% endif %}{% endfor %}now"
)
CALL = {"role": "left", "content": None, "tool_calls": [{"name": "stay", "id": None}]}
TALK = [{"role": "go", "content": "right", "tool_calls": None}, CALL, {"role": "here", "content": "go"}]


def ids_of_chat(messages: Any, **options: Any) -> list[int]:
    words = tokenizer(chat=True)
    words.chat_template = TEMPLATE
    env = env_of([{"prompt": messages, "answer": 0, **options.pop("row", {})}], words=words, **options)
    ids: list[int] = env.task.source.ids[0].tolist()
    return ids


def test_entries_that_arrow_fills_in_are_no_entries() -> None:
    assert ids_of_chat(TALK) == [GO, RIGHT, LEFT, STAY, 7, GO, 13]


def test_content_in_parts_is_joined() -> None:
    parts = [{"type": "text", "text": "go "}, {"type": "text", "text": "left", "image": None}]
    assert ids_of_chat([{"role": "stay", "content": parts}]) == [STAY, GO, LEFT, 13]


@pytest.mark.parametrize("form", [list, json.dumps])
def test_tools_reach_the_template_by_argument_or_by_column(form: Callable[[Any], Any]) -> None:
    tools = form([{"name": "right", "more": None}])
    expected = [RIGHT, GO, LEFT, 13]
    talk = [{"role": "go", "content": "left"}]
    assert ids_of_chat(talk, tools=tools) == ids_of_chat(talk, row={"tools": tools}) == expected


def test_a_template_that_fails_names_the_prompt() -> None:
    with pytest.raises(ValueError, match=r"prompt 0: the tokenizer's chat template failed with TypeError"):
        ids_of_chat([{"role": "go", "content": 3}])


def test_tools_that_are_no_list_are_refused() -> None:
    for tools, message in (("no json", "are text that is no JSON"), ({"name": "go"}, "a list of functions")):
        with pytest.raises(ValueError, match=f"the tools of prompt 0 {message}|tools of prompt 0 are.*{message}"):
            ids_of_chat([{"role": "go", "content": "left"}], row={"tools": tools})
