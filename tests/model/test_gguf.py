from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Quant
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from pando.errors import BaseModelError
from pando.model.base import open_base
from pando.model.config import ModelConfig, RopeScaling
from pando.model.context import RowContext
from pando.model.families import family, read_config
from pando.model.gguf import convert
from pando.model.rope import frequencies
from pando.model.tokenizer import Tokenizer
from tests.model import tiny

SHAPE = tiny.config(d_model=256, head_dim=64, hidden=256)  # rows of 256, as the k-quants want
WRITTEN = (Quant.F32, Quant.F16, Quant.BF16, Quant.Q4_0, Quant.Q4_1, Quant.Q5_0, Quant.Q5_1, Quant.Q8_0)
WRITTEN += (Quant.TQ1_0, Quant.TQ2_0, Quant.MXFP4)
READ_ONLY = (Quant.Q2_K, Quant.Q3_K, Quant.Q4_K, Quant.Q5_K, Quant.Q6_K, Quant.IQ4_NL, Quant.IQ4_XS, Quant.NVFP4)
READ_ONLY += (Quant.IQ2_XXS, Quant.IQ2_XS, Quant.IQ2_S, Quant.IQ3_XXS, Quant.IQ3_S, Quant.IQ1_S, Quant.IQ1_M)


def paired(array: np.ndarray, heads: int) -> np.ndarray:
    """Rows as llama.cpp's converter lays them: halves (i, i + dim/2) become pairs (2i, 2i + 1)."""
    return array.reshape(heads, 2, -1, *array.shape[1:]).swapaxes(1, 2).reshape(array.shape)


def quantised(array: np.ndarray, kind: Quant) -> np.ndarray:
    """As `kind`; where the package cannot quantise, random blocks whose numbers are finite."""
    if array.ndim == 1:
        return array
    if kind in WRITTEN:
        return gguf.quantize(array, kind)
    generator = np.random.default_rng(array.shape[0])
    size, bytes_ = gguf.GGML_QUANT_SIZES[kind]
    blocks = generator.integers(0, 256, (array.size // size, bytes_), dtype=np.uint8)
    with np.errstate(all="ignore"):
        blocks[~np.isfinite(gguf.dequantize(blocks, kind)).all(axis=1)] = 0
    return blocks.reshape(array.shape[0], -1)


def write(
    path: Path,
    kind: Quant = Quant.F32,
    shape: ModelConfig = SHAPE,
    skip: str = "",
    blocks: int = 2,
    extra: dict[str, Any] | None = None,
) -> dict[str, np.ndarray]:
    """A GGUF as llama.cpp's converter writes it. Returns the float32 values a reader must find, by Hugging Face key."""
    writer = gguf.GGUFWriter(path, "llama")
    attention = shape.layers[0].attention
    writer.add_license("mit")
    writer.add_block_count(blocks)
    writer.add_context_length(shape.context_length)
    writer.add_embedding_length(shape.d_model)
    writer.add_feed_forward_length(shape.layers[0].mlp.hidden)
    writer.add_head_count(attention.heads)
    writer.add_head_count_kv(attention.kv_heads)
    writer.add_key_length(attention.head_dim)
    writer.add_value_length(attention.head_dim)
    writer.add_rope_dimension_count(attention.head_dim)
    writer.add_rope_freq_base(attention.rope.theta)
    writer.add_layer_norm_rms_eps(shape.norm.eps)
    add_tokenizer(writer, extra or {})
    model = tiny.model(shape)
    found, parameters = family("llama"), dict(model.named_parameters())
    theirs, wanted = dict(found.gguf.keys(shape)), {}
    heads = {"attention.q": attention.heads, "attention.k": attention.kv_heads}
    for ours, key in found.keys(shape):
        array = parameters[ours].numpy()
        stored = as_stored = quantised(array, kind)
        wanted[key] = gguf.dequantize(stored, kind) if array.ndim == 2 else array
        for site, count in heads.items():
            if f".{site}." in ours:
                as_stored = paired(stored, count)
        if theirs[ours] != skip:
            # one-dimensional weights stay float32 in every GGUF
            writer.add_tensor(theirs[ours], as_stored, raw_dtype=kind if array.ndim == 2 else None)
    if attention.rope.scaling is not None:
        plain = frequencies(type(attention.rope)(attention.rope.dim, attention.rope.theta))[0]
        writer.add_tensor("rope_freqs.weight", (plain / frequencies(attention.rope)[0]).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return wanted


def add_tokenizer(writer: gguf.GGUFWriter, extra: dict[str, Any]) -> None:
    content = json.loads(tiny.tokenizer().to_str())["model"]
    tokens = sorted(content["vocab"], key=content["vocab"].get)
    values: dict[str, Any] = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3 if t in tiny.SPECIALS else 1 for t in tokens],
        "tokenizer.ggml.merges": [" ".join(pair) for pair in content["merges"]],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.add_bos_token": False,
        "tokenizer.chat_template": "{% for m in messages %}{{ m.content }}{% endfor %}",
    }
    for key, value in (values | extra).items():
        kind = {str: gguf.GGUFValueType.STRING, bool: gguf.GGUFValueType.BOOL, int: gguf.GGUFValueType.UINT32}
        if isinstance(value, list):
            writer.add_array(key, value)
        elif value is not None:
            writer.add_key_value(key, value, kind[type(value)])


@pytest.mark.parametrize("kind", WRITTEN + READ_ONLY, ids=lambda kind: kind.name)
def test_every_quantisation_comes_out_as_its_numbers(kind: Quant, tmp_path: Path) -> None:
    wanted = write(tmp_path / "m.gguf", kind)
    (tmp_path / "out").mkdir()
    general = convert(tmp_path / "m.gguf", tmp_path / "out")
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert found.keys() == wanted.keys()
    for key, tensor in found.items():
        assert tensor.dtype == torch.float32
        assert np.array_equal(tensor.numpy(), wanted[key].astype(np.float32)), key
    assert general["license"] == "mit"
    assert read_config(json.loads((tmp_path / "out" / "config.json").read_text())).layers == SHAPE.layers


def test_every_quantisation_of_the_package_is_tried() -> None:
    tried = {kind for kind in WRITTEN + READ_ONLY if kind not in (Quant.F32, Quant.F16)}
    assert tried == set(gguf.quants._type_traits)


@pytest.mark.parametrize("tied", [True, False])
def test_converted_model_gives_the_logits_of_transformers_own_reader(tied: bool, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    write(tmp_path / "m.gguf", Quant.Q8_0, tiny.config(d_model=256, head_dim=64, tied=tied))
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="m.gguf", dtype=torch.float32).eval()
    (tmp_path / "out").mkdir()
    convert(tmp_path / "m.gguf", tmp_path / "out")
    base = open_base(tmp_path / "out")
    tokens = torch.arange(40)[None]
    model = base.module()
    with torch.no_grad():
        assert (model.head(model(tokens, RowContext(tokens))) - theirs(tokens).logits).abs().max() < 1e-4


def test_stretched_frequencies_are_read_as_llama3(tmp_path: Path) -> None:
    scaling = RopeScaling("llama3", 32.0, 8192, low_freq_factor=1.0, high_freq_factor=4.0)
    write(tmp_path / "m.gguf", shape=tiny.config(d_model=256, head_dim=64, scaling=scaling))
    (tmp_path / "out").mkdir()
    convert(tmp_path / "m.gguf", tmp_path / "out")
    assert open_base(tmp_path / "out").config.layers[0].attention.rope.scaling == scaling


def test_other_stretches_are_refused(tmp_path: Path) -> None:
    write(tmp_path / "m.gguf", shape=tiny.config(d_model=256, head_dim=64, scaling=RopeScaling("yarn", 4.0, 32)))
    with pytest.raises(BaseModelError, match=r"rope_freqs\.weight"):
        convert(tmp_path / "m.gguf", tmp_path)


def test_tokenizer_and_template_come_from_the_file(tmp_path: Path) -> None:
    write(tmp_path / "m.gguf")
    (tmp_path / "out").mkdir()
    convert(tmp_path / "m.gguf", tmp_path / "out")
    found, wanted = Tokenizer(tmp_path / "out"), tiny.tokenizer()
    hard = "<|im_start|>user\n 1234567890  two\n\n<|im_end|> ÿ\u2028\u0000\U0001f469\u200d\U0001f467"
    for text in [*tiny.TEXT, hard, "", " "]:
        assert found.encode(text) == wanted.encode(text).ids
    assert found.eos_ids == {2} and found.bos_id == 1
    assert found.render_chat([{"role": "user", "content": "hi"}]) == "hi"


def test_file_decides_whether_bos_and_eos_are_added(tmp_path: Path) -> None:
    extra = {"tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.add_eos_token": True}
    write(tmp_path / "m.gguf", extra=extra)
    (tmp_path / "out").mkdir()
    convert(tmp_path / "m.gguf", tmp_path / "out")
    tokenizer = Tokenizer(tmp_path / "out")
    plain = tokenizer.encode("dog", add_special=False)
    assert tokenizer.encode("dog") == [1, *plain, 2]


@pytest.mark.parametrize(
    ("extra", "named"),
    [
        ({"tokenizer.ggml.pre": "mystery"}, "tokenizer.ggml.pre 'mystery'"),
        ({"tokenizer.ggml.pre": None}, "tokenizer.ggml.pre is missing"),
        ({"tokenizer.ggml.model": "rwkv"}, "tokenizer.ggml.model 'rwkv'"),
        ({"tokenizer.ggml.tokens": None}, "vocab_size"),
        ({"tokenizer.ggml.tokens": ["a"] * 320}, "holds a token twice"),
        ({"tokenizer.ggml.merges": ["a"]}, "tokenizer.ggml.merges: 'a'"),
        ({"tokenizer.ggml.eos_token_id": 4000}, "eos_token_id 4000"),
        ({"tokenizer.ggml.bos_token_id": None, "tokenizer.ggml.add_bos_token": True}, "bos_token_id is missing"),
        ({"llama.expert_count": 8}, "expert_used_count"),
        ({"llama.attention.sliding_window": 4096}, "attention.sliding_window"),
        ({"llama.rope.scaling.type": "longrope"}, "rope.scaling.type"),
        ({"split.count": 3}, "one part of a split model"),
    ],
)
def test_unsupported_metadata_is_named(extra, named: str, tmp_path: Path) -> None:
    write(tmp_path / "m.gguf", extra=extra)
    with pytest.raises(BaseModelError, match=named) as error:
        convert(tmp_path / "m.gguf", tmp_path)
    assert "m.gguf: " in str(error.value)


def test_missing_and_surplus_tensors_are_named(tmp_path: Path) -> None:
    write(tmp_path / "m.gguf", skip="blk.1.ffn_up.weight")
    with pytest.raises(BaseModelError, match=r"the tensor blk\.1\.ffn_up\.weight is missing"):
        convert(tmp_path / "m.gguf", tmp_path)
    write(tmp_path / "n.gguf", blocks=1)
    with pytest.raises(BaseModelError, match=r"the tensor blk\.1\.\w+\.weight is not one"):
        convert(tmp_path / "n.gguf", tmp_path)


def test_other_architectures_are_named(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "mamba")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    with pytest.raises(BaseModelError, match="'mamba' is not supported"):
        convert(tmp_path / "m.gguf", tmp_path)


def test_numbers_that_are_not_finite_are_named(tmp_path: Path) -> None:
    write(tmp_path / "m.gguf")
    data = (tmp_path / "m.gguf").read_bytes()
    (tmp_path / "m.gguf").write_bytes(data[:-4] + b"\xff\xff\xff\x7f")
    with pytest.raises(BaseModelError, match=r"the tensor blk\.1\.ffn_down\.weight holds"):
        convert(tmp_path / "m.gguf", tmp_path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("gguf") / "m.gguf"
    write(path, Quant.Q8_0, tiny.config())
    return path.read_bytes()


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(share=st.floats(0, 1, exclude_max=True))
def test_file_cut_short_is_one_line(whole: bytes, tmp_path: Path, share: float) -> None:
    (tmp_path / "cut.gguf").write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(BaseModelError, match=r"cut\.gguf: "):
        convert(tmp_path / "cut.gguf", tmp_path)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(places=st.lists(st.tuples(st.floats(0, 0.25), st.integers(1, 255)), min_size=1, max_size=8))
def test_flipped_bytes_are_one_line_or_harmless(whole: bytes, tmp_path: Path, places) -> None:
    data = bytearray(whole)
    for share, flip in places:  # in the first quarter, where the metadata is
        data[int(share * len(data))] ^= flip
    (tmp_path / "bad.gguf").write_bytes(data)
    try:
        convert(tmp_path / "bad.gguf", tmp_path)
    except BaseModelError as error:
        assert "bad.gguf: " in str(error)


def test_wild_counts_end_at_once(whole: bytes, tmp_path: Path) -> None:
    """An array that claims 2**60 elements in a small file."""
    at = whole.index(b"tokenizer.ggml.token_type") + len(b"tokenizer.ggml.token_type") + 4 + 4
    (tmp_path / "bad.gguf").write_bytes(whole[:at] + (1 << 60).to_bytes(8, "little") + whole[at + 8 :])
    with pytest.raises(BaseModelError, match=r"bad\.gguf: "):
        convert(tmp_path / "bad.gguf", tmp_path)
