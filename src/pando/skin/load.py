"""A model by the name of a base or the folder of a skin."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pando.errors import SkinError

if TYPE_CHECKING:
    from pando.engine import Engine


def load(ref: str | Path = "smollm2-135m", device: str = "auto", dtype: str = "auto") -> Engine:
    """Loads a base model; of a skin's folder its base, with the skin's adapter on every request that names no other.

    A skin's prompt, demonstrations and parsing are not a model's business: `load_skin(folder).predict` applies them.

    Args:
        ref: name of a pulled base, Hugging Face folder, `.gguf` file, or skin folder.
        device: "auto" (CUDA, Apple MPS, CPU, in this order), "cpu", "cuda" or "mps".
        dtype: "auto" (float32 on CPU, else bfloat16), "float32", "bfloat16" or "int8" (weights only).

    Raises:
        BaseModelError: the base is not there or broken.
        SkinError: the skin is broken, or is a floor that needs no model.
        PandoError: no such device or dtype.
    """
    from pando import engine
    from pando.skin.bases import reference
    from pando.skin.store import CARD, load_skin

    folder = Path(ref)
    if not (folder / CARD).is_file() and not (folder / "skin" / CARD).is_file():
        return engine.load(ref, device, dtype)
    skin = load_skin(folder)
    if skin.base is None:
        raise SkinError(
            f"the skin in {folder} is a floor and has no base model; use load_skin({str(folder)!r}).predict"
        )
    model = engine.load(reference(skin.base), device, dtype, skin.adapter)
    skin.model(model)  # the base of this name may have changed since the skin was made
    return model
