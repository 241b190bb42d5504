"""Task and base model in, skin out. The package is callable: `pando.adapt(task, base=..., out=...)` climbs."""

from __future__ import annotations

import sys
import types
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pando.adapt.ladder import Report


class _Callable(types.ModuleType):
    def __call__(self, *args: Any, **options: Any) -> Report:
        from pando.adapt.ladder import adapt

        return adapt(*args, **options)


sys.modules[__name__].__class__ = _Callable
