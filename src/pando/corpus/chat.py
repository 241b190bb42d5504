"""Conversations as ChatML: what stands in a turn cannot pass for another speaker."""

from __future__ import annotations

import re
import unicodedata
from typing import Any

from pando.corpus.bpe import CHAT_MARKS, TURN, TURN_END

_BETWEEN = re.compile("[\\x00-\\x1f\\x7f-\\x9f\\ufeff]+")  # what normalising takes out


def chat_text(turns: Any) -> tuple[str | None, str | None]:
    """(a conversation as ChatML, None), or (None, problem). Turns are mappings with `role` and `content`.

    A turn that spells one of ChatML's marks, or would once it is normalised, could pass for another speaker, so it is
    none.
    """
    if not isinstance(turns, list) or not turns:
        return None, "no turns"
    made = []
    for turn in turns:
        role, content = (turn.get(key) for key in ("role", "content")) if isinstance(turn, dict) else (None, None)
        if not isinstance(role, str) or not isinstance(content, str) or not role.isidentifier():
            return None, "no turns"
        if any(mark in text for mark in CHAT_MARKS for text in (content, _bare(content))):
            return None, "chat mark in a turn"
        made.append(f"{TURN}{role}\n{content}{TURN_END}\n")
    if not any(turn["role"] == "assistant" for turn in turns):
        return None, "no answer"
    return "".join(made), None


def _bare(text: str) -> str:
    """As the strictest normalisation may leave a text."""
    return _BETWEEN.sub("", unicodedata.normalize("NFKC", text))
