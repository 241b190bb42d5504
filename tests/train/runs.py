"""A training run that breaks off."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from pando.train.trainer import Trainer


def interrupted(monkeypatch: pytest.MonkeyPatch, at: int, run: Callable[[], Any]) -> None:
    """Runs until the step of that number, which fails."""
    step = Trainer.step

    def failing(self: Trainer) -> Any:
        if self.steps_made == at:
            raise RuntimeError("lights out")
        return step(self)

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="lights out"):
        patch.setattr(Trainer, "step", failing)
        run()
