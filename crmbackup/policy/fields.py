"""The kinds of values a policy is made of, and the base of its sections.

Every message here is for the person who writes the file. None repeats the value: it may be a secret that was
put in the wrong place.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import timedelta
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, NoReturn

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    PlainValidator,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
)
from pydantic_core import PydanticCustomError

from crmbackup.core.secrets import CommandRef, EnvRef, FileRef, SecretRef
from crmbackup.policy import cron, units

#: The `type` of the pydantic errors that `fail` raises; their `ctx` holds message, key and suggestion.
PROBLEM = "policy"

NAME_PATTERN = r"^[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}$"
PATH_PATTERN = r"^[/~][^\x00-\x1f\x7f]*$"
ENV_PATTERN = r"^[A-Za-z_][A-Za-z0-9_]*$"
CRON_PATTERN = r"^\s*[^\s@]+(\s+[^\s]+){4}\s*$"
LINE_PATTERN = r"^[^\x00-\x1f\x7f]+$"

_REFERENCE_HELP = "{env: NAME}, {file: /path} or {command: [program, argument]}"
_SECRET_KEYS = ("env", "file", "command")


def fail(message: str, *, key: str | None = None, suggestion: str | None = None) -> NoReturn:
    """Reject a value. `key` names the key inside a rejected mapping that is to blame."""
    raise PydanticCustomError(PROBLEM, "{message}", {"message": message, "key": key, "suggestion": suggestion})


class Section(BaseModel):
    """A mapping of known keys. A key without a value is an error, so that a forgotten value is never a default."""

    # Deferred: one validator is built, for the whole policy, not one for each section too. Every command waits for it.
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, defer_build=True)

    @field_validator("*", mode="before")
    @classmethod
    def _has_value(cls, value: object, info: ValidationInfo) -> object:
        # An assertion may expect NULL: there, and only there, nothing is a value.
        if value is None and info.field_name != "expect":
            fail("has no value: write one or remove the key")
        return value


def _text(value: object, help_text: str) -> str:
    if not isinstance(value, str):
        fail(f"must be {help_text}")
    return value


def _from_text(parse: Callable[[str], object], help_text: str) -> BeforeValidator:
    """A validator for texts that stand for something else. `parse` raises ValueError with the message to show."""

    def validate(value: object) -> object:
        try:
            return parse(_text(value, help_text))
        except ValueError as error:
            fail(str(error))

    return BeforeValidator(validate)


def _matches(pattern: str, message: str) -> BeforeValidator:
    compiled = re.compile(pattern)

    def validate(value: object) -> str:
        text = _text(value, "text (put it in quotes)")
        # "$" also matches before a last line end, which no text of these kinds may have.
        if compiled.fullmatch(text) is None:
            fail(message)
        return text

    return BeforeValidator(validate)


def _positive_duration(text: str) -> timedelta:
    duration = units.parse_duration(text)
    if not duration:
        raise ValueError("must be longer than nothing")
    return duration


def _positive_size(text: str) -> int:
    size = units.parse_size(text)
    if not size:
        raise ValueError("must be more than nothing")
    return size


def _absolute(text: str) -> Path:
    """The path with a leading `~` replaced. Raises ValueError."""
    if not text.startswith(("/", "~")):
        raise ValueError('must be an absolute path or start with "~": cron works in another directory than you')
    if re.fullmatch(PATH_PATTERN, text) is None:
        raise ValueError("must not hold control characters")
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise ValueError('starts with "~" and the name of no user of this machine') from None


def _timezone(value: object) -> str:
    text = _text(value, "a time zone name such as UTC or Europe/Berlin")
    try:
        cron.zone(text)
    except ValueError as error:
        fail(str(error), suggestion=cron.near_zone(text))
    return text


def _secret(value: object) -> SecretRef:
    if isinstance(value, EnvRef | FileRef | CommandRef):
        return value
    if not isinstance(value, dict):
        fail(f"must not hold the secret itself: write where it is kept, {_REFERENCE_HELP}")
    if len(value) != 1:
        fail(f"must have exactly one key: {_REFERENCE_HELP}")
    ((kind, content),) = value.items()
    if kind not in _SECRET_KEYS:
        near = get_close_matches(str(kind), _SECRET_KEYS, n=1)
        fail(f"has an unknown key: write {_REFERENCE_HELP}", suggestion=near[0] if near else None)
    if kind == "command":
        if not isinstance(content, list | tuple) or not content or not all(isinstance(each, str) for each in content):
            fail("command must be a list of texts, the program first: no shell reads it")
        if not content[0] or any("\0" in each for each in content):
            fail("command must start with the name of a program and hold no control characters")
        return CommandRef(tuple(content))
    if not isinstance(content, str):
        fail(f"{kind} must be text (put it in quotes)")
    if kind == "env":
        if re.fullmatch(ENV_PATTERN, content) is None:
            fail("env must be the name of an environment variable: letters, digits and _")
        return EnvRef(content)
    try:
        return FileRef(str(_absolute(content)))
    except ValueError as error:
        fail(f"file {error}")


def _text_schema(pattern: str, example: str) -> WithJsonSchema:
    return WithJsonSchema({"type": "string", "pattern": pattern, "examples": [example]})


_SECRET_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "env": {
            "type": "string",
            "pattern": ENV_PATTERN,
            "title": "Env",
            "description": "The environment variable that holds the secret.",
        },
        "file": {
            "type": "string",
            "pattern": PATH_PATTERN,
            "title": "File",
            "description": "The file whose content is the secret; a line end at its end does not count.",
        },
        "command": {
            "type": "array",
            "items": {"type": "string"},
            "minItems": 1,
            "title": "Command",
            "description": "The program, with its arguments, that prints the secret. No shell reads it.",
        },
    },
    "additionalProperties": False,
    "minProperties": 1,
    "maxProperties": 1,
}

Name = Annotated[
    str,
    _matches(NAME_PATTERN, 'must be 1 to 64 letters, digits, ".", "_" or "-", and must not start with "."'),
    _text_schema(NAME_PATTERN, "crm"),
]
Line = Annotated[
    str,
    _matches(LINE_PATTERN, "must be one line of text, not empty"),
    WithJsonSchema({"type": "string", "pattern": LINE_PATTERN}),
]
AbsolutePath = Annotated[
    Path, _from_text(_absolute, "a path (put it in quotes)"), _text_schema(PATH_PATTERN, "/srv/crm")
]
Duration = Annotated[
    timedelta, _from_text(units.parse_duration, units.DURATION_HELP), _text_schema(units.DURATION_PATTERN, "30s")
]
PositiveDuration = Annotated[
    timedelta, _from_text(_positive_duration, units.DURATION_HELP), _text_schema(units.DURATION_PATTERN, "1h30m")
]
PositiveSize = Annotated[int, _from_text(_positive_size, units.SIZE_HELP), _text_schema(units.SIZE_PATTERN, "20MiB")]
Percent = Annotated[
    float, _from_text(units.parse_percent, units.PERCENT_HELP), _text_schema(units.PERCENT_PATTERN, "50%")
]
Cron = Annotated[
    str,
    _from_text(cron.check_cron, 'a cron expression in quotes, such as "30 2 * * *"'),
    _text_schema(CRON_PATTERN, "30 2 * * *"),
]
TimeZone = Annotated[str, BeforeValidator(_timezone), WithJsonSchema({"type": "string", "examples": ["Europe/Berlin"]})]
SecretReference = Annotated[SecretRef, PlainValidator(_secret), WithJsonSchema(_SECRET_SCHEMA)]
