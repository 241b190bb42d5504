"""Errors on the wire: the shape that OpenAI's clients understand, from every cause, also inside a broken stream."""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from pando.errors import ContextLengthError, PandoError, RequestError

# what the engine calls a field, and what the caller calls it
_PARAMS = {
    "context": "prompt",
    "text": "input",
    "schema": "response_format",
    "skin": "model",
    "prompt_logprobs": "logprobs",
}
_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
_PYDANTIC_CODES = {
    "missing": "missing_required_parameter",
    "extra_forbidden": "unknown_parameter",
    "unsupported_parameter": "unsupported_parameter",
}


class ApiError(HTTPException):
    """An answer other than success: HTTP status, one line, the field at fault and a code for programs."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(status, message, headers)
        self.param = param
        self.code = code

    def body(self) -> dict[str, Any]:
        """What is sent: `{"error": {message, type, param, code}}`."""
        kind = _TYPES.get(self.status_code, "server_error" if self.status_code >= 500 else "invalid_request_error")
        return {"error": {"message": self.detail, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> Response:
        """The whole HTTP answer."""
        return Response(to_json(self.body()), self.status_code, self.headers, "application/json")


def as_api_error(error: BaseException) -> ApiError:
    """What a caller is told of any error. One that is not the caller's fault goes to standard error in full."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, ContextLengthError):
        return ApiError(400, str(error), param=_param(error), code="context_length_exceeded")
    if isinstance(error, RequestError):
        return ApiError(400, str(error), param=_param(error), code="invalid_value")
    if isinstance(error, HTTPException):
        return ApiError(error.status_code, str(error.detail), headers=error.headers)
    if isinstance(error, PandoError):
        print(f"pando serve: {error}", file=sys.stderr, flush=True)
        return ApiError(500, str(error), code="server_error")
    traceback.print_exception(error, file=sys.stderr)
    return ApiError(500, "internal error; the server's log has the details", code="internal_error")


def install(app: FastAPI) -> None:
    """Gives every error of the framework our shape: unknown routes, wrong methods, bodies that do not validate."""

    async def api(_: Request, error: Exception) -> Response:
        return as_api_error(error).response()

    async def invalid(_: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return _invalid(error).response()

    app.add_exception_handler(HTTPException, api)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(Exception, api)


def to_json(content: Any) -> bytes:
    """Compact JSON, as UTF-8; half characters that a caller sent come back as question marks."""
    return json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode(errors="replace")


def _param(error: RequestError) -> str | None:
    return _PARAMS.get(error.param or "", error.param)


def _invalid(error: RequestValidationError) -> ApiError:
    """The first of the body's errors."""
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        return ApiError(400, f"the body is not valid JSON: {first.get('ctx', {}).get('error')}", code="invalid_json")
    param = first.get("ctx", {}).get("param") or _path(first["loc"][1:])
    code = _PYDANTIC_CODES.get(first["type"], "invalid_value")
    if code == "missing_required_parameter":
        message = f"{param or 'a JSON body'} is required"
    elif code == "unknown_parameter":
        message = f"unknown field {param}; leave it out"
    else:
        reason = first["msg"].removeprefix("Value error, ")
        message = f"{param}: {reason}" if param else reason
    return ApiError(400, message, param=param or None, code=code)


def _path(loc: tuple[Any, ...]) -> str:
    """messages[0].content"""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in loc).removeprefix(".")
