"""`pando corpus` and `pando tokenizer` as typed in a shell."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.corpus.texts import document, write_jsonl

pytest.importorskip("daft")


def pando(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "pando", *words], capture_output=True, text=True, timeout=200)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    write_jsonl(folder / "good.jsonl", [document(seed) for seed in range(40)])
    write_jsonl(folder / "bad.jsonl", ["buy cheap now click here " * 9 + str(seed) for seed in range(40)])
    (folder / "corpus.yaml").write_text(
        "sources: [{name: a, files: '*.jsonl'}]\n"
        "stages: {normalise: , quality: {classifier: q.safetensors, min: 0.5}, exact: }\n"
        "tokenizer: {vocab_size: 400}\n"
    )
    return folder


def test_from_a_classifier_to_a_corpus_and_questions(home: Path) -> None:
    files = str(home / "corpus.yaml")
    done = pando("corpus", "build", files, "--out", str(home / "out"))
    assert done.returncode == 2 and "train-quality" in done.stderr and done.stderr.count("\n") == 1
    sides = ("--good", str(home / "good.jsonl"), "--bad", str(home / "bad.jsonl"))
    trained = pando("corpus", "train-quality", *sides, "--out", str(home / "q.safetensors"))
    assert trained.returncode == 0 and "accuracy 1.000" in trained.stdout
    built = pando("corpus", "build", files, "--out", str(home / "out"), "--threads", "1", "--json")
    manifest = json.loads(built.stdout)
    assert manifest["sources"][0]["dropped"] == {"quality.quality": 40} and (home / "out.html").stat().st_size > 5000
    shown = pando("corpus", "stats", str(home / "out"), "--html", str(home / "s.html"))
    assert "40 of 80 documents are kept" in shown.stdout and (home / "s.html").exists()
    traced = json.loads(pando("corpus", "trace", str(home / "out"), "train-00000", "5", "--json").stdout)
    known = pando("corpus", "why", str(home / "out"), traced["document"]["id"][:10])
    assert "kept:" in known.stdout and "good.jsonl" in known.stdout
    other = pando("corpus", "what-if", files, "--out", str(home / "out"), "--set", "quality.min=0", "--json")
    assert json.loads(other.stdout)[0]["gained"] == 40
    tokenizer = pando("tokenizer", "train", files, "--out", str(home / "tok"), "--vocab-size", "350")
    assert tokenizer.returncode == 0 and (home / "tok" / "tokenizer_config.json").exists()


def test_help_and_schema_need_no_corpus() -> None:
    assert json.loads(pando("corpus", "schema").stdout)["title"] == "Config"
    for verb in ("corpus", "tokenizer"):
        assert pando(verb, "--help").returncode == 0
    missing = pando("corpus", "stats", "/nowhere")
    assert missing.returncode == 2 and "pando corpus build" in missing.stderr and missing.stderr.count("\n") == 1
