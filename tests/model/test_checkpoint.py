from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from pando.errors import BaseModelError
from pando.model.checkpoint import INDEX, load_model, read_json, save_model, weight_files, write_safetensors
from pando.model.transformer import Transformer
from tests.model import tiny

SHAPE = tiny.config()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny.write_base(tmp_path / "base", SHAPE)


def changed(folder: Path, change) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def load(folder: Path, dtype: torch.dtype = torch.float32) -> Transformer:
    return load_model(folder, SHAPE, "cpu", dtype)


def same(a: Transformer, b: Transformer) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda t: t.pop("model.layers.1.mlp.up_proj.weight"), r"model\.layers\.1\.mlp\.up_proj\.weight is missing"),
        (lambda t: t.update({"model.layers.2.x": torch.zeros(1)}), r"unexpected key model\.layers\.2\.x"),
        (lambda t: t.update({"model.norm.weight": torch.zeros(3)}), r"model\.norm\.weight has shape \[3\].*\[64\]"),
        (lambda t: t.update({"lm_head.weight": torch.zeros(320, 64)}), r"lm_head\.weight differs"),
    ],
)
def test_wrong_keys_are_errors_that_name_the_key(folder: Path, change, named: str) -> None:
    changed(folder, change)
    with pytest.raises(BaseModelError, match=named):
        load(folder)


def test_tied_head_and_old_buffers_in_the_file_are_let_go(folder: Path) -> None:
    before = load(folder)

    def add(tensors) -> None:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(8)

    changed(folder, add)
    assert same(load(folder), before)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_files_load_exactly_and_into_any_dtype(folder: Path, dtype: torch.dtype) -> None:
    changed(folder, lambda t: t.update({k: v.to(dtype) for k, v in t.items()}))
    wanted = load_file(folder / "model.safetensors")["model.norm.weight"]
    assert torch.equal(load(folder).norm.weight, wanted.float())
    assert load(folder, torch.bfloat16).norm.weight.dtype == torch.bfloat16


def test_shards_with_an_index_load_and_open_in_transformers(folder: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    model = load(folder)
    sharded = tmp_path / "sharded"
    sharded.mkdir()
    save_model(model, sharded, {}, max_shard_bytes=100_000)
    assert len(weight_files(sharded)) > 2
    assert same(load(sharded), model)
    theirs = AutoModelForCausalLM.from_pretrained(sharded, dtype=torch.float32)
    assert torch.equal(theirs.model.norm.weight, model.norm.weight)
    lost = weight_files(sharded)[1]
    (sharded / lost).unlink()
    with pytest.raises(BaseModelError, match=lost):
        load(sharded)


def test_index_cannot_point_outside_the_folder(folder: Path) -> None:
    (folder / INDEX).write_text(json.dumps({"weight_map": {"a": "../../secret.safetensors"}}))
    with pytest.raises(BaseModelError, match="file names in this folder"):
        load(folder)


def test_pickles_are_never_opened(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(BaseModelError, match=r"pickled weights .* are never opened"):
        load(folder)


@pytest.mark.parametrize("damage", [lambda b: b[:-1], lambda b: b[:7], lambda b: b"", lambda b: b"\xff" * 8 + b[8:]])
def test_damaged_weights_are_named(folder: Path, damage) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(BaseModelError, match=r"model\.safetensors is damaged"):
        load(folder)


@pytest.mark.parametrize("text", ["{", "[]", "\xff"])
def test_damaged_json_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text, encoding="latin-1")
    with pytest.raises(BaseModelError, match=r"config\.json"):
        read_json(tmp_path / "config.json")


def test_streamed_safetensors_are_read_by_the_library(tmp_path: Path) -> None:
    arrays = {"b": np.arange(6, dtype=np.float32).reshape(2, 3), "a": np.ones(5, np.float32), "empty": np.ones((0, 4))}
    write_safetensors(tmp_path / "x.safetensors", {k: v.shape for k, v in arrays.items()}, iter(arrays.values()))
    found = load_file(tmp_path / "x.safetensors")
    assert found.keys() == arrays.keys()
    assert all(np.array_equal(found[k].numpy(), v) for k, v in arrays.items())
