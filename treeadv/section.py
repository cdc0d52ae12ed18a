"""The base class of the sections of the configuration, and the types of numbers in them."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

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
