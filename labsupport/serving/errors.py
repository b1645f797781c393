"""Errors in OpenAI's shape: ``{"error": {"message", "type", "param", "code"}}``, for every way a request can fail.

Clients are told what they did wrong. They are never told what broke here: that is in the log, under the request's id.
"""

from __future__ import annotations

import logging
import math
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from labsupport.serving.answer_schema import ErrorResponse
from labsupport.serving.backend import GenerationFailed, Overloaded, Unavailable
from labsupport.serving.fields import UNSUPPORTED

logger = logging.getLogger("labsupport.serving")

_MAX_TOLD = 3  # mistakes reported per body: a client could make thousands
_WRONG_KIND = ("string_type", "list_type", "int_type")
_OF_TYPES = ("str", "list[", "constrained", "function-", "nullable")  # pydantic's names for a union's members
NOT_DECLARED = "The body must be JSON and say so: send the header `Content-Type: application/json`."
_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}

RESPONSES: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorResponse, "description": description}
    for status, description in {
        400: "The request is malformed, out of range, or asks for what this server does not have",
        401: "The API key is missing or wrong",
        404: "There is no such model",
        413: "The body is too large",
        415: "The body is not declared as JSON",
        429: "The queue is full: try again after `Retry-After` seconds",
        500: "Something broke here",
        503: "The server is starting, shutting down, or its engine is dead",
    }.items()
}


class ApiError(Exception):
    """May be raised anywhere below an endpoint, and becomes its answer."""

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code


class ClientGone(Exception):
    """The client closed the connection: nobody would read the answer."""


def error_body(status: int, message: str, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    kind = _TYPES.get(status, "invalid_request_error" if status < 500 else "server_error")
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def error_of(error: BaseException) -> tuple[int, dict[str, Any], dict[str, str]]:
    """Status, body and headers for an exception."""
    if isinstance(error, ApiError):
        return error.status, error_body(error.status, error.message, error.param, error.code), {}
    if isinstance(error, Overloaded):
        seconds = str(max(1, math.ceil(error.retry_after)))
        return 429, error_body(429, str(error), code="queue_full"), {"Retry-After": seconds}
    if isinstance(error, Unavailable):
        return 503, error_body(503, str(error), code="unavailable"), {"Retry-After": "1"}
    if not isinstance(error, GenerationFailed):
        logger.error("unexpected error", exc_info=error)
    return 500, error_body(500, "The server failed; its log has the reason under this request's id."), {}


def error_response(error: BaseException) -> JSONResponse:
    status, body, headers = error_of(error)
    return JSONResponse(body, status, headers)


def install(app: FastAPI) -> None:
    """Replace every handler that would answer in another shape."""

    async def invalid(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        if not _declares_json(request):
            body = error_body(415, NOT_DECLARED, None, "unsupported_media_type")
            return JSONResponse(body, 415)
        message, param, code = explain(error.errors())
        return JSONResponse(error_body(400, message, param, code), 400)

    async def http(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        return JSONResponse(error_body(error.status_code, str(error.detail)), error.status_code, error.headers)

    async def ours(_: Request, error: Exception) -> JSONResponse:
        return error_response(error)

    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http)
    for kind in (ApiError, Overloaded, Unavailable, GenerationFailed):
        app.add_exception_handler(kind, ours)


def explain(errors: Any) -> tuple[str, str | None, str]:
    """Pydantic's errors as a sentence, the first field concerned, and a code.

    The input is not repeated: it may be huge.
    """
    if any(each["type"] == "json_invalid" for each in errors):
        reason = next(each for each in errors if each["type"] == "json_invalid").get("ctx", {}).get("error", "")
        return f"The body must be JSON: {reason}", None, "invalid_json"
    # a value of the right kind that is not supported: what else was wrong with it says nothing
    lacking = [each for each in errors if each["type"] == UNSUPPORTED]
    by_field: dict[str, dict[str, bool]] = {}
    for each in lacking or errors:
        path = [str(part) for part in each["loc"][1:]]
        field = path[0] if path else "body"
        reason = each["msg"].removeprefix("Value error, ")
        place = [part for part in path[1:] if not part.startswith(_OF_TYPES)]
        if each["type"] == "extra_forbidden":
            reason = "not a field of this request"
            field = ".".join(path)
        elif place:
            reason = f"{'.'.join(place)}: {reason}"
        told = by_field.setdefault(field, {})
        told.setdefault(reason, each["type"] in _WRONG_KIND)
    # in a union (a string or a list ...), errors about the kinds that were not meant say nothing
    reasons = {field: [why for why, wrong in told.items() if not wrong] or [*told] for field, told in by_field.items()}
    sentences = [f"{field}: {' / '.join(told[:_MAX_TOLD])}" for field, told in reasons.items()]
    more = f"; and {len(sentences) - _MAX_TOLD} more" if len(sentences) > _MAX_TOLD else ""
    first = next(iter(by_field), None)
    param = None if first == "body" else first and first[:100]
    return "; ".join(sentences[:_MAX_TOLD])[:1000] + more, param, UNSUPPORTED if lacking else "invalid_value"


def _declares_json(request: Request) -> bool:
    """A page of another site may send any other kind of body without asking: so only JSON is read, and only if said."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    return kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json"))
