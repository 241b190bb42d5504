"""GGUF files in: read through the `gguf` package and written out as a normal Hugging Face folder in float32."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from pando.errors import BaseModelError, PandoError
from pando.files import progress
from pando.model.config import ModelConfig, RopeConfig, RopeScaling
from pando.model.families import Family, Joined, Packed, gguf_family
from pando.model.families.reading import Switches
from pando.model.gguf_tokenizer import read_tokenizer
from pando.model.sentence import embedding_files

if TYPE_CHECKING:
    import gguf
    import torch

# Llama 3.1 and later keep the stretch of rotary frequencies as one factor per frequency. Their configs differ in one
# number; the others have always been these.
_POOLINGS: dict[int, Literal["mean", "first", "last"]] = {1: "mean", 2: "first", 3: "last"}
_LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_length": 8192}


def convert(path: Path, folder: Path) -> dict[str, Any]:
    """Writes the model in the GGUF file `path` into the empty `folder`: config.json, model.safetensors (float32),
    tokenizer.json, tokenizer_config.json, generation_config.json.

    Returns:
        The file's `general.*` metadata (name, license, ...), without that prefix.

    Raises:
        BaseModelError: the file is damaged, or of a kind that is not supported; names the file and the key or tensor.
    """
    with _naming(path):
        reader = _open(path)
        fields = {name: _value(field) for name, field in reader.fields.items()}
        if fields.get("split.count", 1) not in (0, 1):
            raise BaseModelError("this is one part of a split model; join the parts with llama-gguf-split --merge")
        found = _family(fields)
        tensors = {tensor.name: tensor for tensor in reader.tensors}
        config = _config(found, fields, tensors)
        jsons = {"config.json": found.hf_config(config), **read_tokenizer(fields)}
        jsons["config.json"] |= jsons["generation_config.json"]
        _write_weights(found, config, tensors, folder / "model.safetensors")
        pooling = fields.get(f"{found.gguf.architecture}.pooling_type") if found.gguf is not None else None
        if pooling in _POOLINGS:
            jsons |= embedding_files(_POOLINGS[pooling])
            (folder / "1_Pooling").mkdir()
        for name, content in jsons.items():
            (folder / name).write_text(json.dumps(content, ensure_ascii=False, indent=1), encoding="utf-8")
        return {k.removeprefix("general."): v for k, v in fields.items() if k.startswith("general.")}


def read_gguf_config(path: Path) -> ModelConfig:
    """The config of the model in a GGUF file; no weights are read.

    Raises:
        BaseModelError: as `convert`.
    """
    with _naming(path):
        reader = _open(path)
        fields = {name: _value(field) for name, field in reader.fields.items()}
        found = _family(fields)
        return _config(found, fields, {tensor.name: tensor for tensor in reader.tensors})


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Every mistake in the file is one line that names it. The reader raises all kinds on damaged bytes."""
    try:
        yield
    except OSError:
        raise
    except PandoError as error:
        raise BaseModelError(f"{path}: {error}") from None
    except Exception as error:
        raise BaseModelError(f"{path}: not a whole GGUF file ({error or type(error).__name__})") from error


def _open(path: Path) -> gguf.GGUFReader:
    import gguf

    class Reader(gguf.GGUFReader):
        def _get(self, offset: int, dtype: Any, count: int = 1, override_order: Any = None) -> Any:
            # Without this a file cut short is read as empty arrays, and a wild count is counted to its end.
            if int(offset) + np.dtype(dtype).itemsize * int(count) > len(self.data):
                raise BaseModelError(f"the file ends before its data does ({len(self.data)} bytes); fetch it again")
            return super()._get(int(offset), dtype, count, override_order)

    if not path.is_file():
        raise BaseModelError("no such file")
    return Reader(path)


def _value(field: gguf.ReaderField) -> Any:
    """A metadata value as plain Python; float32 as the shortest decimal that means it (1e-05, not 9.99...e-06)."""
    import gguf

    value = field.contents()
    if field.types and field.types[0] == gguf.GGUFValueType.FLOAT32:
        return float(str(np.float32(value)))
    return value


def _config(found: Family, fields: dict[str, Any], tensors: dict[str, gguf.ReaderTensor]) -> ModelConfig:
    assert found.gguf is not None
    values = _below(fields, found.gguf.architecture)
    values.setdefault("vocab_size", len(fields.get("tokenizer.ggml.tokens") or ()))
    values["tied"] = "output.weight" not in tensors
    values["gated"] = any(name.endswith(".ffn_gate.weight") for name in tensors)
    values["token_types"] = fields.get("tokenizer.ggml.token_type_count")
    switches = Switches(values, "GGUF metadata")
    switches.ignore("gated", "token_types", "pooling_type")  # not every family asks
    config = found.gguf.config(switches)
    switches.close()
    if "rope_freqs.weight" in tensors:
        plain = config.layers[0].attention.rope
        assert plain is not None
        rope = _stretched(plain, tensors["rope_freqs.weight"])
        layers = tuple(
            dataclasses.replace(layer, attention=dataclasses.replace(layer.attention, rope=rope))
            for layer in config.layers
        )
        config = dataclasses.replace(config, layers=layers)
    return config


def _stretched(rope: RopeConfig, tensor: gguf.ReaderTensor) -> RopeConfig:
    """The "llama3" scaling whose frequency factors the tensor holds."""
    from pando.model.rope import frequencies

    factors = _dequantised(tensor)
    scaled = dataclasses.replace(rope, scaling=RopeScaling("llama3", float(factors.max()), **_LLAMA3))  # type: ignore[arg-type]
    expected = frequencies(rope)[0] / frequencies(scaled)[0]
    if factors.shape != expected.shape or not np.allclose(factors, expected.numpy(), rtol=1e-3):
        raise BaseModelError("tensor rope_freqs.weight stretches rotary frequencies in a way that is not supported")
    return scaled


def _below(fields: dict[str, Any], architecture: str) -> dict[str, Any]:
    """The metadata of the architecture, without its name."""
    prefix = architecture + "."
    return {name.removeprefix(prefix): value for name, value in fields.items() if name.startswith(prefix)}


def _family(fields: dict[str, Any]) -> Family:
    architecture = str(fields.get("general.architecture"))
    return gguf_family(architecture, _below(fields, architecture))


def _write_weights(found: Family, config: ModelConfig, tensors: dict[str, gguf.ReaderTensor], path: Path) -> None:
    """A few tensors at a time in memory."""
    import torch

    from pando.model.checkpoint import packed, tensors_of, write_safetensors

    assert found.gguf is not None
    shapes = config.shapes()
    joined = {one.ours: one for one in found.gguf.joined(config) if one.theirs[0][0] in tensors}
    plain = [Packed(theirs, (ours,)) for ours, theirs in found.gguf.keys(config) if ours not in joined]
    held = [*plain, *found.gguf.packed(config)]
    wanted = {part.theirs: part.shape(shapes) for part in held}
    wanted |= {name: shape for one in joined.values() for name, shape in one.theirs}
    _check(wanted, tensors, ("rope_freqs\\.weight", *found.gguf.ignored))
    source: dict[str, Packed | Joined] = {ours: part for part in held for ours in part.ours}
    source |= joined

    def read(name: str) -> torch.Tensor:
        return torch.from_numpy(_dequantised(tensors[name]).reshape(wanted[name]))

    @lru_cache(maxsize=4)  # a stack of experts is asked for once for each
    def parameters(part: Packed | Joined) -> dict[str, torch.Tensor]:
        if isinstance(part, Joined):
            return {part.ours: part.join([read(name) for name, _ in part.theirs]).contiguous()}
        pieces = part.split(read(part.theirs), [shapes[ours][0] for ours in part.ours])
        return {ours: _as_ours(found, config, ours, piece) for ours, piece in zip(part.ours, pieces, strict=True)}

    written = list(tensors_of(found, config))

    def values(advance: Any) -> Iterator[np.ndarray]:
        for part in written:
            array = packed(part, [parameters(source[ours])[ours] for ours in part.ours]).numpy()
            advance(array.size)
            yield array

    with progress(config.parameters, "converting weights") as advance:
        write_safetensors(path, {part.theirs: part.shape(shapes) for part in written}, values(advance))


def _check(wanted: dict[str, tuple[int, ...]], tensors: dict[str, gguf.ReaderTensor], ignored: Sequence[str]) -> None:
    """That all tensors are there, no others, and of the right shapes."""
    for missing in (name for name in wanted if name not in tensors):
        raise BaseModelError(f"the tensor {missing} is missing")
    for extra in sorted(tensors.keys() - wanted.keys()):
        if not any(re.fullmatch(one, extra) for one in ignored):
            raise BaseModelError(f"the tensor {extra} is not one of this architecture")
    for name, expected in wanted.items():
        shape = tuple(int(n) for n in reversed(tensors[name].shape))
        if shape != expected and math.prod(shape) == math.prod(expected) == max(shape):
            continue  # a matrix of one row is kept as a vector
        if shape != expected:
            raise BaseModelError(f"the tensor {name} has shape {list(shape)}; expected {list(expected)}")


def _as_ours(found: Family, config: ModelConfig, ours: str, array: torch.Tensor) -> torch.Tensor:
    """Undoes what llama.cpp's converter does to single parameters."""
    assert found.gguf is not None
    for site, heads in found.gguf.paired(config).items():
        if f".{site}." in ours:
            array = _halves(array, heads)
    if found.gguf.norm_offset and ours.endswith("norm.weight"):
        array = array - found.gguf.norm_offset
    return array.contiguous()


def _dequantised(tensor: gguf.ReaderTensor) -> np.ndarray:
    """float32, its dimensions in the order of a checkpoint's."""
    import gguf

    try:
        array = np.array(gguf.dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)
    except NotImplementedError:
        raise BaseModelError(
            f"the tensor {tensor.name} is quantised as {tensor.tensor_type.name}, which cannot be read"
        ) from None
    if not np.isfinite(array).all():
        raise BaseModelError(f"the tensor {tensor.name} holds numbers that are not finite")
    return array


def _halves(array: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows of rotary pairs (2i, 2i + 1) back to halves (i, i + dim/2), head by head."""
    pairs: torch.Tensor = array.unflatten(0, (heads, -1, 2))
    return pairs.transpose(1, 2).flatten(0, 2)
