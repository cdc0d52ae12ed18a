"""The base class of the sections of the configuration, the types of numbers in them, and the text of their faults."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from treeadv.errors import short

Positive = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
Seconds = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
NonNegative = Annotated[float, Field(ge=0)]
Beta = Annotated[float, Field(ge=0, lt=1)]
PositiveFloat = Annotated[float, Field(gt=0)]


class Section(BaseModel):
    """Options with types and limits. An unknown key is an error. Sections of the configuration, options of fork rules,
    presets and the file of a study are subclasses."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def faults(error: ValidationError) -> str:
    """Return the faults of a value on one line, each with the name of its option if it concerns one option."""
    return "; ".join(map(_fault, error.errors()))


def _fault(error: ErrorDetails) -> str:
    name, message = ".".join(map(str, error["loc"])), error["msg"].removeprefix("Value error, ")
    if error["type"] == "extra_forbidden":
        return f"unknown key {name}"
    if error["type"] not in ("missing", "value_error"):
        message = f"{message}, got {short(error['input'])}"
    return f"{name}: {message}" if name else message
