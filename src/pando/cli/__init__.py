"""The `pando` command. A verb's module is imported only when the verb is used, so that help stays instant.

A module `pando/cli/<verb>.py` has either `command`, a typed function, or `app`, a `typer.Typer` of sub-commands.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import os
import sys
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup
from typer.exceptions import Abort, TyperException

from pando.errors import PandoError

VERBS = {
    "pull": "Bring a base model: a known name, a hub id, a folder or a GGUF file.",
    "show": "Show what a base is made of and what it costs, or compare two.",
    "doctor": "Say what this machine offers and what is missing.",
    "pretrain": "Train a base model on a corpus; or say what it will take (--plan).",
    "runs": "Show pretraining runs: losses, speed, cost, side by side.",
    "corpus": "Turn documents into token shards, and ask what became of each.",
    "tokenizer": "Train a tokenizer on a corpus.",
    "task": "Check a task file, show what a model sees of it, print its schema.",
    "adapt": "Climb the ladder: measure every rung on a task and decide.",
    "skins": "List skins, or show one.",
    "predict": "Answer every row of a file with a skin.",
    "chat": "Talk to a base model or a skin in the terminal.",
    "serve": "Serve the base and all skins over HTTP, as OpenAI does.",
    "export": "Write a base as a Hugging Face folder or a GGUF file.",
    "upcycle": "Make a mixture of experts of a dense base.",
    "ledger": "Show what was spent: tokens, seconds, money.",
}
_MEND = {
    errno.ENOSPC: "the disk is full; make room and run it again, what was finished is kept",
    errno.EDQUOT: "the disk quota is used up; make room and run it again, what was finished is kept",
    errno.EADDRINUSE: "the port is in use; choose another with --port",
    errno.EACCES: "permission denied; check its owner and mode",
    errno.EPERM: "not permitted; check its owner and mode",
    errno.EROFS: "the disk is read-only; choose another place",
    errno.ENOENT: "no such file or folder; check the path",
    errno.EEXIST: "something else has that name; remove it or choose another",
    errno.ENOTDIR: "not a folder; check the path",
    errno.EISDIR: "a folder where a file is needed; check the path",
}


class _Verbs(TyperGroup):
    def list_commands(self, ctx: Any) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in VERBS:
            return None
        module = importlib.import_module(f"pando.cli.{cmd_name}")
        if hasattr(module, "app"):
            return typer.main.get_command(module.app)
        one = typer.Typer(add_completion=False, rich_markup_mode=None)
        one.command(cmd_name)(module.command)
        return typer.main.get_command(one)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(VERBS.items()))


app = typer.Typer(cls=_Verbs, add_completion=False, rich_markup_mode=None)


def _version(wanted: bool) -> None:
    if wanted:
        from pando import __version__

        print(f"pando {__version__}")
        raise typer.Exit


@app.callback()
def _pando(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and leave.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Many language features on one base model: adapt along a ladder, decide with honest statistics, serve, account."""


def main() -> NoReturn:
    """Runs the command line. A user's mistake is one line on standard error and exit code 2; Ctrl-C is 130."""
    try:
        code = typer.main.get_command(app).main(sys.argv[1:] or ["--help"], prog_name="pando", standalone_mode=False)
        if code == 130:  # typer turns Ctrl-C into this code
            _fail("stopped", code)
    except PandoError as error:
        code = _fail(str(error), error.exit_code)
    except TyperException as error:
        context = getattr(error, "ctx", None)
        if context and error.format_message() == context.get_help():
            print(context.get_help())  # a verb of sub-commands, called with none
            sys.exit(0)
        code = _fail(error.format_message(), 2, f" (see {context.command_path} --help)" if context else "")
    except Abort:
        code = _fail("stopped", 130)
    except OSError as error:
        if error.errno not in _MEND:
            raise
        code = _fail(": ".join(filter(None, [str(error.filename or ""), _MEND[error.errno]])), 2)
    sys.exit(code if isinstance(code, int) else 0)


def process() -> NoReturn:
    """`main` as a process of its own. Daft's threads may still be winding down at its end, and can crash an interpreter
    that is taken apart beneath them; what was made is on disk by then."""
    try:
        main()
    except SystemExit as end:
        if "daft" in sys.modules and "ray" not in sys.modules:  # Ray has a cluster to end
            with contextlib.suppress(OSError):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(end.code if isinstance(end.code, int) else 0)
        raise


def _fail(message: str, code: int, hint: str = "") -> int:
    print(f"pando: {' '.join(message.split())}{hint}", file=sys.stderr)
    return code
