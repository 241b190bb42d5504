"""`pando pretrain` and `pando runs`: a whole small run by the command, its plan, its ledger line, its pages."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pando.ledger import open_ledger
from tests.train.corpus import sentences, write_texts

CONFIG = """\
model: {family: qwen3, depth: 2, width: 32, hidden: 64, heads: 2, kv_heads: 1, head_dim: 16, context: 64}
sequence: 32
batch: 256
tokens: 2048
machine: {number: float32}
watch: {prompts: ["the cat"], sample_tokens: 4, answers: answers.jsonl}
"""


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "pando", *map(str, arguments)], capture_output=True, text=True)


@pytest.fixture
def made(tmp_path: Path, home: Path) -> tuple[Path, Path]:
    (tmp_path / "pretrain.yaml").write_text(CONFIG)
    (tmp_path / "answers.jsonl").write_text('{"question": "the", "answer": " cat"}\n\n')
    return tmp_path / "pretrain.yaml", write_texts(tmp_path / "corpus", sentences(200))


def test_a_run_is_trained_billed_and_shown(made: tuple[Path, Path], tmp_path: Path) -> None:
    config, corpus = made
    out = tmp_path / "run"
    done = run("pretrain", config, "--corpus", corpus, "--out", out)
    assert done.returncode == 0, done.stderr
    assert "forecast" in done.stdout and "bits per byte held back" in done.stderr
    with open_ledger() as ledger:
        (line,) = ledger.lines()
    assert line["kind"] == "pretrain" and line["base"] == "run" and line["base_hash"].startswith("sha256:")
    assert line["compute_seconds"] > 0 and line["usd"] > 0 and line["prompt_tokens"] == 2048
    detail = line["detail"]
    assert detail["forecast"]["steps"] == detail["actual"]["steps"] == 8 and detail["actual"]["bits_per_byte"] > 0
    records = [json.loads(text) for text in (out / "log.jsonl").read_text().splitlines()]
    (sample,) = [record for record in records if record["kind"] == "sample"]
    assert sample["texts"][0].startswith("the cat")
    (evaluation,) = [record for record in records if record["kind"] == "evaluation"]
    assert 0 <= evaluation["scores"]["all"] <= 1 and evaluation["scores"]["answer_bits_per_byte"] > 0
    shown = run("runs", "show", out, out, "--html", tmp_path / "runs.html")
    assert shown.returncode == 0, shown.stderr
    assert "tokens/s" in shown.stdout and "loss of" in shown.stdout
    page = (tmp_path / "runs.html").read_text()
    assert page.count("<svg") == 2 and "<script" not in page and "Held-back text" in page
    assert json.loads(run("runs", "show", out, "--json").stdout)[0]["made"] == 8
    again = run("pretrain", config, "--corpus", corpus, "--out", out)
    assert again.returncode == 2 and again.stderr.count("\n") == 1 and "--resume" in again.stderr


def test_a_plan_spends_nothing(made: tuple[Path, Path], tmp_path: Path) -> None:
    config, corpus = made
    done = run("pretrain", config, "--corpus", corpus, "--out", tmp_path / "run", "--plan")
    assert done.returncode == 0, done.stderr
    for what in ("parameters", "tokens/s", "GiB", "money", "loss"):
        assert what in done.stdout
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("sise: 4m\n", "pretrain.yaml:1: sise: unknown key"),
        ("objectives: {poetry: 1}\n" + CONFIG, "objectives: 'poetry' is unknown"),
        ("watch: {answers: none.jsonl}\n" + CONFIG.split("watch")[0], "none.jsonl cannot be read"),
        ("watch: {answers: pretrain.yaml}\n" + CONFIG.split("watch")[0], "pretrain.yaml:1: expected an object with"),
        ("size: 4m\nmachine: {device: cuda}\n", "machine.device is cuda, but this machine has none"),
    ],
)
def test_mistakes_are_one_line(made: tuple[Path, Path], tmp_path: Path, text: str, said: str) -> None:
    config, corpus = made
    config.write_text(text)
    done = run("pretrain", config, "--corpus", corpus, "--out", tmp_path / "run")
    assert done.returncode == 2 and said in done.stderr and done.stderr.count("\n") == 1


def test_a_folder_without_a_run_is_named(tmp_path: Path, home: Path) -> None:
    done = run("runs", "show", tmp_path)
    assert done.returncode == 2 and "holds no run" in done.stderr
