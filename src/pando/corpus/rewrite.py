"""The stages that change text: normalising it, and masking personal data and secrets in it."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc


def normalised(text: pa.Array, form: Literal["NFC", "NFKC", "none"]) -> pa.Array:
    """One way to write the same text: Unicode form, "\\n" at line ends, no other control characters but tabs, no blanks
    at line ends, at most two blank lines together, nothing but text at both ends.
    """
    if form != "none" and not pc.all(pc.string_is_ascii(text)).as_py():
        wide = pc.invert(pc.string_is_ascii(text))
        # pyarrow's own kernel leaves combining marks apart (25.0), and Python's knows at a glance what needs nothing
        better = [unicodedata.normalize(form, one) for one in text.filter(wide).to_pylist()]
        text = pc.replace_with_mask(text, wide, pa.array(better, text.type))
    for pattern, instead in (
        (r"\r\n?|[\x{2028}\x{2029}\x{85}\x0b\x0c]", "\n"),
        (r"[\x00-\x08\x0b-\x1f\x7f-\x{9f}\x{feff}]+", ""),
        (r"[ \t\x{a0}]+\n", "\n"),
        (r"\n{4,}", "\n\n\n"),
    ):
        text = _replaced(text, pattern, instead)
    return pc.utf8_rtrim_whitespace(pc.utf8_ltrim(text, "\n"))


@dataclass(frozen=True)
class Mask:
    """One kind of personal data: what its texts look like, what no text without it has, what stands in its place."""

    pattern: str
    hint: str
    instead: str


_IPV4 = r"(?:25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
MASKS = {
    "secret": Mask(
        r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b|\bgh[pousr]_[A-Za-z0-9]{36,}\b|\bgithub_pat_[A-Za-z0-9_]{22,}\b"
        r"|\bglpat-[A-Za-z0-9_-]{20,}|\bxox[abprs]-[A-Za-z0-9-]{10,}|\bsk-[A-Za-z0-9_-]{20,}|\bAIza[0-9A-Za-z_-]{35}"
        r"|\beyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}"
        r"|-----BEGIN [A-Z ]*PRIVATE KEY-----[\s\S]+?-----END [A-Z ]*PRIVATE KEY-----",
        r"AKIA|ASIA|gh[pousr]_|github_pat_|glpat-|xox|sk-|AIza|eyJ|-----BEGIN",
        "<secret>",
    ),
    "email": Mask(
        r"\b[A-Za-z0-9][A-Za-z0-9._%+\-]*@[A-Za-z0-9](?:[A-Za-z0-9\-]*[A-Za-z0-9])?"
        r"(?:\.[A-Za-z0-9](?:[A-Za-z0-9\-]*[A-Za-z0-9])?)+\b",
        r"@[A-Za-z0-9]",
        "<email>",
    ),
    "ip": Mask(
        rf"\b(?:{_IPV4}\.){{3}}{_IPV4}\b|\b(?:[0-9A-Fa-f]{{1,4}}:){{7}}[0-9A-Fa-f]{{1,4}}\b"
        r"|\b(?:[0-9A-Fa-f]{1,4}:){2,6}(?::[0-9A-Fa-f]{1,4}){1,5}\b"
        r"|\b(?:[0-9A-Fa-f]{1,4}:){1,5}(?::[0-9A-Fa-f]{1,4}){2,6}\b",
        r"[0-9]\.[0-9]+\.|[0-9A-Fa-f]:[0-9A-Fa-f]+:[0-9A-Fa-f]+:|[0-9A-Fa-f]::[0-9A-Fa-f]",
        "<ip>",
    ),
    "phone": Mask(
        r"\+[1-9][0-9]{0,2}[ .\-]?(?:\([0-9]{1,4}\)[ .\-]?)?[0-9]{1,4}(?:[ .\-]?[0-9]{2,4}){2,4}\b"
        r"|\([0-9]{3}\)[ \-]?[0-9]{3}[ .\-][0-9]{4}\b|(^|[^0-9A-Za-z.\-])[0-9]{3}[.\-][0-9]{3}[.\-][0-9]{4}\b",
        r"\+[1-9]|\([0-9]{3}\)|[0-9]{3}[.\-][0-9]{3}[.\-][0-9]{4}",
        r"\1<phone>",  # what stands before a number without a country code is matched too, to see that it is the first
    ),
}


def masked(text: pa.Array, kinds: tuple[str, ...]) -> tuple[pa.Array, dict[str, pa.Array]]:
    """Texts with personal data replaced by its kind in angle brackets, and how often, by kind ([D] int32)."""
    counts: dict[str, pa.Array] = {}
    for kind in (kind for kind in MASKS if kind in kinds):  # secrets first: an address may stand in one
        mask = MASKS[kind]
        maybe = pc.match_substring_regex(text, mask.hint)
        some = pc.count_substring_regex(text.filter(maybe), mask.pattern).cast(pa.int32())
        counts[kind] = pc.replace_with_mask(pa.repeat(pa.scalar(0, pa.int32()), len(text)), maybe, some)
        has = pc.greater(counts[kind], 0)
        changed = pc.replace_substring_regex(text.filter(has), mask.pattern, mask.instead)
        text = pc.replace_with_mask(text, has, changed)
    return text, counts


def _replaced(text: pa.Array, pattern: str, instead: str) -> pa.Array:
    """Replaces only in the texts that have the pattern: rewriting all of them is what takes the time."""
    has = pc.match_substring_regex(text, pattern)
    if not pc.any(has).as_py():
        return text
    return pc.replace_with_mask(text, has, pc.replace_substring_regex(text.filter(has), pattern, instead))
