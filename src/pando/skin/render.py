"""A row as the base sees it. One code path for requests and for training rows.

The chat has one user turn: instruction, labels (where they are listed), and the input last, so that what all inputs
share comes first and is computed once. Demonstrations are earlier turns of the same chat, as the base was tuned to read
them; one turn that holds them all does worse (docs/ladder.md). A system turn appears only as the base's template
inserts it; a base without a template has the plain form of `render_chat`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol
from weakref import WeakKeyDictionary

from pando.interface import Message
from pando.skin.parts import Demonstration
from pando.task.rows import Output, one_text

if TYPE_CHECKING:
    from pando.skin.skin import Input, Skin


class Renderer(Protocol):
    """What rendering needs of a model; its tokenizer alone will do."""

    def render_chat(self, messages: Sequence[Message], *, add_generation_prompt: bool = True) -> str: ...


@dataclass(frozen=True)
class _Turns:
    """What a base's template puts after an input (up to where the answer begins), before an answer (a space, in the
    plain form) and after it (the end of a turn)."""

    after_input: str
    lead: str
    end: str


_turns: WeakKeyDictionary[Renderer, _Turns] = WeakKeyDictionary()


def render(skin: Skin, inputs: Mapping[str, str]) -> list[Message]:
    """The chat that ends with the input; the base is to speak next."""
    demonstrations: Sequence[Demonstration] = skin.demonstrations
    if skin.retrieval is not None and skin.retrieval.rows is not None:
        demonstrations = skin.retrieval.nearest(one_text(inputs))
    turns: list[Message] = []
    for shown in demonstrations:
        turns.append({"role": "user", "content": one_text(shown.inputs)})
        turns.append({"role": "assistant", "content": answer_text(shown.output)})
    turns.append({"role": "user", "content": one_text(inputs)})
    turns[0]["content"] = f"{_head(skin)}\n\n{turns[0]['content']}"
    if blank := skin.prompt.blank:  # the only one: inputs cannot bring their own
        turns = [{**turn, "content": _without(turn["content"], blank)} for turn in turns]
        turns[-1]["content"] += f"\n\n{blank}"
    return turns


def _without(text: str, mark: str) -> str:
    while mark in text:  # taking one out may make another
        text = text.replace(mark, "")
    return text


def context(skin: Skin, model: Renderer, inputs: Mapping[str, str]) -> str:
    """`render` as text, by the base's own template, up to where its answer begins."""
    return model.render_chat(render(skin, inputs), add_generation_prompt=True)


def answer_text(output: Output) -> str:
    """An answer as the base writes it: a label or text as it is, an object as JSON in one line."""
    return output if isinstance(output, str) else json.dumps(output, ensure_ascii=False)


def input_start(model: Renderer, prompt: str, text: str) -> int:
    """Where the input `text` begins in the prompt that `context` made of it; 0 where the template changed it."""
    start = len(prompt) - len(_turns_of(model).after_input) - len(text)
    return start if start > 0 and prompt.startswith(text, start) else 0


def reply(skin: Skin, model: Renderer, text: str, *, end: bool) -> str:
    """What follows a context when the base answers `text`, up to the end of its turn if `end`."""
    turns = _turns_of(model)
    return turns.lead + skin.prompt.lead + text + (turns.end if end else "")


def training_example(skin: Skin, example: Input, model: Renderer) -> tuple[str, str]:
    """A labelled row for training: the very context of its requests, and the answer with the end of the turn."""
    from pando.task.rows import Example

    assert isinstance(example, Example) and example.output is not None
    return context(skin, model, example.inputs), reply(skin, model, answer_text(example.output), end=True)


def _head(skin: Skin) -> str:
    if not skin.prompt.options:
        return skin.prompt.instruction
    return f"{skin.prompt.instruction}\nOptions: {', '.join(skin.labels)}"


def _turns_of(model: Renderer) -> _Turns:
    known = _turns.get(model)
    if known is None:
        known = _turns[model] = _find_turns(model)
    return known


def _find_turns(model: Renderer) -> _Turns:
    mark = "MARK"
    asked: Message = {"role": "user", "content": mark}
    answered: Message = {"role": "assistant", "content": mark}
    prompt = model.render_chat([asked], add_generation_prompt=True)
    spoken = model.render_chat([asked, answered], add_generation_prompt=False)
    before, _, end = spoken.rpartition(mark)
    if not end.strip():
        # no end token: a turn ends where the next one begins
        more = model.render_chat([asked, answered, asked], add_generation_prompt=False)
        end = more.rpartition(mark)[0].rpartition(mark)[2]
    return _Turns(
        prompt.rpartition(mark)[2], before.removeprefix(prompt) if before.startswith(prompt) else "", end.rstrip()
    )
