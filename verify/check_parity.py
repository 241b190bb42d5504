"""Agrees with transformers: logits of tiny random llamas (1e-4) and of the real base (1e-3), 20 x 64 greedy tokens."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch

import pando
from pando.errors import BaseModelError
from pando.model.base import open_base
from pando.model.checkpoint import load_model, save_model
from pando.model.config import AttentionConfig, LayerConfig, MlpConfig, ModelConfig, RopeConfig, RopeScaling
from pando.model.context import RowContext
from pando.model.transformer import Transformer

TINY, REAL, TOKENS = 1e-4, 1e-3, 64
SCALINGS = {
    "default": None,
    "linear": RopeScaling("linear", 4.0),
    "llama3": RopeScaling("llama3", 8.0, 32),
    "yarn": RopeScaling("yarn", 4.0, 32),
}
PROMPTS = (
    "Gravity is",
    "The capital of France is",
    "def fibonacci(n):\n    ",
    "Once upon a time, in a village by the sea,",
    "Q: What is 17 + 25?\nA:",
    "The three laws of thermodynamics are",
    "import numpy as np\n\n",
    "1, 2, 3, 5, 8, 13,",
    "Die Hauptstadt von Deutschland ist",
    "Translate to French: Good morning.\n",
    "<html>\n<head>\n<title>",
    "Dear Sir or Madam,\n\nI am writing to",
    "SELECT name, count(*) FROM",
    "Water boils at 100 degrees",
    "naïve café 日本語 🎉",
    "List of fruits:\n- apple\n-",
    "The opposite of hot is",
    '{"name": "Ada", "age":',
    "    leading spaces and\ttabs",
)
CHAT = [{"role": "user", "content": "Write one sentence about aspen trees."}]


def logits(model: Transformer, tokens: torch.Tensor) -> torch.Tensor:
    return model.head(model(tokens, RowContext(tokens)))


def tiny_difference() -> tuple[float, int]:
    """Worst difference over head layouts, tied heads, biases and rotary scalings; how many were compared."""
    from transformers import AutoModelForCausalLM

    worst, count = 0.0, 0
    for (heads, kv_heads), tied, bias, scaling in (
        (h, t, b, s) for h in ((4, 1), (6, 2), (4, 4)) for t in (True, False) for b in (True, False) for s in SCALINGS
    ):
        attention = AttentionConfig(heads, kv_heads, 16, RopeConfig(16, 10_000.0, SCALINGS[scaling]), bias, bias)
        layers = (LayerConfig(attention, MlpConfig(96, bias=bias)),) * 2
        config = ModelConfig("llama", 320, heads * 16, layers, 128, tied=tied, initializer_range=0.2)
        ours = Transformer(config).eval()
        ours.initialise(count)
        with tempfile.TemporaryDirectory() as folder:
            save_model(ours, Path(folder), {"bos_token_id": 1, "eos_token_id": 2})
            theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
            ours = load_model(Path(folder), config, "cpu", torch.float32)
        tokens = torch.randint(0, 320, (2, 100), generator=torch.Generator().manual_seed(count))
        worst = max(worst, (logits(ours, tokens) - theirs(tokens).logits).abs().max().item())
        count += 1
    return worst, count


def real_difference() -> tuple[float, int]:
    """Worst difference of the real base's logits over the prompts and their answers; prompts that the engine, all of
    them in one batch, continues with other tokens."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base = open_base()
    ours = base.module()
    theirs = AutoModelForCausalLM.from_pretrained(base.folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(base.folder)
    prompts = [*PROMPTS, base.tokenizer.render_chat(CHAT)]
    engine = pando.load(base.folder, device="cpu", dtype="float32")
    requests = [pando.GenerateRequest(prompt=prompt, max_tokens=TOKENS, ignore_eos=True) for prompt in prompts]
    answers = engine.generate(requests)
    engine.close()
    worst, different = 0.0, 0
    for prompt, answer in zip(prompts, answers, strict=True):
        ids = base.tokenizer.encode(prompt)
        if ids != tokenizer(prompt).input_ids:
            raise SystemExit(f"{prompt!r} has other token ids than transformers gives it")
        begun = torch.tensor([ids])
        wanted = theirs.generate(begun, max_new_tokens=TOKENS, do_sample=False, eos_token_id=None, pad_token_id=0)
        worst = max(worst, (logits(ours, wanted) - theirs(wanted).logits).abs().max().item())
        same = answer.tokens == wanted[0, len(ids) :].tolist()
        different += not same
        print(f"{'same' if same else 'OTHER'} {prompt!r} {answer.text!r}", flush=True)
    return worst, different


@torch.no_grad()
def main() -> int:
    tiny, count = tiny_difference()
    print(f"{count} tiny models, worst difference {tiny:.1e}", flush=True)
    try:
        real, different = real_difference()
    except BaseModelError as error:
        print(error)
        return 77
    print(
        f"{count} tiny models within {tiny:.1e} (limit {TINY:.0e}); real base within {real:.1e} (limit {REAL:.0e}); "
        f"{different} of {len(PROMPTS) + 1} prompts with other greedy tokens over {TOKENS}"
    )
    return int(tiny >= TINY or real >= REAL or different > 0)


sys.exit(main())
