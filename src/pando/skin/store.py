"""A skin on disk: a folder of open formats that is written whole or not at all, and checked when it is read.

skin.yaml                     all that a person would want to read
weights.safetensors           classifier, vectors (floors, probes, retrieval, documents)
vocabulary.json               words and runs of characters of the TF-IDF vectors, words of BM25
documents.json                ids of the documents that are searched
rows.jsonl                    training rows, where demonstrations are picked from them
adapter_config.json, adapter_model.safetensors    a PEFT adapter
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pando.errors import SkinError
from pando.files import atomic_dir, check_format, content_hash
from pando.interface import Identity, LanguageModel
from pando.skin.bases import checked
from pando.skin.linear import Linear
from pando.skin.parts import Decoding, Demonstration, Prompt, Reading, Scoring
from pando.skin.retrieval import Retrieval
from pando.skin.search import Bm25, DocumentIndex, Searching
from pando.skin.tfidf import TfIdf

if TYPE_CHECKING:
    from pando.skin.skin import Skin

FORMAT_VERSION = 1
CARD = "skin.yaml"
WEIGHTS = "weights.safetensors"
VOCABULARY = "vocabulary.json"
ROWS = "rows.jsonl"
DOCUMENTS = "documents.json"
ADAPTER = ("adapter_config.json", "adapter_model.safetensors")
_BREAKS = re.compile("[\r\x85\u2028\u2029]")
_SECTIONS: dict[str, Any] = {
    "prompt": Prompt,
    "scoring": Scoring,
    "decoding": Decoding,
    "reading": Reading,
    "searching": Searching,
}
_SETTINGS: dict[str, tuple[str, ...]] = {
    "score": ("scoring",),
    "generate": ("decoding",),
    "probe": ("reading",),
    "search": ("reading", "searching"),
}
_PLAIN = ("name", "kind", "rung", "method", "labels", "grammar", "baseline", "constant", "abstain", "card")


def save(skin: Skin, folder: Path) -> Skin:
    """Writes the folder; an old one at its place is replaced.

    Raises:
        PandoError: it cannot be written.
        SkinError: the adapter's files are gone.
    """
    record, files = described(skin)
    adapter = {name: skin.adapter / name for name in ADAPTER} if skin.adapter else {}
    for path in adapter.values():
        if not path.is_file():
            raise SkinError(f"the adapter of {skin.name} is gone: there is no {path}")
    hashes = {name: content_hash(data) for name, data in files.items()}
    hashes |= {name: content_hash(path) for name, path in adapter.items()}
    with atomic_dir(folder) as new:
        for name, data in files.items():
            (new / name).write_bytes(data)
        for name, path in adapter.items():
            shutil.copyfile(path, new / name)
        text = _yaml({"format_version": FORMAT_VERSION, **record, "files": hashes})
        (new / CARD).write_text(text, encoding="utf-8")
    return replace(skin, adapter=folder) if skin.adapter else skin


def load_skin(folder: str | Path, model: LanguageModel | None = None, *, force: bool = False) -> Skin:
    """Reads a skin.

    Args:
        folder: as `Skin.save` wrote it, or one that `pando adapt --out` wrote (its chosen skin is read).
        model: the base to run it on; without it, its own base is loaded when it is first needed.
        force: use `model` although the skin was made on another base.

    Raises:
        SkinError: a file is missing, damaged or of a newer format, or the skin is on another base.
    """
    folder = _place(Path(folder)) or Path(folder)
    record = _record(folder)
    files = _verified(folder, record)
    try:
        skin = _build(record, files, folder)
    except SkinError:
        raise
    except Exception as error:
        raise _damaged(folder / CARD, f"{type(error).__name__}: {error}") from error
    if model is not None:
        checked(skin, model, force=force)
    return replace(skin, bound=model, forced=force)


def is_skin(folder: Path) -> bool:
    """Whether `load_skin` would find a skin there, sound or not."""
    return _place(folder) is not None


def described(skin: Skin) -> tuple[dict[str, Any], dict[str, bytes]]:
    """What is written: the record of `skin.yaml`, and the other files (an adapter's not)."""
    record: dict[str, Any] = {name: _plain(getattr(skin, name)) for name in _PLAIN[:4]}
    record["base"] = asdict(skin.base) if skin.base else None
    for name in ("prompt", *_SETTINGS.get(skin.method, ())):
        if getattr(skin, name) is not None:
            record[name] = _plain(asdict(getattr(skin, name)))
    record |= {name: _plain(getattr(skin, name)) for name in _PLAIN[4:]}
    record["demonstrations"] = [_shown(d) for d in skin.demonstrations]
    arrays: dict[str, np.ndarray] = {}
    words, rows = skin.words, None
    if skin.linear is not None:
        arrays |= {"linear.weight": skin.linear.weight, "linear.bias": skin.linear.bias}
        if skin.linear.mean is not None:
            arrays["linear.mean"] = skin.linear.mean
    if skin.retrieval is not None:
        found = skin.retrieval
        words, rows = found.words, found.rows
        record["retrieval"] = {"rows": found.vectors.shape[0], "shots": found.shots, "shortlist": found.shortlist}
        arrays |= {f"rows.{part}": getattr(found.vectors, part) for part in ("data", "indices", "indptr")}
        arrays["rows.labels"] = found.labels
    files: dict[str, bytes] = {}
    if skin.documents is not None:
        _describe_documents(skin.documents, arrays, files)
    if words is not None:
        arrays["idf"] = words.idf
        files[VOCABULARY] = _json({"words": words.words, "characters": words.characters})
    if rows is not None:
        files[ROWS] = b"".join(_json(_shown(row)) + b"\n" for row in rows)
    if arrays:
        from safetensors.numpy import save as pack

        files[WEIGHTS] = pack({name: np.ascontiguousarray(array) for name, array in arrays.items()})
    absent = [name for name, value in record.items() if value in (None, [], {}) and name != "constant"]
    if skin.constant is None:
        absent.append("constant")
    return {name: value for name, value in record.items() if name not in absent}, files


def _describe_documents(documents: DocumentIndex, arrays: dict[str, np.ndarray], files: dict[str, bytes]) -> None:
    files[DOCUMENTS] = _json(documents.ids)
    if documents.vectors is not None:
        arrays["documents.vectors"] = documents.vectors
    if documents.mean is not None:
        arrays["documents.mean"] = documents.mean
    if documents.words is not None:
        arrays |= {f"bm25.{part}": getattr(documents.words, part) for part in ("data", "indices", "indptr")}
        files[VOCABULARY] = _json({"bm25": documents.words.words})


def _place(folder: Path) -> Path | None:
    """The folder, or the chosen skin in a ladder's."""
    return next((place for place in (folder, folder / "skin") if (place / CARD).is_file()), None)


def _record(folder: Path) -> dict[str, Any]:
    import yaml

    path = folder / CARD
    try:
        record = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise SkinError(_no_skin(folder)) from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise _damaged(path, str(error)) from None
    if not isinstance(record, dict):
        raise _damaged(path, "it is no mapping")
    check_format(str(path), record.get("format_version"), FORMAT_VERSION)
    return record


def _no_skin(folder: Path) -> str:
    if not folder.is_dir():
        return f"there is no skin folder {folder}"
    if (folder / ADAPTER[0]).is_file():
        return (
            f"{folder} is a PEFT adapter without a task, not a skin: use it with GenerateRequest(skin={str(folder)!r})"
        )
    if (folder / "report.json").is_file():
        return f"the ladder in {folder} chose no skin; the rungs' are in {folder / 'skins'}"
    return f"{folder} is no skin: it has no {CARD}"


def _verified(folder: Path, record: Mapping[str, Any]) -> dict[str, bytes]:
    """The other files' bytes (adapters are only checked), which are those that were written."""
    hashes = record.get("files") or {}
    known = {WEIGHTS, VOCABULARY, ROWS, DOCUMENTS, *ADAPTER}
    if not isinstance(hashes, dict) or not set(hashes) <= known:
        raise _damaged(folder / CARD, "its list of files is none")
    found = {}
    for name, digest in hashes.items():
        path = folder / name
        try:
            same = content_hash(path) == digest
        except OSError as error:
            raise SkinError(f"{path} cannot be read ({error.strerror}): the skin is not whole; copy it anew") from None
        if not same:
            raise SkinError(f"{path} is damaged: it is not the file that the skin was saved with; copy it anew")
        if name not in ADAPTER:
            found[name] = path.read_bytes()
    return found


def _build(record: Mapping[str, Any], files: Mapping[str, bytes], folder: Path) -> Skin:
    from pando.skin.skin import Skin

    arrays: dict[str, np.ndarray] = {}
    if WEIGHTS in files:
        from safetensors.numpy import load as unpack

        arrays = unpack(files[WEIGHTS])
    words, terms = None, json.loads(files.get(VOCABULARY, b"{}"))
    if "characters" in terms:
        words = TfIdf(tuple(terms["words"]), tuple(terms["characters"]), arrays["idf"])
    retrieval = _retrieval(record["retrieval"], arrays, words, files) if "retrieval" in record else None
    linear = None
    if "linear.weight" in arrays:
        linear = Linear(arrays["linear.weight"], arrays["linear.bias"], arrays.get("linear.mean"))
    sections = {name: _section(kind, record[name]) for name, kind in _SECTIONS.items() if name in record}
    plain = {name: record[name] for name in _PLAIN if name in record}
    return Skin(
        **(plain | {"labels": tuple(record.get("labels", ()))}),
        **sections,
        base=Identity(**record["base"]) if "base" in record else None,
        demonstrations=tuple(Demonstration(**d) for d in record.get("demonstrations", ())),
        retrieval=retrieval,
        words=None if retrieval else words,
        linear=linear,
        documents=_documents(arrays, terms, files) if DOCUMENTS in files else None,
        adapter=folder if ADAPTER[0] in record.get("files", {}) else None,
    )


def _retrieval(
    record: Mapping[str, Any], arrays: Mapping[str, np.ndarray], words: TfIdf | None, files: Mapping[str, bytes]
) -> Retrieval:
    from scipy.sparse import csr_matrix

    assert words is not None
    parts = tuple(arrays[f"rows.{part}"] for part in ("data", "indices", "indptr"))
    vectors = csr_matrix(parts, shape=(record["rows"], len(words.idf)))
    rows = None
    if ROWS in files:
        rows = tuple(Demonstration(**json.loads(line)) for line in files[ROWS].splitlines())
    return Retrieval(words, vectors, arrays["rows.labels"], rows, record["shots"], record["shortlist"])


def _documents(arrays: Mapping[str, np.ndarray], terms: Mapping[str, Any], files: Mapping[str, bytes]) -> DocumentIndex:
    ids = tuple(json.loads(files[DOCUMENTS]))
    words = None
    if "bm25" in terms:
        data, indices, indptr = (arrays[f"bm25.{part}"] for part in ("data", "indices", "indptr"))
        words = Bm25(tuple(terms["bm25"]), data, indices, indptr, len(ids))
    return DocumentIndex(ids, words, arrays.get("documents.vectors"), arrays.get("documents.mean"))


def _section(kind: Any, values: Mapping[str, Any]) -> Any:
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()})


def _yaml(record: Mapping[str, Any]) -> str:
    import yaml

    class Dumper(yaml.SafeDumper):
        pass

    def text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
        # PyYAML folds these breaks away unless the text is in double quotes
        style = '"' if _BREAKS.search(value) else None
        return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)

    Dumper.add_representer(str, text)
    return str(yaml.dump(record, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=120))


def _plain(value: Any) -> Any:
    """As YAML and JSON have it: lists for tuples."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    return [_plain(v) for v in value] if isinstance(value, (list, tuple)) else value


def _shown(row: Demonstration) -> dict[str, Any]:
    return {"inputs": dict(row.inputs), "output": row.output}


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()


def _damaged(path: Path, why: str) -> SkinError:
    return SkinError(f"{path} is damaged: {why}")
