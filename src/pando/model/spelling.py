"""The bytes that single tokens stand for. Their concatenation is the text, where `decode` works only on whole texts."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from tokenizers import Tokenizer as RawTokenizer

_BYTE = re.compile(r"<0x([0-9A-F]{2})>")


class Spelling:
    """Bytes of the tokens of one tokenizer: byte-level BPE (GPT-2) or pieces with "▁" and byte fallback (Llama)."""

    def __init__(self, raw: RawTokenizer) -> None:
        self._raw = raw
        self._added = {id_: token.content.encode() for id_, token in raw.get_added_tokens_decoder().items()}
        decoder = json.dumps(json.loads(raw.to_str()).get("decoder"))
        self._bytes = _byte_level() if '"ByteLevel"' in decoder else None

    def __call__(self, ids: Sequence[int]) -> list[bytes]:
        """Bytes of each token; special tokens are spelled by name, ids that are no token are empty."""
        return [self._added[id_] if id_ in self._added else self._piece(self._raw.id_to_token(id_)) for id_ in ids]

    def _piece(self, token: str | None) -> bytes:
        if token is None:
            return b""
        if self._bytes is not None:
            return b"".join(self._bytes.get(character) or character.encode() for character in token)
        if byte := _BYTE.fullmatch(token):
            return bytes([int(byte[1], 16)])
        return token.replace("▁", " ").encode()


def _byte_level() -> dict[str, bytes]:
    """Which byte each character of GPT-2's alphabet stands for: printable ones themselves, the others from 256 on."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    characters = printable + [256 + place for place in range(len(others))]
    return {chr(character): bytes([byte]) for character, byte in zip(characters, printable + others, strict=True)}
