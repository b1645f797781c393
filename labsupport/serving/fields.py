"""What the API does with each field of a request: uses it, accepts it as harmless, or refuses it.

Nothing is ignored silently. A field that is not used is either a *label*, which asks for no other answer, or accepted
only with values that ask for nothing (``tools: []``); with any other value it is refused as unsupported. A field that
is not declared at all is a mistake of the client's, and told as one. `field_table` is the table of docs/api.md.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

UNSUPPORTED = "unsupported"  # the code of such errors, in the API and in pydantic

LABEL = "label"


class Only:
    """A field that this server lacks: null and the given values ask for nothing; others are refused."""

    def __init__(self, *values: Any, what: str | None = None) -> None:
        self.values, self.what = values, what

    def check(self, value: Any) -> Any:
        if value is None or any(_same(value, each) for each in self.values):
            return value
        raise unsupported(self.what)

    def __get_pydantic_core_schema__(self, _: Any, __: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self.check)

    def __get_pydantic_json_schema__(self, _: CoreSchema, __: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"enum": [None, *self.values], "description": "Not supported: only values that ask for nothing."}


class Lacking:
    """Before a ``Literal`` of what is supported: words of the API that are real, but not supported here."""

    def __init__(self, *words: str) -> None:
        self.words = words

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_before_validator_function(self.check, handler(source))

    def check(self, value: Any) -> Any:
        if isinstance(value, str) and value in self.words:
            raise unsupported(f'"{value}"')
        return value


def unsupported(what: str | None = None) -> PydanticCustomError:
    message = "{what} not supported by this server" if what else "not supported by this server"
    verb = f"{what} {'are' if what and what.endswith('s') else 'is'}"
    return PydanticCustomError(UNSUPPORTED, message, {"what": verb})  # type: ignore[arg-type]


def field_table(model: type[BaseModel]) -> list[tuple[str, str]]:
    """Each field of a request's model, with what becomes of it."""
    rows = []
    for name, field in model.model_fields.items():
        only = next((each for each in field.metadata if isinstance(each, Only)), None)
        if only is not None:
            values = " or ".join(f"`{_json(each)}`" for each in (None, *only.values))
            rows.append((name, f"accepted as harmless if {values}; else refused"))
        elif field.description == LABEL:
            rows.append((name, "accepted as harmless: a label"))
        else:
            rows.append((name, "used"))
    return rows


def _same(value: Any, other: Any) -> bool:
    """Equal, and not only as ``False == 0`` is."""
    return value == other and isinstance(value, bool) == isinstance(other, bool)


def _json(value: Any) -> str:
    import json

    return json.dumps(value)
