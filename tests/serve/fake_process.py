"""The `pando` command with the fake model in place of the engine.

python fake_process.py SECONDS_PER_TOKEN SECONDS_TO_LOAD VERB ...
"""

from __future__ import annotations

import sys
import time
import types
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from pando.errors import BaseModelError
from tests.serve.fake_model import FakeModel


def main() -> None:
    seconds_per_token, loading = float(sys.argv[1]), float(sys.argv[2])
    del sys.argv[1:3]

    def load(ref: str, **_: Any) -> FakeModel:
        time.sleep(loading)
        if ref == "broken":
            raise BaseModelError("the base is broken: pull it again")
        model = FakeModel()
        model.seconds_per_token = seconds_per_token
        return model

    engine: Any = types.ModuleType("pando.engine")
    engine.load = load
    sys.modules["pando.engine"] = engine
    from pando.cli import main as command

    command()


if __name__ == "__main__":
    main()
