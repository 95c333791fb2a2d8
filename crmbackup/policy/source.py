"""What a policy protects: one section per kind of database, told apart by `type`."""

from __future__ import annotations

from datetime import timedelta
from difflib import get_close_matches
from typing import Annotated, Literal

from pydantic import BeforeValidator, ConfigDict, Field, ValidationInfo, field_validator

from crmbackup.policy.fields import AbsolutePath, Duration, Percent, Section, fail

#: The kinds of `type` in this version. A further kind is a section here and a member of the union `Source`.
SUPPORTED = ("sqlite",)


class SqliteSource(Section):
    """A SQLite database file."""

    # An encrypted file has no tables that crmbackup could read.
    model_config = ConfigDict(
        json_schema_extra={
            "if": {"properties": {"encrypted": {"const": True}}, "required": ["encrypted"]},
            "then": {"properties": {"checksums": {"const": "pages"}}, "required": ["checksums"]},
        }
    )

    type: Literal["sqlite"] = Field(description="The kind of database.")
    path: AbsolutePath = Field(description="The database file: an absolute path, or one that starts with ~.")
    checksums: Literal["tables", "pages"] = Field(
        default="tables",
        description="What a drill compares: rows of each table, read once more by SQL during the backup, "
        "or only the pages of the file.",
    )
    busy_timeout: Duration = Field(
        default=timedelta(seconds=30),
        description="How long to wait for another process that locks the database.",
        json_schema_extra={"default": "30s"},
    )
    max_shrink: Percent = Field(
        default=0.5,
        description="A backup fails if the source lost more than this share of its rows or bytes since the last "
        "snapshot. 100% turns the guard off.",
        json_schema_extra={"default": "50%"},
    )
    encrypted: bool = Field(
        default=False,
        description="The file is encrypted as a whole (SQLCipher and the like): it is read as pages and never "
        "opened as a database. Needs checksums: pages.",
    )

    @field_validator("encrypted")
    @classmethod
    def _pages_only(cls, value: bool, info: ValidationInfo) -> bool:
        if value and info.data.get("checksums") == "tables":
            fail("needs checksums: pages, because the tables of an encrypted file cannot be read")
        return value


def _supported(value: object) -> object:
    """Tell of an unsupported kind alone: its other keys would only look unknown."""
    if isinstance(value, dict) and isinstance(value.get("type"), str) and value["type"] not in SUPPORTED:
        near = get_close_matches(value["type"], SUPPORTED, n=1)
        fail(
            f"is not supported by this version, which knows: {', '.join(SUPPORTED)}",
            key="type",
            suggestion=near[0] if near else None,
        )
    return value


Source = Annotated[SqliteSource, BeforeValidator(_supported)]
