from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from pando.errors import DataError, FormatVersionError
from pando.files import content_hash
from pando.train.shards import open_shards
from tests.train import corpus

DOCUMENTS = [[5, 6, 0], [7, 0], [8, 9, 300, 0], [0], [4, 0]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return corpus.write_shards(
        tmp_path, DOCUMENTS, sizes=[9, 8, 7, 0, 5], names=("a", "b"), per_shard=2, validation=[1]
    )


def test_documents_come_back_as_they_were_written(folder: Path) -> None:
    shards = open_shards(folder)
    train = shards.documents("train")
    kept = [DOCUMENTS[i] for i in (0, 2, 3, 4)]
    assert [document.tokens.tolist() for document in train] == kept
    assert [(document.source, document.bytes) for document in train] == [(0, 9), (0, 7), (1, 0), (0, 5)]
    assert train[0].tokens.dtype == np.int32
    assert train[-1].tokens.tolist() == [4, 0] and [d.bytes for d in train[1:3]] == [7, 0]
    assert train.tokens == sum(map(len, kept))
    assert [document.tokens.tolist() for document in shards.documents("validation")] == [[7, 0]]
    assert len(shards.documents("test")) == 0
    assert (shards.end, shards.vocab_size) == (0, corpus.tokenizer().get_vocab_size())
    assert [(source.name, source.documents) for source in shards.sources] == [("a", 3), ("b", 2)]
    assert shards.tokenizer_file == folder / "tokenizer.json"
    with pytest.raises(IndexError):
        train[4]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"dtype": "uint8"}, "dtype 'uint8'"),
        ({"splits": None}, "splits"),
        ({"vocab_size": "many"}, "vocab_size"),
        ({"sources": [3]}, "sources"),
        ({"format_version": None}, "format version"),
    ],
)
def test_damaged_manifest_is_one_line(folder: Path, changes: dict, named: str) -> None:
    corpus.rehash(folder, **changes)
    with pytest.raises(Exception, match=named) as error:
        open_shards(folder)
    assert type(error.value).__module__ == "pando.errors" and "manifest.json" in str(error.value)


def test_newer_formats_and_folders_without_a_corpus_are_refused(folder: Path, tmp_path: Path) -> None:
    corpus.rehash(folder, format_version=2)
    with pytest.raises(FormatVersionError):
        open_shards(folder)
    manifest = json.loads((folder / "manifest.json").read_text()) | {"format_version": 1, "vocab_size": 401}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(DataError, match="has been changed"):
        open_shards(folder)
    (folder / "manifest.json").write_text("{")
    with pytest.raises(DataError, match="damaged"):
        open_shards(folder)
    with pytest.raises(DataError, match="holds no corpus"):
        open_shards(tmp_path / "elsewhere")


def test_changed_files_are_named_when_they_are_read(folder: Path) -> None:
    path = folder / "train-00001.bin"
    whole = path.read_bytes()
    train = open_shards(folder).documents("train")
    for content, named in ((whole[:-2], "bytes instead of"), (b"\1" + whole[1:], "hash differs")):
        path.write_bytes(content)
        assert train[1].tokens.tolist() == DOCUMENTS[2]  # the other shard is whole
        with pytest.raises(DataError, match=rf"train-00001\.bin is .*{named}"):
            train[2]
    path.unlink()
    with pytest.raises(DataError, match=r"train-00001\.bin is missing"):
        train[2]
    path.write_bytes(whole)
    index = folder / "train-00001.idx"
    table = np.frombuffer(index.read_bytes(), "<u8").copy()
    for place, value in ((0, 2), (2, 7), (3, 1)):
        broken = table.copy()
        broken[place] = value
        index.write_bytes(broken.tobytes())
        with pytest.raises(DataError, match=r"train-00001\.idx is not what"):
            train[2]
        splits = json.loads((folder / "manifest.json").read_text())["splits"]
        splits["train"][1]["index_hash"] = content_hash(index)
        corpus.rehash(folder, splits=splits)
        with pytest.raises(DataError, match=r"train-00001\.idx is damaged"):
            open_shards(folder).documents("train")[2]
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(DataError, match=r"tokenizer\.json is not what"):
        _ = open_shards(folder).tokenizer_file
