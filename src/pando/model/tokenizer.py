"""Text to token ids and back, as the model's own `tokenizer.json` says; the chat template with it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer as RawTokenizer

from pando.errors import BaseModelError
from pando.interface import Message
from pando.model.checkpoint import read_json

if TYPE_CHECKING:
    from pando.model.chat import ChatTemplate

_SPECIALS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
MASK, SENTINEL = "<|mask|>", "<|sentinel_{}|>"  # as tokenizers that are trained here have them
MASKS = (MASK, "[MASK]", "<mask>")  # ours, BERT's, RoBERTa's
SENTINELS = ("<extra_id_{}>", SENTINEL)  # of T5, and ours
_WINDOW = 16  # tokens that a stream looks back
_BROKEN = "\ufffd"  # what bytes that are not (yet) a character decode to


class Tokenizer:
    """The tokenizer in a Hugging Face folder. Any number of threads may use it.

    Attributes:
        raw: the `tokenizers.Tokenizer` itself, without padding and truncation.
        eos_ids: tokens that end an answer, from generation_config.json, config.json and tokenizer_config.json.
        bos_id: the beginning-of-text token, if the model has one (whether it is added is the tokenizer's business).
        reads: an encoder reads what is encoded: what follows a text is another one, and chats have no turns.

    Raises:
        BaseModelError: a file is missing or damaged.
    """

    def __init__(self, folder: Path, reads: bool = False) -> None:
        path = folder / "tokenizer.json"
        try:
            self.raw = RawTokenizer.from_file(str(path))
        except Exception as error:  # the library raises plain Exception
            raise BaseModelError(f"{path} cannot be read as a tokenizer: {error}") from None
        self.raw.no_padding()  # files of trained models may carry the settings of their training
        self.raw.no_truncation()
        self._folder, self.reads = folder, reads
        settings = [_optional(folder / name) for name in ("generation_config.json", "config.json")]
        self._settings = _optional(folder / "tokenizer_config.json")
        self.specials = _special_texts(self._settings | _optional(folder / "special_tokens_map.json"))
        self.eos_ids = self._ends(settings)
        self.bos_id = self._id("bos_token")
        empty: list[int] = self.raw.encode("").ids
        self._adds_bos = bool(empty) and empty[0] == self.bos_id

    @property
    def vocab_size(self) -> int:
        """Number of tokens, added ones included (the model's own table may be longer)."""
        return int(self.raw.get_vocab_size(with_added_tokens=True))

    @property
    def has_template(self) -> bool:
        """Whether the model brings a chat template; otherwise `render_chat` uses the plain form."""
        return self._template is not None

    def encode(self, text: str, add_special: bool = True) -> list[int]:
        """Token ids of a text, with BOS and the like exactly where the tokenizer itself adds them (never if not
        `add_special`). Special tokens written out in the text are recognised."""
        ids: list[int] = self.raw.encode(text, add_special_tokens=add_special).ids
        return ids

    def encode_batch(self, texts: Sequence[str], add_special: bool = True) -> list[list[int]]:
        """`encode` of many texts, on all cores."""
        return [e.ids for e in self.raw.encode_batch_fast(list(texts), add_special_tokens=add_special)]

    def encode_continuations(self, context: str, context_ids: Sequence[int], texts: Sequence[str]) -> list[list[int]]:
        """The tokens that each text adds after `context`, whose own tokens are `context_ids`.

        They are those that `context + text` has beyond `context_ids`. Where the two melt into other tokens at the
        seam (or add none), or where the context is another model's to read, the text is tokenised alone.
        """
        if self.reads:
            return self.encode_batch(texts, add_special=False)
        ids, start = list(context_ids), len(context_ids)
        wholes = self.encode_batch([context + text for text in texts])
        return [
            whole[start:] if len(whole) > start and whole[:start] == ids else self.encode(text, add_special=False)
            for whole, text in zip(wholes, texts, strict=True)
        ]

    def cut(self, ids: Sequence[int], most: int) -> list[int]:
        """The head of what `encode` gave, at most so many tokens; what the tokenizer adds at the end of texts stays."""
        if len(ids) <= most:
            return list(ids)
        return [*ids[: max(0, most - len(self._tail))], *self._tail]

    def offsets(self, text: str) -> list[tuple[int, int]]:
        """Where each token of `encode(text)` begins and ends in `text`, in characters; (0, 0) for added specials."""
        found: list[tuple[int, int]] = self.raw.encode(text).offsets
        return found

    def decode(self, ids: Sequence[int], skip_special: bool = True) -> str:
        """The text of token ids, special tokens left out unless asked for."""
        return str(self.raw.decode(list(ids), skip_special_tokens=skip_special))

    def render_chat(self, messages: Sequence[Message], add_generation_prompt: bool = True) -> str:
        """The chat as a text for `encode`: by the model's template, else by `plain_chat`.

        A BOS that both the template writes and the tokenizer adds is left to the tokenizer.

        Raises:
            RequestError: these messages are refused.
            BaseModelError: the template is broken or attacks.
        """
        from pando.model.chat import bare_chat, plain_chat

        if self._template is None and self.reads:
            return bare_chat(messages, self.specials.get("eos_token", ""))
        if self._template is None:
            return plain_chat(messages, add_generation_prompt)
        text = self._template.render(messages, add_generation_prompt)
        return text.removeprefix(self.specials["bos_token"]) if self._adds_bos else text

    @property
    def begins(self) -> int | None:
        """The token that is put before every text, if there is one."""
        return self.bos_id if self._adds_bos else None

    @property
    def mask(self) -> str | None:
        """The token that stands for what an encoder is to tell, if there is one."""
        return self._known(self.specials.get("mask_token"), MASK)

    @property
    def sentinel(self) -> str | None:
        """The token that stands for the first span that an encoder-decoder is to write, if there is one."""
        return self._known(*(form.format(0) for form in SENTINELS))

    @property
    def template_source(self) -> str | None:
        """The text of the chat template, if the model brings one."""
        return _template_source(self._folder / "chat_template.jinja", self._settings)

    @cached_property
    def drops_space(self) -> bool:
        """Whether words begin with a space of their own, which a text's first word loses when it is decoded
        (SentencePiece)."""
        ids = self.encode("a", add_special=False)
        return bool(ids) and self.decode(ids) == "a" and str(self.raw.id_to_token(ids[0])).startswith("▁")

    @cached_property
    def _tail(self) -> list[int]:
        """What the tokenizer adds at the end of every text."""
        return self._around[1]

    @property
    def head(self) -> list[int]:
        """What the tokenizer adds at the beginning of every text."""
        return self._around[0]

    @cached_property
    def _around(self) -> tuple[list[int], list[int]]:
        bare, whole = self.encode("a", add_special=False), self.encode("a")
        place = next((i for i in range(len(whole)) if whole[i : i + len(bare)] == bare), len(whole))
        return whole[:place], whole[place + len(bare) :]

    @cached_property
    def _template(self) -> ChatTemplate | None:
        from pando.model.chat import ChatTemplate

        source = self.template_source
        return None if source is None else ChatTemplate(source, self.specials)

    def _known(self, *tokens: str | None) -> str | None:
        """The first of these that is a token."""
        return next((one for one in tokens if one and self.raw.token_to_id(one) is not None), None)

    def _id(self, name: str) -> int | None:
        text = self.specials.get(name)
        return None if text is None else self.raw.token_to_id(text)

    def _ends(self, settings: list[dict[str, Any]]) -> frozenset[int]:
        found = {self._id("eos_token")}
        for values in settings:
            given = values.get("eos_token_id")
            found |= set(given if isinstance(given, list) else [given])
        return frozenset(i for i in found if type(i) is int)


class Detokenizer:
    """Turns a stream of tokens into pieces of text that together are `decode` of all of them.

    A piece never ends inside a character: broken bytes at the end are held back, as they may still become one.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._done = 0  # characters of the text of `_ids` that have been given out

    def add(self, ids: Sequence[int]) -> str:
        """The text that becomes certain with these tokens."""
        self._ids += ids
        text = self._tokenizer.decode(self._ids)
        certain = len(text.rstrip(_BROKEN))
        piece = text[self._done : certain]
        self._done = max(self._done, certain)
        if self._done == len(text) and len(self._ids) > 2 * _WINDOW:
            # Only the last tokens bear on what follows, if they can be read alone: do not begin inside a character.
            tail = self._tokenizer.decode(self._ids[-_WINDOW:])
            if text.endswith(tail):
                self._ids, self._done = self._ids[-_WINDOW:], len(tail)
        return piece

    def finish(self) -> str:
        """What was held back, as it is."""
        piece = self._tokenizer.decode(self._ids)[self._done :]
        self._ids, self._done = [], 0
        return piece


def _optional(path: Path) -> dict[str, Any]:
    return read_json(path) if path.exists() else {}


def _special_texts(settings: dict[str, Any]) -> dict[str, str]:
    found = {}
    for name in _SPECIALS:
        value = settings.get(name)
        text = value.get("content") if isinstance(value, dict) else value
        if isinstance(text, str):
            found[name] = text
    return found


def _template_source(file: Path, settings: dict[str, Any]) -> str | None:
    if file.exists():
        return file.read_text(encoding="utf-8")
    source = settings.get("chat_template")
    if isinstance(source, list):  # several by name; the one for plain chat is "default"
        source = {t.get("name"): t.get("template") for t in source if isinstance(t, dict)}.get("default")
    return source if isinstance(source, str) else None
