"""Bases whose layers differ from the plain ones: windows, experts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pando.engine.engine import Engine
from pando.interface import GenerateRequest, ScoreRequest
from pando.model.context import RowContext
from pando.model.lora import LoraConfig, TrainableLora, all_linear
from pando.model.peft import save_peft
from tests.tiny import tiny_base


def test_layers_with_a_window_hold_what_it_covers(tmp_path: Path) -> None:
    """Half of the layers look 20 tokens back: their pool stays small, results and prefix reuse stay as they are."""
    from pando.engine.cache import BLOCK
    from pando.model.base import open_base
    from pando.model.checkpoint import save_model
    from pando.model.transformer import Transformer

    base = tiny_base(tmp_path / "plain")
    layers = tuple(
        replace(layer, attention=replace(layer.attention, window=20 if i % 2 else None))
        for i, layer in enumerate(base.config.layers)
    )
    shape = replace(base.config, family="qwen2", context_length=6000, layers=layers)
    shape = replace(shape, layers=tuple(replace(x, attention=replace(x.attention, bias=True)) for x in shape.layers))
    model = Transformer(shape)
    model.initialise(0)
    save_model(model, tmp_path / "plain", {"bos_token_id": 1, "eos_token_id": 2})
    base = open_base(tmp_path / "plain")
    assert [layer.attention.window for layer in base.config.layers] == [x.attention.window for x in shape.layers]
    with Engine(base, base.module(), torch.device("cpu"), "float32", 6000) as engine:
        full, window = (engine._cache.pools[key] for key in (None, 20))
        assert window.size < 0.4 * full.size
        most = 0
        publish = engine._hand_out

        def watched(rows: Any, hidden: Any) -> None:
            nonlocal most
            publish(rows, hidden)
            most = max(most, window.size - window.available)

        engine._hand_out = watched  # type: ignore[method-assign]
        prompt = [3 + i % 200 for i in range(3000)]
        (answer,) = engine.generate([GenerateRequest(prompt=prompt, max_tokens=40, ignore_eos=True)])
        with torch.no_grad():
            ids = torch.tensor([[*prompt, *answer.tokens]])
            module = base.module()
            best = module.head(module(ids, RowContext(ids)))[0, len(prompt) - 1 : -1].argmax(-1)
        assert best.tolist() == answer.tokens
        assert most <= engine._cache.most(20, 3040) < 3040 // BLOCK
        assert full.promised == window.promised == 0
        again, other = engine.generate(
            [GenerateRequest(prompt=p, max_tokens=40, ignore_eos=True) for p in (prompt, prompt[:1000] + [9] * 30)]
        )
        assert again.tokens == answer.tokens and again.usage.cached_tokens > 2900
        assert full.available == full.size and window.available == window.size
        (alone,) = engine.generate([GenerateRequest(prompt=prompt[:1000] + [9] * 30, max_tokens=40, ignore_eos=True)])
        assert alone.tokens == other.tokens
        context, long = prompt[:50], [5 + i % 90 for i in range(3000)]  # more than a window's pool holds
        (score,) = engine.score([ScoreRequest(context=context, continuations=[long, [7, 8]])])
        with torch.no_grad():
            ids = torch.tensor([[*context, *long]])
            said = module.head(module(ids, RowContext(ids)))[0, 49:-1].log_softmax(-1)
        assert score.logprobs[0] == pytest.approx(float(said.gather(1, ids[0, 50:, None]).sum()), rel=1e-5)
        assert score.tokens == [3000, 2] and full.promised == window.promised == 0


def test_adapters_on_experts_do_not_mix_in_a_batch(tmp_path: Path) -> None:
    """Rows with one adapter, another one and none, whose tokens meet at the same experts, answer as each alone."""
    from pando.model.base import open_base
    from pando.model.upcycle import upcycle

    upcycle(tiny_base(tmp_path / "dense"), tmp_path / "mixture", experts=4, top_k=2)
    base = open_base(tmp_path / "mixture")
    module = base.module()
    config = LoraConfig(4, 64, tuple(site for site in all_linear(module) if ".experts." in site))
    for name in "ab":
        lora = TrainableLora(module, config, seed=ord(name))
        with torch.no_grad():
            for matrix in lora.b:
                matrix.normal_(0.0, 0.3, generator=torch.Generator().manual_seed(ord(name)))
        (tmp_path / name).mkdir()
        save_peft(tmp_path / name, module, config, lora.tensors(), "mixture")
    prompts = [[5 + i, 9, 30 + i, 7] for i in range(6)]
    skins = [str(tmp_path / "a"), None, str(tmp_path / "b")] * 2
    requests = [
        GenerateRequest(prompt=prompt, max_tokens=12, ignore_eos=True, logprobs=0, skin=skin)
        for prompt, skin in zip(prompts, skins, strict=True)
    ]
    with Engine(base, module, torch.device("cpu"), "float32", 2048) as engine:
        together = engine.generate(requests)
        alone = [engine.generate([request])[0] for request in requests]
    assert [one.tokens for one in together] == [one.tokens for one in alone]
    for one, other in zip(together, alone, strict=True):
        assert [x.logprob for x in one.logprobs] == pytest.approx([x.logprob for x in other.logprobs], abs=1e-4)
    assert together[0].tokens != engine_tokens(base, prompts[0])


def engine_tokens(base: Any, prompt: list[int]) -> list[int]:
    """What the bare base continues with."""
    with Engine(base, base.module(), torch.device("cpu"), "float32", 2048) as engine:
        return list(engine.generate([GenerateRequest(prompt=prompt, max_tokens=12, ignore_eos=True)])[0].tokens)
