"""docs/new-family.md is followed to the letter: its file and its line, and nothing else, make a family."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path

import pytest
import torch

from pando.model import families
from pando.model.checkpoint import load_model, read_json, save_model
from pando.model.context import RowContext

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "new-family.md"
TINY = {
    "vocab_size": 320, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "initializer_range": 0.2, "head_dim": 16,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


def test_the_page_makes_a_family(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    (code,), (line,) = (
        re.findall(rf"```{kind}\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S) for kind in ("python", "text")
    )
    key, module = re.findall(r'"(\w+)"', line)
    path = tmp_path / f"{module}.py"
    path.write_text(code)
    assert len(code.splitlines()) <= 60
    spec = importlib.util.spec_from_file_location(f"pando.model.families.{module}", path)
    assert spec and spec.loader
    made = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, made)
    spec.loader.exec_module(made)
    assert key not in families._MODULES
    monkeypatch.setitem(families._MODULES, key, module)

    torch.manual_seed(0)
    reference = AutoModelForCausalLM.from_config(AutoConfig.for_model(key, **TINY)).float().eval()
    reference.save_pretrained(tmp_path / "base")
    config = families.read_config(read_json(tmp_path / "base" / "config.json"))
    ours = load_model(tmp_path / "base", config, "cpu", torch.float32)
    tokens = torch.randint(3, 320, (2, 40), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert (ours.head(ours(tokens, RowContext(tokens))) - reference(tokens).logits).abs().max() < 1e-4
    (tmp_path / "again").mkdir()
    save_model(ours, tmp_path / "again", {})
    assert families.read_config(read_json(tmp_path / "again" / "config.json")) == config
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "again", dtype=torch.float32).eval()
    with torch.no_grad():
        assert (again(tokens).logits - reference(tokens).logits).abs().max() < 1e-5


def test_the_table_of_families_is_made_from_the_code() -> None:
    spec = importlib.util.spec_from_file_location("families_page", ROOT / "docs" / "families.py")
    assert spec and spec.loader
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    told, _, results = (ROOT / "docs" / "families.md").read_text(encoding="utf-8").partition(made.RESULTS)
    assert told == made.page(), "run: make docs"
    measured = [line.split(" | ") for line in results.splitlines() if line.startswith("| `")][1:]
    assert {row[0].strip("| `") for row in measured} == set(families._MODULES), "run: make docs"
    for row in measured:  # of an encoder vectors, of all others greedy tokens
        assert [cell.strip(" |") for cell in row].count("-") == 1, row
