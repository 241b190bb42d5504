"""Words of many documents at once: flat arrays instead of lists, hashed so that n-grams are arithmetic.

Two ways to find words: `spaced` splits at white space and leaves words as they stand, as the published rules count
them; `plain` first drops case, punctuation and symbols and sets characters of scripts without spaces apart, as
comparing documents needs it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]
PIECE_BYTES = 1_000_000
_BASE = np.uint64(0x9E3779B97F4A7C15)
# scripts that write no spaces between words: each character stands for a word
_UNSPACED = r"([\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}])"


_COMMON_MARKS = r"[\x{a0}\x{2000}-\x{206f}]+"  # of these none is a letter, mark or digit
# each ASCII byte as `normal` spells it; parts of other characters stay
_SPELLING = np.array(
    [byte if byte > 127 else ord(chr(byte).lower()) if chr(byte).isalnum() else 32 for byte in range(256)], np.uint8
)


@dataclass(frozen=True)
class Words:
    """The words of D documents end to end.

    Attributes:
        word: [W] strings.
        code: [W] int32, place of each word among the distinct ones.
        distinct: [V] the distinct words.
        start: [D + 1] where each document's words begin, and the end.
    """

    word: pa.Array
    code: npt.NDArray[np.int32]
    distinct: pa.Array
    start: I64

    @property
    def count(self) -> I64:
        """[D] words of each document."""
        return np.diff(self.start)

    def document(self) -> npt.NDArray[np.int32]:
        """[W] the document of each word."""
        return np.repeat(np.arange(len(self.start) - 1, dtype=np.int32), self.count)

    def hashes(self) -> U64:
        """[W] a 64-bit hash of each word (BLAKE2b), the same on every machine."""
        made = b"".join(hashlib.blake2b(w.encode(), digest_size=8).digest() for w in self.distinct.to_pylist())
        return np.frombuffer(made, "<u8").astype(np.uint64)[self.code] if len(self.code) else np.zeros(0, np.uint64)

    def of_distinct(self, values: Any) -> Any:
        """[W] a value of each distinct word ([V]) given to every occurrence."""
        return np.asarray(values)[self.code]


def spaced(text: pa.Array) -> Words:
    """Words as white space parts them."""
    return _split(pc.utf8_split_whitespace(text))


def plain(text: pa.Array) -> Words:
    """Words in lower case without punctuation and symbols."""
    return _split(pc.split_pattern(normal(text), " "))


def pieces(text: pa.Array) -> list[pa.Array]:
    """The texts in runs of about 1 MB: working arrays of that size stay in the processor's cache."""
    ends = np.cumsum(pc.binary_length(text).to_numpy(zero_copy_only=False), dtype=np.int64)
    run = (ends - 1) // PIECE_BYTES
    first = np.flatnonzero(np.concatenate([[True], run[1:] != run[:-1]])) if len(run) else np.zeros(1, np.int64)
    return [text.slice(a, b - a) for a, b in pairwise([*first.tolist(), len(text)])]


def normal(text: pa.Array) -> pa.Array:
    """Texts as `plain` compares them: lower case, words of letters, marks and digits parted by one space."""
    return pa.concat_arrays([_normal(piece.cast(pa.large_string())) for piece in pieces(text)])


def _normal(text: pa.Array) -> pa.Array:
    # most texts that are not ASCII are so for their quotation marks and dashes alone
    wide = pc.invert(pc.string_is_ascii(text))
    text = pc.replace_with_mask(text, wide, pc.replace_substring_regex(text.filter(wide), _COMMON_MARKS, " "))
    wide = pc.invert(pc.string_is_ascii(text))
    apart = pc.replace_substring_regex(pc.utf8_lower(text.filter(wide)), _UNSPACED, r" \1 ")
    made = _ascii_normal(pc.replace_with_mask(text, wide, apart))
    words = pc.replace_substring_regex(made.filter(wide), r"[^\p{L}\p{M}\p{N} ]+", " ")  # no ASCII one is left
    words = pc.utf8_trim(pc.replace_substring_regex(words, "  +", " "), " ")
    return pc.replace_with_mask(made, wide, words)


def _ascii_normal(text: pa.Array) -> pa.Array:
    """`normal` of what is ASCII in texts, on the bytes of all of them at once."""
    offsets = np.frombuffer(text.buffers()[1], np.int64)[text.offset : text.offset + len(text) + 1]
    if offsets[-1] == offsets[0]:
        return pa.array([""] * len(text), pa.large_string())
    data = _SPELLING[np.frombuffer(text.buffers()[2], np.uint8)[offsets[0] : offsets[-1]]]
    offsets = offsets - offsets[0]
    blank = data == 32
    dropped = blank.copy()
    dropped[1:] &= blank[:-1]
    begins = offsets[:-1][np.diff(offsets) > 0]
    dropped[begins] = blank[begins]
    ends = offsets - np.searchsorted(np.flatnonzero(dropped), offsets)
    made = pa.LargeStringArray.from_buffers(len(text), pa.py_buffer(ends), pa.py_buffer(data[~dropped]))
    return pc.ascii_trim(made, " ")


def ngrams(hashes: U64, start: I64, n: int) -> tuple[U64, npt.NDArray[np.bool_]]:
    """Hashes of the n-grams that begin at each word.

    Returns:
        [W] hashes, and [W] whether the n words lie within one document.
    """
    size = len(hashes)
    made = hashes.copy()
    for step in range(1, n):
        made[: size - step] *= _BASE
        made[: size - step] += hashes[step:]
    left = np.repeat(start[1:], np.diff(start)) - np.arange(size)
    return mixed(made), left >= n


def mixed(values: U64) -> U64:
    """Every bit of a value spread over all bits (the finaliser of MurmurHash3)."""
    values = values ^ (values >> np.uint64(33))
    values = values * np.uint64(0xFF51AFD7ED558CCD)
    values = values ^ (values >> np.uint64(33))
    values = values * np.uint64(0xC4CEB9FE1A85EC53)
    return values ^ (values >> np.uint64(33))


def mixed_number(value: int) -> np.uint64:
    """`mixed` of one number."""
    return np.uint64(mixed(np.array([value], np.uint64))[0])


def digest(text: bytes) -> bytes:
    """128 bits that stand for a text (BLAKE2b)."""
    return hashlib.blake2b(text, digest_size=16).digest()


def _split(lists: pa.Array) -> Words:
    offsets = lists.offsets.to_numpy().astype(np.int64)
    flat = lists.values.slice(offsets[0], offsets[-1] - offsets[0])
    offsets = offsets - offsets[0]
    filled = np.asarray(pc.greater(pc.binary_length(flat), 0))
    if not filled.all():  # white space at the ends leaves empty words
        offsets = np.concatenate([[0], np.cumsum(filled)])[offsets]
        flat = flat.filter(pa.array(filled))
    coded = pc.dictionary_encode(flat)
    return Words(flat, coded.indices.to_numpy(), coded.dictionary, offsets)
