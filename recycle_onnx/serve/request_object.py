"""What the JSON objects of requests have in common: all their fields are known, and what says nothing is left out."""

from __future__ import annotations

from functools import cache
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field, model_validator

Many = Field(min_length=1, fail_fast=True)
"""For lists: one error is told, so only one is looked for, as a body of megabytes may hold millions."""
Few = Field(min_length=1, max_length=4096, fail_fast=True)
"""The same of what takes microseconds each; more messages fit no context."""
NOTHING: tuple[object, ...] = (None, "", [], {})
"""What clients send for a field that they do not use."""


class RequestObject(BaseModel):
    """A JSON object whose fields are all known, with values of exactly these types.

    Of the fields in `says` null and "" mean something, as of those that are required.
    """

    says: ClassVar[frozenset[str]] = frozenset()

    model_config = ConfigDict(
        extra="forbid", strict=True, allow_inf_nan=False,
        json_schema_extra={"additionalProperties": {"enum": [None, "", [], {}]}},
    )  # fmt: skip

    @model_validator(mode="before")
    @classmethod
    def _without_unused(cls, fields: Any) -> Any:
        """Leave out fields that say nothing."""
        if not isinstance(fields, dict):
            return fields
        return {name: value for name, value in fields.items() if value not in NOTHING or name in cls._required()}

    @classmethod
    @cache
    def _required(cls) -> frozenset[str]:
        required = {field.alias or name for name, field in cls.model_fields.items() if field.is_required()}
        return cls.says | required
