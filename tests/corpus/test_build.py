"""A whole corpus, small: what is made, what is kept, and what is done again after a change or a kill."""

from __future__ import annotations

import gzip
import json
import os
import random
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pando.corpus import load_config
from pando.errors import DataError, PandoError
from tests.corpus.texts import document, write_jsonl

pytest.importorskip("daft")

YAML = """\
name: tiny
sources:
  - {name: books, files: books/*.jsonl, licence: public domain, weight: 3}
  - {name: notes, files: [notes, more.txt.gz], weight: 1}
  - {name: code, files: code, format: code, weight: 1, skip: [language, rules, near]}
stages:
  normalise:
  language:
  rules: {use: [gopher, gopher_repetition]}
  pii:
  exact:
  near:
  decontaminate: {files: [exam.jsonl]}
tokenizer: {vocab_size: 500}
mixture: {tokens: 20000, max_repeat: 3}
validation: 0.05
shard_tokens: 8000
"""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    texts = [document(seed, 20) for seed in range(60)]
    texts += [texts[4], texts[5].replace("the", "the the", 1), "short", "", "Das ist ein deutscher Text. " * 30]
    texts += [document(90, 20) + " Write to ann@example.org soon."]
    write_jsonl(tmp_path / "books" / "a.jsonl", texts[:40])
    write_jsonl(tmp_path / "books" / "b.jsonl", texts[40:])
    with (tmp_path / "books" / "b.jsonl").open("ab") as file:
        file.write(b'{"text": "\xff"}\n{broken\n')
    (tmp_path / "notes" / "deep").mkdir(parents=True)
    for seed in range(200, 215):
        (tmp_path / "notes" / "deep" / f"{seed}.md").write_text(document(seed, 16))
    (tmp_path / "notes" / "picture.txt").write_bytes(b"\x89PNG\0\0")
    (tmp_path / "more.txt.gz").write_bytes(gzip.compress(document(216, 16).encode()))
    leak = random.Random(8)
    exam = " ".join(f"item{leak.randint(0, 999)}" for _ in range(30))
    (tmp_path / "notes" / "leak.md").write_text(f"{document(300, 16)}\n\n{exam}\n\n{document(301, 16)}")
    write_jsonl(tmp_path / "exam.jsonl", [exam, "another question that nobody has written down in any of the notes"])
    (tmp_path / "code").mkdir()
    for seed in range(12):
        body = "\n\n\n".join(f"def f{n}(x):\n    return x + {n * seed}  # <|endoftext|>" for n in range(seed + 2))
        (tmp_path / "code" / f"m{seed}.py").write_text(body)
    (tmp_path / "corpus.yaml").write_text(YAML)
    return tmp_path


def command(home: Path, *more: str, verb: str = "build", out: str = "out") -> list[str]:
    where = [str(home / "corpus.yaml"), "--out", str(home / out)]
    return [sys.executable, "-m", "pando", "corpus", verb, *where, *more]


def run(home: Path, *more: str, **kind: str) -> str:
    done = subprocess.run(command(home, *more, **kind), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def build(home: Path, out: str = "out", changes: tuple[str, ...] = ()) -> dict[str, Any]:
    from pando.cli.corpus import protected
    from pando.corpus import engine
    from pando.corpus.build import build as made

    engine.start(1)
    config = load_config(home / "corpus.yaml", changes)
    return made(config, home / out, home / f"{out}.work", protected(config))


def ledger(home: Path, out: str = "out") -> list[dict[str, Any]]:
    return pq.read_table(home / out / "ledger.parquet").to_pylist()


def test_every_document_is_accounted_for(home: Path) -> None:
    manifest = build(home)
    rows = ledger(home)
    why = {}
    for row in rows:
        if not row["kept"]:
            why.setdefault(row["rule"], []).append(row)
    assert len(rows) == 68 + 18 + 12
    assert {rule: len(found) for rule, found in why.items()} == {
        "copy": 1,
        "near_copy": 1,
        "gopher_min_words": 1,
        "empty": 1,
        "other_language": 1,
        "encoding": 1,
        "not JSON": 1,
        "binary": 1,
        "contamination": 1,
    }
    ids = {row["id"]: row for row in rows}
    assert len(ids) == len(rows)
    assert ids[why["copy"][0]["duplicate_of"]]["row"] == 5 and ids[why["near_copy"][0]["duplicate_of"]]["row"] == 6
    assert why["other_language"][0]["detail"] == "de" and why["contamination"][0]["detail"] == "exam.jsonl:1"
    assert why["contamination"][0]["score"] == 1.0
    assert sum(row["pii_email"] or 0 for row in rows) == 1
    assert {one["name"]: (one["read"], one["documents"]) for one in manifest["sources"]} == {
        "books": (68, 61),
        "notes": (18, 16),
        "code": (12, 12),
    }


def test_shards_hold_the_mixture_and_read_back(home: Path) -> None:
    from tokenizers import Tokenizer

    manifest = build(home)
    out = home / "out"
    made = Tokenizer.from_file(str(out / "tokenizer.json"))
    made.encode_special_tokens = True
    assert manifest["end"] == 0 == made.token_to_id("<|endoftext|>") and manifest["vocab_size"] == 500
    texts, sources = set(), []
    for split in ("train", "validation"):
        for entry in manifest["splits"][split]:
            data = np.fromfile(out / entry["file"], "<u2")
            index = np.fromfile(out / entry["index"], "<u8").reshape(-1, 3)
            assert len(data) == entry["tokens"] == index[-1, 0] and len(index) == entry["documents"]
            start = 0
            for end, size, source in index.tolist():
                ids = data[start:end].tolist()
                text = made.decode(ids[:-1], skip_special_tokens=False)
                assert ids[-1] == 0 and 0 not in ids[:-1]
                assert len(text.encode()) == size and made.encode(text, add_special_tokens=False).ids == ids[:-1]
                texts.add(text)
                start = end
                if split == "train":
                    sources.append((source, len(ids)))
    assert any("<|endoftext|>" in text for text in texts)
    for place, one in enumerate(manifest["sources"]):
        assert sum(size for source, size in sources if source == place) == one["train_tokens"]
        assert one["train_tokens_asked"] == (12000, 4000, 4000)[place] and one["repeats"] <= 3
    first = manifest["sources"][0]
    assert abs(first["train_tokens"] - 12000) < 400 and len(manifest["splits"]["train"]) > 1
    assert manifest["splits"]["validation"][0]["documents"] >= 3


def test_a_changed_threshold_redoes_only_what_follows(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pando.corpus import engine

    first = build(home)
    done: list[str] = []
    real = engine.run

    def counting(function: str, tasks: list[dict[str, Any]]) -> Any:
        done.extend([function] * len(tasks))
        return real(function, tasks)

    monkeypatch.setattr(engine, "run", counting)
    assert build(home) == first and not done
    changed = build(home, changes=("rules.set={gopher_min_words: 0, gopher_stop_words: 0}",))
    assert changed["hash"] != first["hash"] and "read" not in done and "score" not in done and "tokenise" in done
    done.clear()
    with (home / "books" / "a.jsonl").open("a") as file:
        file.write(json.dumps({"text": document(999, 20)}) + "\n")
    assert build(home)["sources"][0]["read"] == 69
    assert done.count("read") == 1 and done.count("score") == 1


def test_another_name_of_the_folder_gives_the_same_corpus(home: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    import shutil

    first = build(home)
    other = tmp_path_factory.mktemp("elsewhere") / "with space"
    shutil.copytree(home, other, ignore=shutil.ignore_patterns("out*"))
    assert build(other)["hash"] == first["hash"]
    same = [path.name for path in (home / "out").iterdir()]
    assert all((home / "out" / name).read_bytes() == (other / "out" / name).read_bytes() for name in same)


@pytest.mark.slow
def test_threads_and_kills_leave_no_trace(home: Path) -> None:
    wanted = json.loads(run(home, "--threads", "1", "--json"))["hash"]
    assert json.loads(run(home, "--threads", "2", "--json", out="two"))["hash"] == wanted
    draw = random.Random(3)
    for _ in range(3):
        process = subprocess.Popen(command(home, out="killed"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(draw.uniform(0.5, 4))
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert json.loads(run(home, "--json", out="killed"))["hash"] == wanted
    assert not list(home.glob(".killed*.tmp"))


def test_a_shard_that_was_written_to_is_made_anew(home: Path) -> None:
    wanted = build(home)["hash"]
    for suffix in (".bin", ".idx", ".docs"):
        part = (home / "out" / "train-00000").with_suffix(suffix)
        whole = part.read_bytes()
        with part.open("r+b") as file:
            file.write(b"\xff\xff")
        assert build(home)["hash"] == wanted and part.read_bytes() == whole


def test_a_new_file_leaves_most_of_what_was_read_as_it_is(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pando.corpus.sources._GROUP_BYTES", 5000)  # of files of about 3,000 bytes
    build(home)
    before = {path.name for path in (home / "out.work" / "read").glob("*.json")}
    (home / "notes" / "deep" / "205b.md").write_text(document(400, 16))
    build(home)
    added = {path.name for path in (home / "out.work" / "read").glob("*.json")} - before
    assert len(before) > 8 and len(added) <= 2


def test_questions_about_documents_and_tokens(home: Path) -> None:
    from pando.corpus.records import counts, trace, why
    from pando.report import corpus as report

    manifest = build(home)
    out = home / "out"
    copy = next(row for row in ledger(home) if row["rule"] == "copy")
    found = why(out, copy["id"][:12])
    assert found["row"] == copy["row"] and "dropped by exact: copy" in report.document(found)
    with pytest.raises(DataError, match="no one document"):
        why(out, "zz")
    entry = manifest["splits"]["train"][0]
    data = np.fromfile(out / entry["file"], "<u2")
    for offset in (0, 1, 57, entry["tokens"] // 2, entry["tokens"] - 1):
        traced = trace(out, "train-00000", offset)
        row = traced["document"]
        assert row["kept"] and 0 <= traced["token"] < row["tokens"]
        begin, end = traced["bytes"]
        if data[offset] == manifest["end"]:
            assert begin == end == row["text_bytes"]
        elif row["file"].startswith("code"):
            text = (home / row["file"]).read_text().encode()
            assert text[begin:end].decode(errors="replace") == traced["text"][1]
        assert row["id"] in report.traced(traced)
    with pytest.raises(DataError, match="has no token"):
        trace(out, "train-00000", entry["tokens"])
    with pytest.raises(DataError, match="has no shard"):
        trace(out, "train-99", 0)
    told = counts(out)
    assert manifest["protected"] == {"items": 2, "too_short": 0} and "2 items of eval" in report.summary(manifest)
    assert told["masked"]["email"] == 1 and told["read"] == 98 and ("near", "near_copy") in told["dropped"]
    page = report.page(told)
    assert page.count("<svg") == 2 and "<script" not in page and "near_copy" in page
    assert "98 documents are kept" in report.stats(told) and json.dumps(report.as_json(told))


def test_what_if_reads_no_text(home: Path) -> None:
    build(home)
    for path in (home / "out.work" / "read").glob("*.parquet"):
        table = pq.read_table(path)
        pq.write_table(table.drop_columns(["text"]), path)
    rows = json.loads(
        run(home, "--set", "rules.set={gopher_min_words: 0, gopher_stop_words: 0}", "--json", verb="what-if")
    )
    assert [(row["source"], row["gained"], row["lost"]) for row in rows] == [
        ("books", 1, 0),
        ("notes", 0, 0),
        ("code", 0, 0),
    ]
    done = subprocess.run(command(home, "--set", "near.ngram=3", verb="what-if"), capture_output=True, text=True)
    assert done.returncode == 2 and "run `pando corpus build`" in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("tokenizer=nowhere", "is not there"),
        ("quality.classifier=none.safetensors", "make it with `pando corpus train-quality`"),
        ("sources=[{name: a, files: none/*.txt}]", "names no file"),
        ("decontaminate.files=[]", "no item to look for"),
        ("decontaminate.shortest=1000", "all 2 items are shorter than `shortest: 1000`"),
        ("rules.set={gopher_min_words: 1000000}", r"no document is left of 98; most went by rules.gopher_min_words"),
    ],
)
def test_a_mistake_is_one_line(home: Path, change: str, says: str) -> None:
    if "gopher_min_words" in change:
        (home / "corpus.yaml").write_text(YAML.replace(", skip: [language, rules, near]", ""))
    with pytest.raises(PandoError, match=says):
        build(home, changes=(change,))
    assert not (home / "out").exists()


def test_an_item_that_cannot_be_read_ends_the_build(home: Path) -> None:
    with (home / "exam.jsonl").open("a") as file:
        file.write('{"text": "an item cut sho\n')
    with pytest.raises(DataError, match=r"exam.jsonl:3: not JSON.*mend the row or take it out"):
        build(home)


def test_damaged_records_are_one_line(home: Path) -> None:
    from pando.corpus.records import counts, tokens_of, trace, why

    build(home)
    ledger = home / "out" / "ledger.parquet"
    whole = ledger.read_bytes()
    for data in (whole[: len(whole) // 2], whole[:4] + bytes(len(whole) // 2) + whole[4 + len(whole) // 2 :]):
        ledger.write_bytes(data)
        asked = (counts, lambda out: why(out, "a"), lambda out: trace(out, "train-00000", 0))
        for ask in (*asked, lambda out: tokens_of(out, pa.array(["a"]))):
            with pytest.raises(DataError, match=r"ledger.parquet cannot be read .*; build the corpus again"):
                ask(home / "out")
    (home / "out" / "manifest.json").write_text('{"format_version": 1}')
    with pytest.raises(DataError, match=r"manifest.json is damaged .dtype, hash.* missing"):
        counts(home / "out")


def test_what_if_knows_documents_by_their_ids(home: Path) -> None:
    build(home)
    before = run(home, "--set", "language.min=0.99", "--json", verb="what-if")
    lines = YAML.splitlines(keepends=True)
    lines[2], lines[3] = lines[3], lines[2]
    (home / "corpus.yaml").write_text("".join(lines))
    after = run(home, "--set", "language.min=0.99", "--json", verb="what-if")
    assert sorted(json.loads(before), key=str) == sorted(json.loads(after), key=str)


def test_tokens_that_change_white_space_are_traced_in_what_they_spell(home: Path, tmp_path: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    from pando.corpus.records import trace

    made = Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    texts = [document(seed, 20) for seed in range(40)]
    made.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=300, special_tokens=["<end>"], show_progress=False))
    (home / "tok").mkdir()
    made.save(str(home / "tok" / "tokenizer.json"))
    (home / "tok" / "tokenizer_config.json").write_text('{"eos_token": "<end>"}')
    manifest = build(home, changes=("tokenizer=tok",))
    data = np.fromfile(home / "out" / "train-00000.bin", "<u2").tolist()
    size = data.index(manifest["end"])
    text = made.decode(data[:size])
    spans = [trace(home / "out", "train-00000", offset)["bytes"] for offset in range(min(size, 30))]
    assert " " in text[: spans[-1][1]] and all(a[1] == b[0] for a, b in pairwise(spans))
    assert [made.decode(data[: n + 1]).encode() for n in range(len(spans))] == [text.encode()[:end] for _, end in spans]


def test_names_that_are_odd_are_read_and_told(tmp_path: Path) -> None:
    home = tmp_path / "e[1]"
    (home / "d").mkdir(parents=True)
    for name in (b"caf\xe9.txt", b"data [1].txt", b"plain.txt"):
        (home / "d" / os.fsdecode(name)).write_text(document(len(name), 20))
    (home / "corpus.yaml").write_text(
        'sources:\n  - {name: one, files: "d/data [1].txt"}\n  - {name: all, files: "d/*.txt"}\n'
        "tokenizer: {vocab_size: 400}\nstages: {normalise: }\nvalidation: 0\n"
    )
    build(home)
    files = [row["file"] for row in ledger(home)]
    assert files == ["d/data [1].txt", "d/caf\\xe9.txt", "d/data [1].txt", "d/plain.txt"]


def test_equal_texts_are_held_back_together() -> None:
    from pando.corpus.config import Config
    from pando.corpus.mixture import mix

    config = Config(sources=[{"name": name, "files": "x"} for name in "ab"], validation=0.02)
    source = np.repeat([0, 1], [5, 300])
    content = np.arange(1, 306, dtype=np.uint64)
    content[:5] = content[5:10]
    for held in (content[5], content[6]):  # texts of a small source that the other has too
        content[10] = held
        found = mix(config, np.arange(305), source, np.ones(305, np.int64), content)
        assert not set(content[found.train]) & set(content[found.validation])
    assert len(found.validation)


def test_conversations_teach_their_answers(home: Path) -> None:
    from pando.train.example import IGNORE
    from pando.train.objectives import make_mixture
    from pando.train.shards import open_shards

    turns = [("user", "What is {}?"), ("assistant", "It is <|endoftext|> number {}.")]
    rows = [{"messages": [{"role": r, "content": text.format(n)} for r, text in turns]} for n in range(40)]
    (home / "talk.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (home / "corpus.yaml").write_text(
        YAML.replace("mixture: {tokens: 20000, max_repeat: 3}\n", "").replace(
            "stages:\n",
            "  - {name: talk, files: talk.jsonl, format: chat, weight: 1, skip: [language, rules, near]}\nstages:\n",
        )
    )
    build(home)
    shards = open_shards(home / "out")
    settings = {"causal": {"sources": ["books", "notes", "code"]}, "supervised": {"sources": ["talk"]}}
    objective = make_mixture(settings, shards).parts[1].objective
    learnt = set()
    for one in shards.documents("train"):
        if shards.sources[one.source].name == "talk":
            (example,) = objective.examples(one.tokens, 512, None)
            learnt.add(shards_text(shards, [t for t in example.targets if t != IGNORE]))
    assert learnt and learnt <= {f"It is <|endoftext|> number {n}.<|im_end|>" for n in range(40)}


def shards_text(shards: Any, ids: list[int]) -> str:
    from tokenizers import Tokenizer

    return str(Tokenizer.from_file(str(shards.tokenizer_file)).decode(ids, skip_special_tokens=False))


def test_what_is_made_of_the_sources_is_no_source_and_takes_no_strangers_place(tmp_path: Path) -> None:
    from pando.cli.corpus import work_folder
    from pando.corpus import engine
    from pando.corpus.build import build

    engine.start(1)
    write_jsonl(tmp_path / "all" / "a.jsonl", [document(seed, 20) for seed in range(12)])
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]
    (tmp_path / "all" / "talk").mkdir()
    (tmp_path / "all" / "talk" / "b.jsonl").write_text(json.dumps({"messages": turns}) + "\n")
    (tmp_path / "all" / "corpus.yaml").write_text(
        "sources:\n  - {name: a, files: ., format: jsonl}\n  - {name: talk, files: talk, format: chat}\n"
        "tokenizer: {vocab_size: 400}\nvalidation: 0\n"
    )
    config, out = load_config(tmp_path / "all" / "corpus.yaml"), tmp_path / "all" / "corpus"
    once = build(config, out, work_folder(out))
    (tmp_path / "all" / "corpus.html").write_text("the page of it")
    again = build(config, out, work_folder(out))
    assert once["hash"] == again["hash"] and [one["documents"] for one in once["sources"]][1] == 1
    with pytest.raises(PandoError, match=r"holds something else \(a.jsonl\), which would be lost"):
        build(config, tmp_path / "all", work_folder(tmp_path / "all"))
    assert (tmp_path / "all" / "a.jsonl").exists()
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_bytes((out / name).read_bytes())
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    text = (tmp_path / "all" / "corpus.yaml").read_text().replace("{vocab_size: 400}", str(folder))
    (tmp_path / "all" / "corpus.yaml").write_text(text)
    ends = []
    for name in ("<|endoftext|>", "<|im_end|>"):
        (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"eos_token": name}))
        manifest = build(load_config(tmp_path / "all" / "corpus.yaml"), out, work_folder(out))
        tokens = np.fromfile(out / "train-00000.bin", "<u2")
        ends.append(manifest["end"])
        assert tokens[-1] == manifest["end"]
    assert ends[0] != ends[1]


def test_weights_for_some_and_nothing_to_train_on_are_said(home: Path) -> None:
    (home / "corpus.yaml").write_text(YAML.replace(", weight: 3}", "}"))
    with pytest.raises(PandoError, match="some sources have a weight and books none"):
        load_config(home / "corpus.yaml")
    skipped = YAML.replace("weight: 3}", "weight: 3, skip: [language]}").replace(
        "weight: 1}", "weight: 1, skip: [language]}"
    )
    (home / "corpus.yaml").write_text(skipped)
    build(home)  # a stage that every source leaves out drops nothing
    with pytest.raises(PandoError, match="no document is left to train on"):
        build(home, changes=("validation=0.99999",))
