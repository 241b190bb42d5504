"""Text to tokens: Hugging Face tokenizers, or a faster library whose ids are proved equal on the spot.

The fast path is taken only after it gave the same ids as `tokenizers` for texts chosen to be awkward and for the
beginnings of documents of the part at hand; a document whose text spells a special token always takes the slow one,
where such a text is text and nothing special.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pando.corpus.bpe import CHAT_MARKS, END
from pando.errors import DataError
from pando.files import atomic_write, content_hash

Encode = Callable[[Sequence[str]], list[npt.NDArray[np.uint32]]]
PROOF, PROOF_CHARACTERS = 16, 2000  # documents of each part whose beginnings both libraries encode
AWKWARD = (
    "",
    " ",
    "\n\n\n  \t x",
    "I'LL we'Ve don't 'tis",
    "12345678 1 22 333 4444 \u0663\u0664 \u00bd \u2460",
    "na\u00efve caf\u00e9 e\u0301 \u1e9b\u0323 \ufb01",
    "\u4f60\u597d\u4e16\u754c \u3053\u3093\u306b\u3061\u306f \u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35 \ud55c\uad6d\uc5b4",
    "\u0939\u093f\u0928\u094d\u0926\u0940 \u0627\u0644\u0639\u0631\u0628\u064a\u0629 \u05e2\u05d1\u05e8\u05d9\u05ea",
    "\U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f1e9\U0001f1ea \u2764\ufe0f \U0001f44d\U0001f3fd",
    "def f(x):\n\treturn  {'a': [1, 2.5e-3]}  # ok\r\n\r\n",
    "a\u00a0b\u2003c\u200bd\u2028e\u0085f\x0bg\x0ch\x1ci",
    "\u017f\u212a \u0130\u0131 '\u017f 'S 'd'D '\u017f\u017f",
    "x" * 300 + " " * 70 + "=" * 90 + "\n" * 40 + "ab" * 150,
    "\u1c89\u1c8a \ua7cb \U0001e5d0 \U00010d40\U00016d40 \u0897",
)


@dataclass(frozen=True)
class Tokenizer:
    """What a build needs to know of a tokenizer: folder, hash of tokenizer.json, vocabulary, end of a document."""

    folder: Path
    hash: str
    vocab_size: int
    end: int

    @property
    def dtype(self) -> str:
        """The smallest type that holds every id."""
        return "uint16" if self.vocab_size <= 2**16 else "uint32"


def write(text: pa.Array, out: Path, tokenizer: str, dtype: str, end: int, chat: bool) -> dict[str, Any]:
    """Writes the tokens of documents, each followed by `end`.

    Args:
        chat: documents are ChatML, whose marks become special tokens.

    Returns:
        "fast": whether the fast library encoded them.
    """
    ids, fast = (encoded_chat if chat else encoded)(text.to_pylist(), tokenizer)
    stop = np.array([end], np.uint32)
    flat = np.concatenate([piece for one in ids for piece in (one, stop)]) if ids else np.zeros(0, np.uint32)
    from pando.corpus.near import save_array

    out.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(out.with_suffix(".bin"), flat.astype("<u2" if dtype == "uint16" else "<u4").tobytes())
    save_array(out.with_suffix(".npy"), np.array([len(one) + 1 for one in ids], np.int64))
    return {"fast": fast}


def encoded(texts: Sequence[str], tokenizer: str) -> tuple[list[npt.NDArray[np.uint32]], bool]:
    """Token ids of texts, exactly as `tokenizers` gives them, and whether the fast library gave them."""
    slow, fast, special = _encoders(tokenizer)
    if fast is None or not texts:
        return slow(texts), False
    try:
        found = fast(texts)
    except Exception:  # a foreign library: whatever it stumbles over, the other one encodes
        return slow(texts), False
    proof = [text[:PROOF_CHARACTERS] for text in texts[:: max(1, len(texts) // PROOF)]]
    if special is not None:
        proof = [text for text in proof if not special.search(text)]
    if not all(np.array_equal(a, b) for a, b in zip(fast(proof), slow(proof), strict=True)):
        return slow(texts), False
    odd = [place for place, text in enumerate(texts) if special is not None and special.search(text)]
    for place, right in zip(odd, slow([texts[place] for place in odd]), strict=True):
        found[place] = right
    return found, True


def encoded_chat(texts: Sequence[str], tokenizer: str) -> tuple[list[npt.NDArray[np.uint32]], bool]:
    """`encoded` for ChatML: what the tokenizer gives where it takes the marks, and nothing else, for special.

    Raises:
        DataError: the tokenizer has no such marks.
    """
    made = load_tokenizer(Path(tokenizer))
    marks = {mark: made.token_to_id(mark) for mark in CHAT_MARKS}
    if missing := [mark for mark, number in marks.items() if number is None]:
        raise DataError(f"{tokenizer} has no {' and no '.join(missing)}, which sources of format chat need")
    pieces = [re.split(f"({'|'.join(map(re.escape, marks))})", text) for text in texts]
    plain, fast = encoded([piece for one in pieces for piece in one[::2]], tokenizer)
    found, at = [], iter(plain)
    for one in pieces:
        ids = [next(at) if place % 2 == 0 else np.array([marks[piece]], np.uint32) for place, piece in enumerate(one)]
        found.append(np.concatenate(ids))
    return found, fast


def load_tokenizer(path: Path) -> Any:
    """A `tokenizers.Tokenizer` from tokenizer.json.

    Raises:
        DataError: it is missing or damaged.
    """
    from tokenizers import Tokenizer

    if not path.is_file():
        raise DataError(
            f"{path} is not there: name a folder with tokenizer.json, or train one with `pando tokenizer train`"
        )
    try:
        made = Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises bare ones
        raise DataError(f"{path} is no tokenizer: {error}") from None
    made.no_truncation()
    made.no_padding()
    return made


def described(folder: Path) -> Tokenizer:
    """Looks into the folder of a tokenizer.

    Raises:
        DataError: there is none, or no token that ends a document.
    """
    made = load_tokenizer(folder / "tokenizer.json")
    names = [END]
    config = folder / "tokenizer_config.json"
    if config.is_file():
        try:
            stated = json.loads(config.read_text(encoding="utf-8")).get("eos_token")
        except (ValueError, AttributeError) as error:
            raise DataError(f"{config} is damaged: {error}") from None
        names.insert(0, stated.get("content", "") if isinstance(stated, dict) else stated or "")
    end = next((made.token_to_id(name) for name in names if name and made.token_to_id(name) is not None), None)
    if end is None:
        raise DataError(f"{folder}: no token ends a document; state eos_token in tokenizer_config.json")
    return Tokenizer(folder, content_hash(folder / "tokenizer.json"), made.get_vocab_size(), end)


@functools.lru_cache(2)
def _encoders(tokenizer: str) -> tuple[Encode, Encode | None, re.Pattern[str] | None]:
    made = load_tokenizer(Path(tokenizer))
    names = [token.content for token in made.get_added_tokens_decoder().values()]
    special = re.compile("|".join(map(re.escape, names))) if names else None
    made.encode_special_tokens = True  # what a document spells is text

    def slow(texts: Sequence[str]) -> list[npt.NDArray[np.uint32]]:
        batch = made.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(one.ids, np.uint32) for one in batch]

    fast = _fast(tokenizer)
    if fast is not None:
        try:
            same = all(np.array_equal(a, b) for a, b in zip(fast(AWKWARD), slow(AWKWARD), strict=True))
        except Exception:  # as above
            same = False
        fast = fast if same else None
    return slow, fast, special


def _fast(tokenizer: str) -> Encode | None:
    try:
        import gigatoken
    except ImportError:
        return None
    try:
        made = gigatoken.Tokenizer.from_json(Path(tokenizer).read_bytes())
    except Exception:  # it refuses patterns that it does not know
        return None

    def fast(texts: Sequence[str]) -> list[npt.NDArray[np.uint32]]:
        if not texts:
            return []
        found = made.encode_batch([text.encode() for text in texts], parallel=False)
        flat, ends = _flat(found)
        return np.split(flat, ends[:-1])

    return fast


def _flat(ragged: Any) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.int64]]:
    """The numbers of an awkward array of lists end to end, and where each list ends."""
    import awkward

    sizes = np.asarray(awkward.num(ragged), np.int64)
    return np.asarray(awkward.flatten(ragged), np.uint32), np.cumsum(sizes)
