"""Every error a user can cause. The command line prints one line of it and exits with 2.

A message says what is wrong, where (file, line, field) and how to mend it. Anything that is not a
`PandoError` is a bug of ours and keeps its traceback.
"""


class PandoError(Exception):
    """A mistake that the user can mend: one line saying what, where and how. Exit code 2."""

    exit_code = 2

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


class DataError(PandoError):
    """A row, file or split that cannot be used."""


class TaskError(PandoError):
    """A task file that does not follow the schema."""


class BaseModelError(PandoError):
    """A base model that is missing, broken or of a kind that is not supported."""


class SkinError(PandoError):
    """A skin that is missing, broken, of a newer format or made for another base."""


class RequestError(PandoError):
    """A request that the model cannot answer; `param` names the field at fault, `place` (from 0) the one of several
    that were asked together."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        self.place: int | None = None


class ContextLengthError(RequestError):
    """An input longer than the model's context. Carries both numbers, in tokens."""

    def __init__(self, tokens: int, limit: int, param: str = "prompt") -> None:
        super().__init__(
            f"the input needs {tokens} tokens and this model holds {limit}; shorten it or ask for truncate='left'",
            param,
        )
        self.tokens = tokens
        self.limit = limit


class CapabilityError(RequestError):
    """A call that this model cannot answer at all, such as scores from an API without log-probabilities."""


class FormatVersionError(PandoError):
    """A file written by a newer Pando than this one."""

    def __init__(self, what: str, found: int, known: int) -> None:
        super().__init__(f"{what} has format version {found}; this Pando reads up to {known}: upgrade pando-fm")
