"""How a base makes one vector of a text: what a sentence encoder's own files say (sentence-transformers)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pando.errors import BaseModelError

MODULES, PROMPTS = "modules.json", "config_sentence_transformers.json"
FILES = (MODULES, "sentence_bert_config.json", PROMPTS, "1_Pooling/config.json")
_POOLINGS: dict[str, Literal["mean", "first", "last"]] = {
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_cls_token": "first",
    "pooling_mode_lasttoken": "last",
}
_KNOWN = {"Transformer", "Pooling", "Normalize"}


@dataclass(frozen=True)
class Embedding:
    """How texts become vectors; they are brought to unit length in any case.

    Attributes:
        pooling: the mean of the last hidden states, that of the first token, or of the last one.
        max_tokens: what the encoder was trained for, or None.
        prompt: stands before every text.
        query, document: stand before a query and before what is searched.
        lower: whether texts are brought to lower case before.
        known: whether the base's files say all this.
    """

    pooling: Literal["mean", "first", "last"] = "mean"
    max_tokens: int | None = None
    prompt: str = ""
    query: str = ""
    document: str = ""
    lower: bool = False
    known: bool = False


def read_embedding(folder: Path) -> Embedding:
    """The settings in a base's folder; the mean where it is no sentence encoder.

    Raises:
        BaseModelError: a file is damaged, or asks for something that is not supported; names it.
    """
    if not (folder / MODULES).is_file():
        return Embedding()
    kinds = [str(module.get("type", "")).rsplit(".", 1)[-1] for module in _json(folder / MODULES, list)]
    if unknown := [kind for kind in kinds if kind not in _KNOWN]:
        raise BaseModelError(f"{folder / MODULES}: {', '.join(unknown)} is not supported (only {', '.join(_KNOWN)})")
    pooling: Literal["mean", "first", "last"] = "mean"
    path, spared = folder / "1_Pooling" / "config.json", False
    if "Pooling" in kinds:
        switches = _json(path, dict)
        spared = switches.get("include_prompt") is False
        chosen = [name for name, on in switches.items() if name.startswith("pooling_mode_") and on]
        if len(chosen) != 1 or chosen[0] not in _POOLINGS:
            raise BaseModelError(f"{path}: {' and '.join(chosen) or 'no pooling'} is not supported")
        pooling = _POOLINGS[chosen[0]]
    how = _json(folder / "sentence_bert_config.json", dict)
    size = how.get("max_seq_length")
    more = _json(folder / PROMPTS, dict)
    prompts, default = more.get("prompts") or {}, more.get("default_prompt_name")
    if not isinstance(prompts, dict) or not all(isinstance(prompt, str) for prompt in prompts.values()):
        raise BaseModelError(f"{folder / PROMPTS}: prompts is {prompts!r}; expected a text under each name")
    if default is not None and not (isinstance(default, str) and default in prompts):
        raise BaseModelError(f"{folder / PROMPTS}: default_prompt_name is {default!r}, which is not one of its prompts")
    usual = prompts[default] if default is not None else ""
    query, document = (
        next((prompts[name] for name in names if name in prompts), usual)
        for names in (("query",), ("document", "passage"))
    )
    if spared and (usual or query or document):
        raise BaseModelError(f"{path}: include_prompt false is not supported where texts have prompts")
    limit, lower = size if type(size) is int else None, how.get("do_lower_case") is True
    return Embedding(pooling, limit, usual, query, document, lower, known=True)


def embedding_files(pooling: Literal["mean", "first", "last"]) -> dict[str, Any]:
    """The files that say so, and that vectors have unit length, by name."""
    kinds = [{"type": f"sentence_transformers.models.{kind}"} for kind in ("Transformer", "Pooling", "Normalize")]
    mode = next(name for name, known in _POOLINGS.items() if known == pooling)
    return {MODULES: kinds, "1_Pooling/config.json": {mode: True}}


def _json(path: Path, kind: type) -> Any:
    if not path.is_file():
        return kind()
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BaseModelError(f"{path} is not valid JSON ({error}); fetch the model again") from None
    if not isinstance(found, kind):
        raise BaseModelError(f"{path} does not hold a JSON {'list' if kind is list else 'object'}")
    return found
