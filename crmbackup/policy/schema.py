"""The policy format as JSON Schema 2020-12, for editors."""

from __future__ import annotations

from typing import Any

from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from crmbackup.policy.model import Policy


class _Generator(GenerateJsonSchema):
    """As the loader sees it: a key that may be absent may still not be empty."""

    def nullable_schema(self, schema: core_schema.NullableSchema) -> JsonSchemaValue:
        return self.generate_inner(schema["schema"])

    def default_schema(self, schema: core_schema.WithDefaultSchema) -> JsonSchemaValue:
        inner = self.generate_inner(schema["schema"])
        default = schema.get("default")
        # Absent sections and parsed values have no default that YAML could hold; the latter are told in the fields.
        if isinstance(default, bool | int | str):
            return {**inner, "default": default}
        return inner


def json_schema() -> dict[str, Any]:
    """The schema that editors use to complete and check policies.

    What it accepts may still fail the loader, which also knows time zones, cron and storage addresses.
    """
    schema = Policy.model_json_schema(schema_generator=_Generator)
    return {"$schema": _Generator.schema_dialect, **schema}
