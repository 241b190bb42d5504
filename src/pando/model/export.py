"""Writing whole base folders: of a model that was trained here, and of any base in another dtype."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pando.errors import BaseModelError
from pando.files import atomic_dir
from pando.model.base import BaseModel
from pando.model.card import Card
from pando.model.checkpoint import read_json, save_model
from pando.model.sentence import FILES as SENTENCE_FILES
from pando.model.tokenizer import Tokenizer

if TYPE_CHECKING:
    from pando.model.transformer import Transformer

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")
_TURN_END = "<|im_end|>"  # ends an answer where the chat template is ChatML
CARD = "README.md"
HF_FILES = ("*.json", "*.safetensors", "*.jinja", "1_Pooling", CARD)  # names in a folder that is written here


def write_base(folder: Path, model: Transformer, tokenizer_folder: Path, card: Card) -> None:
    """Writes a finished base: config.json, safetensors, tokenizer, generation_config.json and README.md, whole or not
    at all. `pando adapt`, `pando serve`, transformers and vLLM open it.

    Training reads every document after the token that ends documents. A tokenizer that adds nothing of its own is
    therefore written so that it puts that token (its eos_token) before every text, as its bos_token; where an encoder
    reads, after it, as it ends documents there.

    Args:
        folder: takes the place of what is there.
        model: its weights are written in their own dtype.
        tokenizer_folder: where tokenizer.json and tokenizer_config.json are, such as a folder of shards.
        card: what README.md says.

    Raises:
        BaseModelError: there is no tokenizer, or it has more tokens than the model.
        PandoError: the folder cannot be written; what was there stays.
    """
    tokenizer = Tokenizer(tokenizer_folder)
    if tokenizer.vocab_size > model.config.vocab_size:
        raise BaseModelError(
            f"{tokenizer_folder / 'tokenizer.json'} has {tokenizer.vocab_size} tokens and the model "
            f"{model.config.vocab_size}: it is not the tokenizer that the model was trained with"
        )
    with atomic_dir(folder) as new:
        copy_tokenizer(tokenizer_folder, new)
        _mark_as_trained(new, model.config.causal)
        ids = _token_ids(Tokenizer(new))
        if model.config.encoder is not None:
            ids["decoder_start_token_id"] = model.config.start_token
        save_model(model, new, ids)
        (new / "generation_config.json").write_text(json.dumps(ids, indent=1), encoding="utf-8")
        (new / CARD).write_text(card.text(), encoding="utf-8")


def write_hf(base: BaseModel, folder: Path, dtype: str = "float32") -> None:
    """Writes a base as a Hugging Face folder: its weights as `dtype` (a float of torch's), all else as it is.

    Raises:
        BaseModelError: the base is damaged.
        PandoError: the folder cannot be written; what was there stays.
    """
    import torch

    card = base.folder / CARD
    told = card.read_text(encoding="utf-8") if card.is_file() else None
    write_like(base, folder, base.module(dtype=getattr(torch, dtype)), told)


def write_like(base: BaseModel, folder: Path, model: Transformer, card: str | None) -> None:
    """Writes a model made of a base as a Hugging Face folder, with the base's tokenizer, token ids and (of a sentence
    encoder) pooling and prompts as they are.

    Raises:
        PandoError: the folder cannot be written; what was there stays.
    """
    with atomic_dir(folder) as new:
        save_model(model, new, _copied_ids(base))
        copy_tokenizer(base.folder, new)
        for name in filter(lambda name: (base.folder / name).is_file(), SENTENCE_FILES):
            (new / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(base.folder / name, new / name)
        if card is not None:
            (new / CARD).write_text(card, encoding="utf-8")


def licence_of(base: BaseModel) -> str | None:
    """The licence that the base names: its own record, else the head of its model card."""
    if base.identity.licence:
        return base.identity.licence
    card = base.folder / CARD
    if not card.is_file():
        return None
    for line in card.read_text(encoding="utf-8").split("\n---", 1)[0].splitlines():
        if line.startswith("license:"):
            return line.removeprefix("license:").strip().strip("\"'") or None
    return None


def _copied_ids(base: BaseModel) -> dict[str, Any]:
    """The token ids of a base's config.json."""
    old = read_json(base.folder / "config.json")
    return {key: old[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id") if old.get(key) is not None}


def copy_tokenizer(source: Path, target: Path) -> None:
    """Copies the files of a tokenizer, and how it ends texts."""
    for name in (*_TOKENIZER_FILES, "generation_config.json"):
        if (source / name).is_file():
            shutil.copyfile(source / name, target / name)


def _mark_as_trained(folder: Path, before: bool) -> None:
    """Lets the tokenizer in `folder` put the token that ends documents before or after every text, if it adds nothing
    so far."""
    path, settings_path = folder / "tokenizer.json", folder / "tokenizer_config.json"
    raw, tokenizer = read_json(path), Tokenizer(folder)
    end = tokenizer.specials.get("eos_token")
    if raw.get("post_processor") is not None or end is None:
        return
    mark = {"SpecialToken": {"id": end, "type_id": 0}}
    first, second = ({"Sequence": {"id": name, "type_id": i}} for i, name in enumerate("AB"))
    raw["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [mark, first] if before else [first, mark],
        "pair": [mark, first, second] if before else [first, second, mark],
        "special_tokens": {end: {"id": end, "ids": [tokenizer.raw.token_to_id(end)], "tokens": [end]}},
    }
    path.write_text(json.dumps(raw, ensure_ascii=False), encoding="utf-8")
    if not before:
        return
    for one in (settings_path, folder / "special_tokens_map.json"):
        if one.is_file():
            one.write_text(json.dumps(read_json(one) | {"bos_token": end}, indent=1), encoding="utf-8")


def _token_ids(tokenizer: Tokenizer) -> dict[str, Any]:
    """Token ids for config.json and generation_config.json: what begins, pads and ends a text, and ends an answer."""
    named = {name: tokenizer.specials.get(f"{name}_token", "") for name in ("bos", "eos", "pad")}
    found: dict[str, Any] = {f"{name}_token_id": tokenizer.raw.token_to_id(text) for name, text in named.items()}
    turn = tokenizer.raw.token_to_id(_TURN_END) if tokenizer.has_template else None
    ends = sorted({i for i in (found["eos_token_id"], turn) if i is not None})
    found["eos_token_id"] = ends[0] if len(ends) == 1 else ends or None
    return {key: value for key, value in found.items() if value is not None}
