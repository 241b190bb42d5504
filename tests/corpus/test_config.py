from __future__ import annotations

from pathlib import Path

import pytest

from pando.corpus import CorpusFileError, load_config
from pando.corpus.config import json_schema

GOOD = """\
name: tiny
sources:
  - name: books
    files: books/*.jsonl
    licence: public domain
stages:
  exact:
  quality: {classifier: q.safetensors, min: 0.6}
  normalise: {form: NFKC}
mixture: {tokens: 1.5M}
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "corpus.yaml"
    path.write_text(text)
    return path


def test_stages_keep_the_order_of_the_file(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, GOOD))
    assert config.order == ("exact", "quality", "normalise")
    assert config.mixture.tokens == 1_500_000
    assert config.sources[0].files == ("books/*.jsonl",)
    assert config.path("x").parent == tmp_path


def test_settings_are_replaced_by_name(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, GOOD), ["quality.min=0.7", "near.bands=20", "seed=3"])
    assert config.stages.quality is not None and config.stages.quality.min == 0.7
    assert config.order[-1] == "near" and config.seed == 3


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("licence:", "license:", "corpus.yaml:5: sources.0.license: no such setting (did you mean licence?)"),
        ("min: 0.6", "min: 6", "corpus.yaml:8: stages.quality.min"),
        ("exact:", "exakt:", "did you mean exact?"),
        ("name: books", "name: a b", "corpus.yaml:3: sources.0.name"),
        ("    files: books/*.jsonl\n", "", "sources.0.files: is missing"),
        ("tokens: 1.5M", "tokens: many", "mixture.tokens"),
        ("sources:", "sources: [", "not valid YAML"),
        ("name: tiny", "order: [near]", "corpus.yaml:1: order: no such setting"),
        ("name: tiny", "max_document_mb: .inf", "max_document_mb: Input should be a finite number"),
        (
            "name: tiny",
            "tokenizer: {vocab_sise: 400}",
            "tokenizer.vocab_sise: no such setting (did you mean vocab_size",
        ),
        ("exact:", "rules: {set: {gopher_max_words: .inf}}", "should be a finite number"),
    ],
)
def test_a_mistake_is_named_with_its_line(tmp_path: Path, old: str, new: str, says: str) -> None:
    assert old in GOOD
    with pytest.raises(CorpusFileError) as caught:
        load_config(write(tmp_path, GOOD.replace(old, new, 1)))
    assert says in str(caught.value)


def test_the_home_of_somebody_unknown_is_said(tmp_path: Path) -> None:
    with pytest.raises(CorpusFileError, match="no home folder is known"):
        load_config(write(tmp_path, GOOD)).path("~nobody-of-that-name/x")


def test_a_missing_file_and_a_wrong_change_are_named(tmp_path: Path) -> None:
    with pytest.raises(CorpusFileError, match="no such file"):
        load_config(tmp_path / "none.yaml")
    with pytest.raises(CorpusFileError, match="write it as"):
        load_config(write(tmp_path, GOOD), ["quality"])


def test_an_unknown_rule_is_named(tmp_path: Path) -> None:
    text = GOOD.replace("  exact:\n", "  rules: {set: {gopher_min_word: 3}}\n")
    with pytest.raises(CorpusFileError, match="did you mean gopher_min_words"):
        load_config(write(tmp_path, text))


def test_the_schema_hides_what_the_file_does_not_state() -> None:
    assert "sources" in json_schema()["properties"] and "order" not in json_schema()["properties"]


def test_a_key_that_stands_twice_is_refused_with_its_line(tmp_path: Path) -> None:
    with pytest.raises(CorpusFileError, match=r"corpus\.yaml:12: seed stands twice"):
        load_config(write(tmp_path, GOOD + "seed: 1\nseed: 2\n"))


def test_a_stage_that_is_set_joins_those_of_a_file_that_names_none(tmp_path: Path) -> None:
    path = write(tmp_path, "sources:\n  - {name: a, files: a}\n")
    assert load_config(path, ["near.bands=20"]).order == ("normalise", "exact", "near")
