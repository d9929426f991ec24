"""What stands between responses, by chat templates of several kinds and in plain text; sampled ids stay."""

from __future__ import annotations

from typing import Any

import pytest

from sb3_ppo_ext.language.envs.turns.transcripts import ChatTurns, PlainTurns, turns_of
from sb3_ppo_ext.language.envs.vocabulary import Vocabulary
from tests.language import chats, words


def chat_turns(template: str = chats.CHAT, system: str | None = None) -> ChatTurns:
    return ChatTurns(Vocabulary.of(chats.tokenizer(template)), system)


def decoded(ids: list[int]) -> str:
    text: str = chats.tokenizer().decode(ids)
    return text


def test_a_conversation_has_the_ids_of_the_template_over_all_of_it() -> None:
    turns, tokenizer = chat_turns(system="Be brief."), chats.tokenizer()
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Guess."}]
    ids = turns.opening("Guess.")
    for answer, reply in (("5", "higher"), ("7", "lower")):
        ids += [*tokenizer(answer)["input_ids"], chats.EOS, *turns.between(reply, ended=True)]
        messages += [{"role": "assistant", "content": answer}, {"role": "user", "content": reply}]
    expected = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]
    assert ids == expected


def test_a_response_that_was_cut_off_is_ended_by_the_template() -> None:
    turns = chat_turns()
    assert decoded(turns.between("no", ended=False)) == "<|end|>\n<|start|>user\nno<|end|>\n<|start|>assistant\n"
    assert decoded(turns.between("no", ended=True)) == "\n<|start|>user\nno<|end|>\n<|start|>assistant\n"
    # A reply that begins with what ends a response does not pass for that end.
    without = chat_turns("{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}[assistant]")
    assert decoded(without.between("no", ended=True)) == "[user]no[assistant]"
    assert decoded(without.between("no", ended=False)) == "<|end|>[user]no[assistant]"


def test_results_of_tools_follow_the_call_of_their_name() -> None:
    results = [{"role": "tool", "name": "add", "content": "3"}, {"role": "tool", "name": "add", "content": "4"}]
    expected = "".join(f"<|start|>user\n<tool_response>{value}</tool_response><|end|>\n" for value in (3, 4))
    assert decoded(chat_turns().between(results, ended=True)) == f"\n{expected}<|start|>assistant\n"
    # A template that shows no calls gets the results after an ordinary answer.
    plain = chat_turns("{% for m in messages %}{{ m.role }}:{{ m.content }}<|end|>{% endfor %}")
    assert decoded(plain.between(results, ended=True)) == "tool:3<|end|>tool:4<|end|>"


def test_plain_text_has_the_turns_format_around_replies() -> None:
    turns = PlainTurns(Vocabulary.of(chats.tokenizer(None)), "\nGame: {reply}\nYou:")
    assert decoded(turns.opening("Guess.")) == "Guess.\nYou:"
    assert decoded(turns.between("higher", ended=True)) == "\nGame: higher\nYou:"
    assert turns.between("higher", ended=False)[0] == chats.EOS


def test_a_template_that_begins_every_text_adds_nothing_between_turns() -> None:
    tokenizer = words.tokenizer(begins=True, chat=True)
    turns = ChatTurns(Vocabulary.of(tokenizer), None)
    assert tokenizer.decode(turns.between("go left", ended=True)) == "here go left now"  # "user" is no word of it
    assert tokenizer.bos_token_id not in turns.between("go left", ended=True)


REFUSED: dict[str, dict[str, Any]] = {
    "chat=True: the tokenizer has no chat_template": {"chat": True},
    "system='Be brief': without a chat template": {"system": "Be brief"},
    "turn_format='and'": {"turn_format": "and"},
}


@pytest.mark.parametrize("message", REFUSED)
def test_formats_that_do_not_fit_the_tokenizer_are_refused(message: str) -> None:
    options = {"chat": None, "system": None, "turn_format": "{reply}", **REFUSED[message]}
    with pytest.raises(ValueError, match=message):
        turns_of(Vocabulary.of(chats.tokenizer(None)), **options)


def test_words_that_are_no_text_and_templates_that_forget_answers_are_named() -> None:
    with pytest.raises(ValueError, match="the environment writes 3: a text or a list of chat messages"):
        chat_turns().between(3, ended=True)
    with pytest.raises(ValueError, match="leaves out the answers of earlier turns"):
        chat_turns("{{ messages[-1].content }}").between("no", ended=True)
