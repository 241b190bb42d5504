"""pretrain.yaml: what is read, what is refused and how; the dial; a resolved config is such a file again."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from pando.errors import PandoError
from pando.train.config import build, changes, flat
from pando.train.configfile import read_config, write_config
from pando.train.dial import CorpusFacts, best_batch, model_config, resolve, scaling_weights
from pando.train.plan import Speed, expected_bits, forecast

CORPUS = CorpusFacts(vocab_size=8192, tokens=50_000_000, bytes_per_token=3.5)


def _given(folder: Path, text: str) -> object:
    path = folder / "pretrain.yaml"
    path.write_text(text)
    return read_config(path)


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("size: 15m\noptim:\n  matrix_rat: 1", 3, "optim.matrix_rat: unknown key; known are kind, matrix_rate"),
        ("seed: 1\ncolour: red", 2, "colour: unknown key; known are name, size"),
        ("size: big", 1, "size: 'big' is no size; write 4m"),
        ("size: 0m", 1, "size: '0m' is no size; write 4m"),
        ("size: nan", 1, "size: 'nan' is no size"),
        ("seed: 99999999999999999999", 1, "seed: must be at most 9223372036854775807"),
        ("sequence: 3", 1, "sequence: must be at least 8"),
        ("base: b\ntokens: 1m\nbudget: {usd: 1}", 3, "base and tokens are given, which leaves nothing"),
        ("model: {depth: 2, width: 64}\ntokens: 1m\nbudget: {usd: 1}", 3, "model.width and tokens are given"),
        ("size: 15", 1, "size: must be a text, not 15"),
        ("budget: {hours: 1, usd: 2}", 1, "budget.usd: give hours or usd, not both"),
        ("budget: 3", 1, "budget: must be a mapping of hours, usd"),
        ("tokens: many", 1, "tokens: must be a number, not 'many'"),
        ("seed: 1" + "0" * 400, 1, "seed: must be a number, not 1000"),
        ("machine: {threads: 1000000000}", 1, "machine.threads: must be at most 4096"),
        ("tokens: 1.5", 1, "tokens: must be a whole number, not 1.5"),
        ("model:\n  depth: 0", 2, "model.depth: must be at least 1"),
        ("model: {family: gpt9}", 1, "model.family: 'gpt9' is not one of deepseek_v3, llama, modernbert, qwen3, t5"),
        (
            "model: {family: modernbert}\nobjectives: {masked: 1}\nwatch: {answers: qa.jsonl}",
            3,
            "watch.answers: a modernbert gives no answers; leave it out",
        ),
        ("model: {heads: 6, kv_heads: 4}", 1, "model.kv_heads: 6 heads cannot share 4 key-value heads"),
        (
            "objectives: {span: 1}\nmodel: {family: t5, rope_theta: 1000}",
            2,
            "model.rope_theta: a t5 has no rotary positions; leave it out",
        ),
        ("model: {tied: 1}", 1, "model.tied: must be true or false, not 1"),
        ("optim: {momentum: 1}", 1, "optim.momentum: must be below 1"),
        ("optim: {warmup: 2}", 1, "optim.warmup: must be at most 1"),
        ("sequence: 4096\nmodel: {context: 1024}", 1, "sequence: is longer than model.context, 1024"),
        ("batch: 100\nsequence: 200", 1, "batch: is less than one row of 200 tokens"),
        ("size: 4m\ntokens: 1m\nbudget: {hours: 1}", 3, "nothing for a budget to decide"),
        ("watch: {prompts: hello}", 1, "watch.prompts: must be a list of texts"),
        ("objectives: causal", 1, "objectives: must be a mapping, such as {causal: 1.0}"),
        ("format_version: 9", 1, "format_version is 9"),
        ("- a", None, "a pretrain.yaml is a mapping, `size: 15m` to begin with"),
        ("size: 4m\nsize: 5m", 2, "size stands twice"),
    ],
)
def test_mistakes_are_one_line_with_file_line_and_field(tmp_path: Path, text: str, line: int | None, said: str) -> None:
    with pytest.raises(PandoError) as found:
        _given(tmp_path, text)
    where = f"{tmp_path / 'pretrain.yaml'}:" + (f"{line}: " if line else " ")
    assert str(found.value).startswith(where) and said in str(found.value)


def test_counts_may_be_words(tmp_path: Path) -> None:
    given = _given(tmp_path, "tokens: 1.5b\nbatch: 16k\nwatch: {validation_tokens: 3e5}\nmachine: {compile: off}")
    values = given.values  # type: ignore[attr-defined]
    assert (values["tokens"], values["batch"], values["watch.validation_tokens"]) == (1_500_000_000, 16_000, 300_000)
    assert values["machine.compile"] == "off"


@pytest.mark.parametrize(("size", "wanted"), [("4m", 4e6), ("15m", 15e6), ("125m", 125e6), ("1.5b", 1.5e9)])
def test_a_size_becomes_a_shape(tmp_path: Path, size: str, wanted: float) -> None:
    found = resolve(_given(tmp_path, f"size: {size}"), CORPUS, lambda: math.nan, 0.1)  # type: ignore[arg-type]
    config = found.config
    shape = config.model
    assert abs(model_config(config, 8192).parameters / wanted - 1) < 0.12
    assert (
        shape.family == "qwen3" and shape.heads % shape.kv_heads == 0 and 0.5 < shape.width / (64 * shape.depth) < 1.8
    )
    assert config.steps >= 500 and config.rows >= 1 and 1e-4 < config.optim.matrix_rate < 0.05
    assert config.tokens <= 4 * CORPUS.tokens and found.notes


def test_a_budget_becomes_size_and_tokens(tmp_path: Path) -> None:
    small, large = (
        resolve(_given(tmp_path, f"budget: {budget}"), CORPUS, lambda: 1e11, 0.1)  # type: ignore[arg-type]
        for budget in ("{hours: 1}", "{usd: 1}")
    )
    weights = [model_config(one.config, 8192).parameters for one in (small, large)]
    assert weights[1] > 2.5 * weights[0]  # ten times the compute, about its root in weights
    used = 6 * model_config(small.config, 8192).parameters * small.config.tokens
    assert 0.5 < used / 3.6e14 < 1.5
    fixed = resolve(_given(tmp_path, "budget: {hours: 1}\ntokens: 10m"), CORPUS, lambda: 1e11, 0.1).config  # type: ignore[arg-type]
    assert 0.5 < 6 * model_config(fixed, 8192).parameters * 10_000_000 / 3.6e14 < 1.5
    few = resolve(_given(tmp_path, "budget: {hours: 0.0005}"), CORPUS, lambda: 1e8, 0.1)  # type: ignore[arg-type]
    assert few.config.steps < 600 and not any("at least 600" in note or "about 0m" in note for note in few.notes)
    assert any(
        "at least 600 steps" in note for note in resolve(_given(tmp_path, "size: 4m"), CORPUS, lambda: 1e11, 0.1).notes
    )  # type: ignore[arg-type]
    with pytest.raises(PandoError, match=r"budget.usd: this machine costs nothing"):
        resolve(_given(tmp_path, "budget: {usd: 1}"), CORPUS, lambda: 1e11, 0.0)  # type: ignore[arg-type]


def test_what_is_given_stays_and_what_is_resolved_is_a_file_again(tmp_path: Path) -> None:
    text = "size: 4m\nmodel: {depth: 3, kv_heads: 1}\noptim: {matrix_rate: 0.5}\nbatch: 8k\nseed: 7"
    config = resolve(_given(tmp_path, text), CORPUS, lambda: math.nan, 0.1).config  # type: ignore[arg-type]
    assert (config.model.depth, config.model.kv_heads, config.optim.matrix_rate) == (3, 1, 0.5)
    assert (config.batch, config.seed) == (15 * 512, 7)  # whole rows
    write_config(config, tmp_path / "config.yaml", ["a note"])
    again = build(read_config(tmp_path / "config.yaml").values)
    assert again == config


@pytest.mark.parametrize("text", ["budget: {hours: 1}", "size: 4m\nbudget: {usd: 0.1}", "size: 4m"])
def test_what_is_resolved_is_a_file_again(tmp_path: Path, text: str) -> None:
    config = resolve(_given(tmp_path, text), CORPUS, lambda: 1e11, 0.1).config  # type: ignore[arg-type]
    write_config(config, tmp_path / "config.yaml")
    assert build(read_config(tmp_path / "config.yaml").values) == config


def test_only_what_bears_on_learning_counts_as_a_change() -> None:
    old = flat(build({}))
    new = {**old, "keep.steps": 3, "watch.validate": 9, "machine.micro_rows": 4, "name": "other"}
    assert changes(old, new) == []
    assert changes(old, {**new, "optim.rate": 1.0}) == ["optim.rate (0.004, now 1.0)"]


def test_batches_grow_with_tokens_and_leave_enough_steps() -> None:
    sizes = [best_batch(tokens, 512) for tokens in (10**6, 10**8, 10**9, 10**11)]
    assert sizes == sorted(sizes) and all(size % 512 == 0 for size in sizes)
    assert 10**8 / sizes[1] >= 600 and 2**18 <= sizes[2] <= 2**20


def test_the_expected_loss_falls_with_weights_and_tokens_and_has_a_range() -> None:
    small, large = (model_config(build({"model.depth": depth}), 8192) for depth in (4, 24))
    assert expected_bits(large, 1e9)[0] < expected_bits(small, 1e9)[0] < expected_bits(small, 1e8)[0]
    middle, low, high = expected_bits(small, 1e9)
    assert low < middle < high


def test_a_mixture_is_expected_to_learn_what_its_active_weights_do() -> None:
    dense = build({"model.depth": 4, "model.hidden": 1024})
    mixture = build({"model.depth": 4, "model.hidden": 1024, "model.experts": 8, "model.top_k": 2})
    bits = [expected_bits(model_config(one, 8192), 1e9)[0] for one in (dense, mixture)]
    assert bits[0] == pytest.approx(bits[1], rel=0.01)


def test_a_forecast_adds_up() -> None:
    config = build({"tokens": 1_000_000, "batch": 10_240, "sequence": 512})
    model = model_config(config, 8192)
    said = forecast(config, model, CORPUS, Speed(2.0, 1e9, 1e11), 3.0)
    assert said.steps == 98 and said.tokens == 98 * 10_240
    assert said.hours == pytest.approx(98 * 2 / 3600) and said.usd == pytest.approx(3 * said.hours)
    watched = build({"tokens": 1_000_000, "batch": 10_240, "sequence": 512, "watch.validate": 40})
    more = forecast(watched, model, replace(CORPUS, held_back=153_600), Speed(2.0, 1e9, 1e11), 3.0)
    assert more.hours * 3600 == pytest.approx(2 * (98 + 3 * 15 * 2 / 3))  # after 40, 80 and 98 steps, 15 steps' tokens
    shared = forecast(watched, model, replace(CORPUS, held_back=153_600), Speed(2.0, 1e9, 1e11), 3.0, world=4)
    assert shared.hours * 3600 == pytest.approx(2 * (98 + 4 * 3 * 15 * 2 / 3))  # each rank reads all that is held back
    assert said.tokens_per_second == 5120 and said.extrapolated == (model.parameters < 44e6)
    assert 2.5 < said.flops / (2 * scaling_weights(model) * said.tokens) < 3.1
