"""Chats as text: by the model's own template, or in a plain form where it has none."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from pando.errors import BaseModelError, RequestError
from pando.interface import Message
from pando.model import sandbox

T = TypeVar("T")


class ChatTemplate:
    """A template, compiled once; any number of threads may render it.

    Args:
        source: the template.
        specials: names and texts of the special tokens (`bos_token`, ...) that it may use.

    Raises:
        BaseModelError: it cannot be compiled.
    """

    def __init__(self, source: str, specials: dict[str, str]) -> None:
        self._template = _guarded(lambda: sandbox.compile_template(source))
        self._specials = specials

    def render(self, messages: Sequence[Message], add_generation_prompt: bool = True) -> str:
        """The chat as one text.

        Raises:
            RequestError: the messages are no messages, too long, or refused by the template in its own words.
            BaseModelError: the template fails, or does what no template needs to do.
        """
        variables = {
            "messages": plain(messages),
            "add_generation_prompt": add_generation_prompt,
            "tools": None,
            "documents": None,
            **self._specials,
        }
        return _guarded(lambda: sandbox.render(self._template, **variables))


def plain_chat(messages: Sequence[Message], add_generation_prompt: bool = True) -> str:
    """The form for models without a template: "System: ...", "User: ...", "Assistant: ..." with blank lines between,
    and "Assistant:" at the end where an answer is wanted.
    """
    turns = [f"{str(m['role']).capitalize()}: {m['content']}" for m in plain(messages)]
    return "\n\n".join([*turns, "Assistant:"] if add_generation_prompt else turns)


def bare_chat(messages: Sequence[Message], end: str) -> str:
    """The form for models with an encoder, which know no turns: what is said, parted by blank lines, and each answer
    right behind what it answers, up to the token that ends it.
    """
    text = ""
    for message in plain(messages):
        answer = message["role"] == "assistant"
        text += f"{message['content']}{end}" if answer else f"\n\n{message['content']}" if text else message["content"]
    return text


def plain(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """The messages as plain JSON values, so that a template can reach no object of ours.

    Raises:
        RequestError: not a list of {"role": text, "content": ...}, or too long.
    """
    try:
        text = json.dumps(list(messages))
    except (TypeError, ValueError, RecursionError):
        raise RequestError("messages must be plain JSON values", "messages") from None
    if len(text) > sandbox.MOST:
        raise RequestError(f"messages have {len(text)} characters; the limit is {sandbox.MOST}", "messages")
    found: list[dict[str, Any]] = json.loads(text)
    if not found or not all(isinstance(m, dict) and isinstance(m.get("role"), str) and "content" in m for m in found):
        raise RequestError('messages must be a list of {"role": ..., "content": ...}, at least one', "messages")
    return found


def _guarded(run: Callable[[], T]) -> T:
    """Foreign code may fail in every way there is; each is one line."""
    try:
        return run()
    except sandbox.Refusal as error:
        raise RequestError(f"the model's chat template refuses these messages: {error}", "messages") from None
    except Exception as error:
        reason = str(error)[:300] or type(error).__name__
        raise BaseModelError(f"the model's chat template cannot be used: {reason}") from error
