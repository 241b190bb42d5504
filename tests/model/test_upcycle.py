"""A mixture made of a dense base says what the base says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pando.errors import BaseModelError
from pando.model.base import open_base
from pando.model.context import RowContext
from pando.model.upcycle import mixture_config, upcycle
from tests.model import tiny


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_outputs_are_the_same_at_first(family: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    base = open_base(tiny.write_base(tmp_path / "dense", tiny.config(family=family)))
    (base.folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    upcycle(base, tmp_path / "mixture", experts=4, top_k=2)
    card = (tmp_path / "mixture" / "README.md").read_text()
    assert 'license: "apache-2.0"' in card and base.identity.hash in card
    made = open_base(tmp_path / "mixture")
    assert made.config.family == {"llama": "mixtral", "qwen3": "qwen3_moe"}[family]
    assert made.config.active_parameters < made.config.parameters
    assert made.tokenizer.eos_ids == base.tokenizer.eos_ids
    dense, mixture = base.module(), made.module()
    tokens = torch.randint(0, 320, (2, 40), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        wanted, found = (model.head(model(tokens, RowContext(tokens))) for model in (dense, mixture))
        theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "mixture", dtype=torch.float32)(tokens).logits
    assert (wanted - found).abs().max() < 1e-4 and (wanted - theirs).abs().max() < 1e-4
    routers = [block.mlp.router(torch.randn(50, 64))[2] for block in mixture.layers]
    assert all(len(chosen.unique()) == 4 for chosen in routers)  # tokens are spread from the start


@pytest.mark.parametrize(
    ("shape", "experts", "top_k", "said"),
    [
        (tiny.config(bias=True), 4, 2, "biases"),
        (tiny.config(), 2, 3, "3 of 2 experts"),
        (tiny.config(), 1, 1, "at least two"),
    ],
)
def test_what_cannot_be_is_named(shape, experts: int, top_k: int, said: str) -> None:
    with pytest.raises(BaseModelError, match=said):
        mixture_config(shape, experts, top_k)


def test_a_mixture_is_no_dense_base() -> None:
    with pytest.raises(BaseModelError, match="this mixtral is a mixture already; name a dense base"):
        mixture_config(mixture_config(tiny.config(), 4, 2), 4, 2)


def test_windows_that_the_mixture_lacks_are_refused() -> None:
    shape = tiny.config(family="qwen3")
    layer = shape.layers[0]
    windowed = replace(layer, attention=replace(layer.attention, window=8))
    with pytest.raises(BaseModelError, match=r"this qwen3 has a switch \(windows, biases\) that qwen3_moe lacks"):
        mixture_config(replace(shape, layers=(layer, windowed)), 4, 2)
