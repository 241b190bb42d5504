"""Weights in Hugging Face's layout: safetensors files, one or sharded with an index, loaded strictly. Nothing is ever
unpickled.
"""

from __future__ import annotations

import dataclasses
import json
import re
import struct
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pando.errors import BaseModelError
from pando.model.config import EXACT, ModelConfig
from pando.model.families import Family, Packed, family

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor

    from pando.model.transformer import Transformer

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object in a file of a base.

    Raises:
        BaseModelError: no such file, or not a JSON object.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BaseModelError(f"{path} does not exist: {path.parent} is not a whole model folder") from None
    except (ValueError, RecursionError) as error:
        raise BaseModelError(f"{path} is not valid JSON ({error}); fetch the model again") from None
    if not isinstance(found, dict):
        raise BaseModelError(f"{path} does not hold a JSON object; fetch the model again")
    return found


def weight_files(folder: Path) -> list[str]:
    """Names of the safetensors files that make up the weights.

    Raises:
        BaseModelError: there are none, or one that the index names is missing.
    """
    if (folder / INDEX).exists():
        shards = read_json(folder / INDEX).get("weight_map")
        if not isinstance(shards, dict) or not all(isinstance(s, str) and Path(s).name == s for s in shards.values()):
            raise BaseModelError(f"{folder / INDEX} has no weight_map of file names in this folder")
        names = sorted(set(shards.values()))
    else:
        names = [SINGLE]
    for name in names:
        if not (folder / name).is_file():
            pickles = any(folder.glob("*.bin")) or any(folder.glob("*.pt"))
            hint = "; pickled weights (.bin, .pt) are never opened, save them as safetensors" if pickles else ""
            raise BaseModelError(f"{folder} has no {name}: weights must be safetensors{hint}")
    return names


def tensors_of(found: Family, config: ModelConfig) -> Iterator[Packed]:
    """Every tensor of a Hugging Face folder, with the parameters that it holds."""
    for ours, theirs in found.keys(config):
        yield Packed(theirs, (ours,))
    yield from found.packed(config)


def packed(part: Packed, ours: Sequence[Tensor]) -> Tensor:
    """The tensor as their files have it."""
    return (ours[0][part.index] if part.index is not None else part.join(ours)).contiguous()


def load_model(folder: Path, config: ModelConfig, device: str, dtype: torch.dtype) -> Transformer:
    """Builds the model and fills it from the folder's safetensors.

    Raises:
        BaseModelError: a file is damaged, or a key is missing, unexpected or of the wrong shape; names it.
    """
    import torch

    model = _skeleton(config)
    found = family(config.family)
    parts = {one.theirs: one for one in tensors_of(found, config)}
    ignored = [pattern.replace("DEPTH", str(len(config.layers))) for pattern in found.ignored]
    shapes = config.shapes()
    state: dict[str, Tensor] = {}
    spare: dict[str, Tensor] = {}
    missing = dict.fromkeys(parts)
    for file in weight_files(folder):
        for key, tensor in _read(folder / file):
            key = found.renamed(key)
            part = parts.get(key) or parts.get(found.prefix + key)
            if part is None:
                if not any(re.fullmatch(pattern, key) for pattern in ignored):
                    spare[key] = tensor
                continue
            wanted = part.shape(shapes)
            if tuple(tensor.shape) != wanted:
                raise BaseModelError(
                    f"{folder / file}: {key} has shape {list(tensor.shape)}; config.json asks for {list(wanted)}"
                )
            missing.pop(part.theirs, None)
            if part.index is not None:
                (ours,) = part.ours
                if ours not in state:
                    state[ours] = torch.empty(shapes[ours], device=device, dtype=dtype)
                state[ours][part.index].copy_(tensor)
                continue
            pieces = part.split(tensor, [shapes[ours][0] for ours in part.ours])
            for ours, piece in zip(part.ours, pieces, strict=True):
                number = torch.float32 if ours.endswith(EXACT) else dtype
                state[ours] = piece.to(device=device, dtype=number, copy=len(pieces) > 1).contiguous()
    _drop_tied_head(config, spare, state)
    _drop_known(found, spare, state)
    for key in sorted(spare):
        raise BaseModelError(f"{folder}: unexpected key {key} in the weights; config.json describes no such part")
    for key in missing:
        raise BaseModelError(f"{folder}: the key {key} is missing in the weights")
    model.load_state_dict(state, assign=True)
    return model.requires_grad_(False).eval()


def save_model(model: Transformer, folder: Path, token_ids: dict[str, Any], max_shard_bytes: int = 5 << 30) -> None:
    """Writes config.json and the weights, in the model's own dtype, into an existing folder.

    Args:
        token_ids: `bos_token_id`, `eos_token_id` and `pad_token_id` for config.json, where there are any.
        max_shard_bytes: a file is no larger, unless one tensor is.
    """
    from safetensors.torch import save_file

    found = family(model.config.family)
    parameters = dict(model.named_parameters())
    tensors = {
        part.theirs: packed(part, [parameters[ours].detach().cpu() for ours in part.ours])
        for part in tensors_of(found, model.config)
    }
    dtype = str(next(iter(tensors.values())).dtype).removeprefix("torch.")
    hf = found.hf_config(model.config) | token_ids | {"torch_dtype": dtype}
    (folder / "config.json").write_text(json.dumps(hf, indent=1), encoding="utf-8")
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for key, tensor in tensors.items():
        if shards[-1] and size + tensor.nbytes > max_shard_bytes:
            shards.append({})
            size = 0
        shards[-1][key] = tensor
        size += tensor.nbytes
    if len(shards) == 1:
        save_file(shards[0], folder / SINGLE, {"format": "pt"})
        return
    places: dict[str, str] = {}
    for i, shard in enumerate(shards, start=1):
        name = f"model-{i:05d}-of-{len(shards):05d}.safetensors"
        save_file(shard, folder / name, {"format": "pt"})
        places |= dict.fromkeys(shard, name)
    total = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (folder / INDEX).write_text(json.dumps(index, indent=1), encoding="utf-8")


def write_safetensors(path: Path, shapes: dict[str, tuple[int, ...]], arrays: Iterable[np.ndarray]) -> None:
    """Writes float32 arrays in the order of `shapes` as they come, never holding more than one."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for key, shape in shapes.items():
        start, end = end, end + 4 * _product(shape)
        header[key] = {"dtype": "F32", "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for array in arrays:
            file.write(array.astype("<f4", copy=False).tobytes())


def _skeleton(config: ModelConfig) -> Transformer:
    import torch

    from pando.model.transformer import Transformer

    with torch.device("meta"):
        return Transformer(config)


def check_whole(path: Path) -> None:
    """That a safetensors file has a sound header and all the bytes that it names; nothing else is read.

    Raises:
        BaseModelError: it has not.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "np"):
            pass
    except SafetensorError as error:
        raise BaseModelError(f"{path} is damaged ({error}); fetch the model again") from None


def _read(path: Path) -> Iterable[tuple[str, Tensor]]:
    """The tensors of one file, mapped into memory and not read before they are used."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            for key in file.keys():  # noqa: SIM118  (it is no dict)
                yield key, file.get_tensor(key)
    except SafetensorError as error:
        raise BaseModelError(f"{path} is damaged ({error}); fetch the model again") from None


def _drop_tied_head(config: ModelConfig, spare: dict[str, Tensor], state: dict[str, Tensor]) -> None:
    """Some files of a tied model carry the head as well; it is let go where it is the embedding."""
    import torch

    untied = dict(family(config.family).keys(dataclasses.replace(config, tied=False)))
    key = untied.get("unembed.weight", "")
    head, embedding = spare.get(key), state.get("embed.weight")
    if config.tied and head is not None and embedding is not None:
        if head.shape != embedding.shape or not torch.equal(head.to(embedding), embedding):
            raise BaseModelError(
                f"{key} differs from the embedding, though config.json says the head is tied to it; if the file is "
                "right, set tie_word_embeddings to false there"
            )
        del spare[key]


def _drop_known(found: Family, spare: dict[str, Tensor], state: dict[str, Tensor]) -> None:
    """Lets go what says nothing new: further copies of the embedding, and zeros, where they are what they must be."""
    import torch

    embedding = state.get("embed.weight")
    for key, tensor in list(spare.items()):
        if embedding is not None and any(re.fullmatch(pattern, key) for pattern in found.copies):
            if tensor.shape != embedding.shape or not torch.equal(tensor.to(embedding), embedding):
                raise BaseModelError(f"{key} differs from the embedding; a {found.name} with several is not supported")
        elif any(re.fullmatch(pattern, key) for pattern in found.zeros):
            if tensor.any():
                raise BaseModelError(f"{key} is not zero, which is not supported")
        else:
            continue
        del spare[key]


def _product(shape: tuple[int, ...]) -> int:
    total = 1
    for n in shape:
        total *= n
    return total
