"""LoRA adapters in PEFT's files: ours open in PEFT, PEFT's load here, and what does not fit is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pando.errors import SkinError
from pando.model.base import BaseModel
from pando.model.context import RowContext
from pando.model.lora import LoraAdapter, LoraConfig, TrainableLora, all_linear
from pando.model.peft import CONFIG_FILE, WEIGHTS_FILE, load_peft, save_peft
from pando.model.transformer import Transformer
from tests.tiny import tiny_base

CPU = torch.device("cpu")
TOKENS = torch.randint(0, 250, (3, 24), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> BaseModel:
    return tiny_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def model(base: BaseModel) -> Transformer:
    return base.module()


def random_adapter(model: Transformer, config: LoraConfig) -> TrainableLora:
    adapter = TrainableLora(model, config, seed=1)
    with torch.no_grad():
        for b in adapter.b:
            b.normal_(0, 0.2, generator=torch.Generator().manual_seed(2))
    return adapter


def logits(model: Transformer, adapter: LoraAdapter | TrainableLora | None) -> Tensor:
    with torch.no_grad():
        return model.head(model(TOKENS, RowContext(TOKENS, adapters=adapter)))


def hugging_face(base: BaseModel) -> Any:
    transformers = pytest.importorskip("transformers")
    return transformers.AutoModelForCausalLM.from_pretrained(base.folder, dtype=torch.float32)


def saved(folder: Path, base: BaseModel, model: Transformer, config: LoraConfig) -> TrainableLora:
    adapter = random_adapter(model, config)
    save_peft(folder, model, config, adapter.tensors(), str(base.folder))
    return adapter


@pytest.mark.parametrize("stabilised", [False, True])
def test_an_adapter_saved_here_opens_in_peft(
    base: BaseModel, model: Transformer, tmp_path: Path, stabilised: bool
) -> None:
    peft = pytest.importorskip("peft")
    config = LoraConfig(8, 16, all_linear(model), stabilised)
    adapter = saved(tmp_path, base, model, config)
    theirs = peft.PeftModel.from_pretrained(hugging_face(base), tmp_path)
    with torch.no_grad():
        found = theirs(TOKENS).logits
    torch.testing.assert_close(logits(model, adapter), found, atol=1e-4, rtol=0)
    torch.testing.assert_close(logits(model, load_peft(tmp_path, model, CPU, torch.float32)), found, atol=1e-4, rtol=0)
    assert (found - logits(model, None)).abs().max() > 0.1


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": "all-linear"},
        {"target_modules": ["q_proj", "v_proj"], "use_rslora": True},
        {"target_modules": ["gate_proj", "down_proj"], "layers_to_transform": [1]},
    ],
)
def test_an_adapter_saved_by_peft_loads_here(
    base: BaseModel, model: Transformer, tmp_path: Path, options: dict[str, Any]
) -> None:
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    settings = peft.LoraConfig(r=4, lora_alpha=12, init_lora_weights=False, task_type="CAUSAL_LM", **options)
    theirs = peft.get_peft_model(hugging_face(base), settings)
    theirs.save_pretrained(tmp_path)
    with torch.no_grad():
        found = theirs.eval()(TOKENS).logits
    adapter = load_peft(tmp_path, model, CPU, torch.float32)
    torch.testing.assert_close(logits(model, adapter), found, atol=1e-4, rtol=0)
    assert (found - logits(model, None)).abs().max() > 0.01


def test_a_fresh_adapter_changes_nothing(model: Transformer) -> None:
    fresh = TrainableLora(model, LoraConfig(4, 8, all_linear(model)), seed=0)
    assert torch.equal(logits(model, fresh), logits(model, None))


def rewrite_config(folder: Path, **changes: Any) -> None:
    path = folder / CONFIG_FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def rename_key(folder: Path) -> None:
    weights = load_file(folder / WEIGHTS_FILE)
    key = next(iter(weights))
    save_file({key.replace("layers.0", "layers.7"): weights[key]}, folder / WEIGHTS_FILE)


def drop_half(folder: Path) -> None:
    weights = load_file(folder / WEIGHTS_FILE)
    del weights[next(key for key in weights if "lora_B" in key)]
    save_file(weights, folder / WEIGHTS_FILE)


def reshape(folder: Path) -> None:
    weights = load_file(folder / WEIGHTS_FILE)
    save_file({key: torch.cat([w, w], dim=1) for key, w in weights.items()}, folder / WEIGHTS_FILE)


def cut_short(folder: Path) -> None:
    path = folder / WEIGHTS_FILE
    path.write_bytes(path.read_bytes()[:100])


def only_a_pickle(folder: Path) -> None:
    (folder / WEIGHTS_FILE).rename(folder / "adapter_model.bin")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: rewrite_config(folder, use_dora=True), "use_dora"),
        (lambda folder: rewrite_config(folder, bias="all"), "bias"),
        (lambda folder: rewrite_config(folder, init_lora_weights="pissa_niter_4"), "pissa_niter_4"),
        (lambda folder: rewrite_config(folder, peft_type="IA3"), "peft_type is 'IA3'"),
        (lambda folder: rewrite_config(folder, r=0), "r must be a positive number"),
        (lambda folder: (folder / CONFIG_FILE).write_text("{"), "not valid JSON"),
        (lambda folder: (folder / CONFIG_FILE).unlink(), "is missing"),
        (lambda folder: (folder / WEIGHTS_FILE).unlink(), "is missing"),
        (rename_key, r"layers\.7.*fits no projection"),
        (drop_half, "has only lora_A"),
        (reshape, "another base"),
        (cut_short, "not a readable safetensors file"),
        (only_a_pickle, "pickle and is never read"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(
    base: BaseModel, model: Transformer, tmp_path: Path, damage: Any, message: str
) -> None:
    saved(tmp_path, base, model, LoraConfig(4, 8, all_linear(model)))
    damage(tmp_path)
    with pytest.raises(SkinError, match=message):
        load_peft(tmp_path, model, CPU, torch.float32)
