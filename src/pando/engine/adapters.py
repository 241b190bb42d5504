"""The LoRA adapters that requests name by a folder, read when they are first asked for."""

from __future__ import annotations

import threading
from pathlib import Path

import torch

from pando.errors import RequestError
from pando.files import patiently
from pando.model.lora import LoraAdapter
from pando.model.peft import has_adapter, load_peft
from pando.model.transformer import Transformer


class AdapterCache:
    """Adapters for one base, by folder; each is kept until its files change.

    Args:
        module: the base. device, number: where and in which numbers the adapters' weights are.
    """

    def __init__(self, module: Transformer, device: torch.device, number: torch.dtype) -> None:
        self._module, self._device, self._number = module, device, number
        self._known: dict[str, tuple[int, LoraAdapter]] = {}
        self._lock = threading.Lock()

    def of(self, skin: str | None) -> LoraAdapter | None:
        """The adapter in the folder of a skin or of PEFT; None if the skin has none, or where there is no skin.

        Raises:
            RequestError: the folder is not there, or holds neither.
            SkinError: the adapter is broken or does not fit the base.
        """
        return None if skin is None else patiently(lambda: self._read(skin), RequestError, FileNotFoundError)

    def _read(self, skin: str) -> LoraAdapter | None:
        folder = Path(skin)
        if not folder.is_dir():
            raise RequestError(f"skin {skin!r} is no folder; name a skin's or a PEFT adapter's folder", "skin")
        if not has_adapter(folder):
            if (folder / "skin.yaml").exists():
                return None
            raise RequestError(f"{skin} holds neither a skin nor a PEFT adapter", "skin")
        stamp = max(path.stat().st_mtime_ns for path in folder.glob("adapter_*"))
        with self._lock:
            known = self._known.get(skin)
            if known is None or known[0] != stamp:
                known = self._known[skin] = stamp, load_peft(folder, self._module, self._device, self._number)
        return known[1]
