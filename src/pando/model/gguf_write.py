"""Writes a base as one GGUF file, which llama.cpp and what is built on it open, and which we read again."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pando.errors import BaseModelError
from pando.files import atomic_file, progress
from pando.model.base import BaseModel
from pando.model.families import Gguf, family
from pando.model.gguf_tokenizer import write_tokenizer

if TYPE_CHECKING:
    import gguf

DTYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "int8": "Q8_0"}


def write_gguf(base: BaseModel, path: Path, dtype: str = "float32", licence: str | None = None) -> None:
    """Writes the file `path`: weights, tokenizer, chat template.

    Args:
        base: what to write.
        path: of the file; its folder must exist.
        dtype: of the matrices, one of DTYPES; "int8" is llama.cpp's Q8_0. Norms stay float32, as in every GGUF.
        licence: for `general.license`.

    Raises:
        BaseModelError: the family, the tokenizer or a switch has no form in GGUF; names it.
        PandoError: the file cannot be written.
    """
    import gguf

    found = family(base.config.family)
    if found.gguf is None or found.gguf.metadata is None:
        raise BaseModelError(f"the family {found.name} is not written as GGUF here; use --to hf and convert from there")
    metadata = found.gguf.metadata(base.config)
    tokenizer = write_tokenizer(base.folder, base.config.vocab_size)
    kind = gguf.GGMLQuantizationType[DTYPES[dtype]]
    with atomic_file(path) as aside:
        writer = gguf.GGUFWriter(aside, found.gguf.architecture)
        writer.add_name(base.identity.name)
        writer.add_file_type(int(gguf.LlamaFileType[f"MOSTLY_{kind.name}" if kind.name != "F32" else "ALL_F32"]))
        if licence:
            writer.add_license(licence)
        _add(writer, {f"{found.gguf.architecture}.{key}": value for key, value in metadata.items()} | tokenizer)
        _write_weights(writer, base, found.gguf, kind)
        writer.close()


def _add(writer: gguf.GGUFWriter, fields: Mapping[str, Any]) -> None:
    import gguf

    kinds = {
        bool: gguf.GGUFValueType.BOOL,
        int: gguf.GGUFValueType.UINT32,
        float: gguf.GGUFValueType.FLOAT32,
        str: gguf.GGUFValueType.STRING,
    }
    for key, value in fields.items():
        if isinstance(value, list):
            writer.add_array(key, value)
        else:
            writer.add_key_value(key, value, kinds[type(value)])


def _write_weights(writer: gguf.GGUFWriter, base: BaseModel, form: Gguf, kind: gguf.GGMLQuantizationType) -> None:
    import gguf

    parameters = dict(base.module().named_parameters())
    names, paired = dict(form.keys(base.config)), form.paired(base.config)
    block = gguf.GGML_QUANT_SIZES[kind][0]
    kinds = {
        ours: kind if p.ndim == 2 and p.shape[-1] % block == 0 else gguf.GGMLQuantizationType.F32
        for ours, p in parameters.items()
    }

    def arrays() -> Iterator[tuple[str, np.ndarray]]:
        for ours in names:
            array = parameters[ours].numpy()
            for site, heads in paired.items():
                if f".{site}." in ours:
                    array = _pairs(array, heads)
            yield ours, np.ascontiguousarray(array)

    for ours, theirs in names.items():
        shape, stored = tuple(parameters[ours].shape), kinds[ours]
        size, bytes_ = gguf.GGML_QUANT_SIZES[stored]
        # what is not a plain float is announced as its bytes
        plain = {"F32": np.float32, "F16": np.float16}.get(stored.name)
        if plain is None:
            shape = (*shape[:-1], shape[-1] // size * bytes_)
        total = parameters[ours].numel() // size * bytes_
        writer.add_tensor_info(theirs, shape, np.dtype(plain or np.uint8), total, None if plain else stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    with progress(base.config.parameters, "writing weights") as advance:
        for ours, array in arrays():
            writer.write_tensor_data(gguf.quantize(array, kinds[ours]))
            advance(array.size)


def _pairs(array: np.ndarray, heads: int) -> np.ndarray:
    """Rows of rotary halves (i, i + dim/2) as pairs (2i, 2i + 1), head by head."""
    halves = array.reshape(heads, 2, -1, *array.shape[1:])
    return halves.swapaxes(1, 2).reshape(array.shape)
