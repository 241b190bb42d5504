from __future__ import annotations

import random
from pathlib import Path

import pyarrow as pa
import pytest

from pando.corpus import quality
from pando.errors import DataError
from tests.corpus.texts import document


def noise(seed: int) -> str:
    draw = random.Random(seed)
    return " ".join(draw.choice(["buy", "now", "cheap", "click", "here", "win"]) for _ in range(60))


def test_a_classifier_is_trained_kept_and_used(tmp_path: Path) -> None:
    path = tmp_path / "q.safetensors"
    told = quality.train([document(n) for n in range(60)], [noise(n) for n in range(60)], path)
    assert told["accuracy"] > 0.95 and told["auc"] > 0.95 and told["held_out"] == 12
    found = (
        quality.scores(pa.array([document(99), noise(99), ""], pa.large_string()), str(path))
        .column("quality")
        .to_pylist()
    )
    assert found[0] > 0.8 > 0.2 > found[1] and 0 <= found[2] <= 1
    before = path.read_bytes()
    quality.train([document(n) for n in range(60)], [noise(n) for n in range(60)], path)
    assert path.read_bytes() == before


def test_mistakes_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="at least 20 texts"):
        quality.train(["a"], ["b"], tmp_path / "q")
    (tmp_path / "bad").write_bytes(b"no weights")
    with pytest.raises(DataError, match="damaged"):
        quality.scores(pa.array(["a"], pa.large_string()), str(tmp_path / "bad"))
    with pytest.raises(DataError, match="is not there"):
        quality.scores(pa.array(["a"], pa.large_string()), str(tmp_path / "none"))
