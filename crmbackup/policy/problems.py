"""What is wrong with a policy, where, and in plain English."""

from __future__ import annotations

import re
import typing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from crmbackup.policy.fields import PROBLEM
from crmbackup.policy.yamltree import Flaw, Node, Path, Place

# pydantic's kinds of errors, in the words of somebody who writes YAML.
_PLAIN = {
    "model_type": "must be a mapping of keys",
    "model_attributes_type": "must be a mapping of keys",
    "dict_type": "must be a mapping of keys",
    "tuple_type": "must be a list",
    "string_type": "must be text (put it in quotes)",
    "string_too_short": "must not be empty",
    "too_short": "must not be empty",
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "bool_type": "must be true or false",
    "greater_than_equal": "must be {ge} or more",
    "less_than_equal": "must be {le} or less",
}


@dataclass(frozen=True)
class Problem:
    """One thing to correct. `line` and `column` count from 1; `path` is like `drill.assertions[0].sql`, or empty."""

    line: int
    column: int
    path: str
    message: str
    suggestion: str | None = None

    def text(self, filename: str) -> str:
        """One line for a terminal."""
        subject = f"{self.path}: " if self.path else ""
        question = f' (did you mean "{self.suggestion}"?)' if self.suggestion else ""
        return f"{filename}:{self.line}: {subject}{self.message}{question}"


def from_flaws(flaws: Sequence[Flaw], model: type[BaseModel]) -> list[Problem]:
    """Problems of the YAML itself."""
    return [_problem(flaw.place, flaw.path, flaw.message, None, model) for flaw in flaws]


def from_errors(
    errors: Sequence[ErrorDetails], root: Node, model: type[BaseModel], flawed: Sequence[Path]
) -> list[Problem]:
    """Problems of the content. What concerns a value at or below a `flawed` path is left out: it is told already."""
    found = []
    for error in errors:
        path, place = _locate(error, root)
        if any(path[: len(each)] == each for each in flawed):
            continue
        message, suggestion = _describe(error, path, model)
        found.append(_problem(place, path, message, suggestion, model))
    return found


def _locate(error: ErrorDetails, root: Node) -> tuple[Path, Place]:
    """The path in the file, without the names of union members that pydantic puts between, and its place."""
    context = error.get("ctx", {})
    location = list(error["loc"])
    if error["type"] == PROBLEM and context["key"] is not None:
        location.append(context["key"])
    path: Path = ()
    node, place = root, root.place
    for index, step in enumerate(location):
        if isinstance(node.content, dict) and step in node.content:
            place, node = node.keys[str(step)], node.content[step]
        elif isinstance(node.content, list) and isinstance(step, int) and step < len(node.content):
            node = node.content[step]
            place = node.place
        elif error["type"] != "missing" or index < len(location) - 1:
            continue
        path = (*path, step)
    return path, place


def _describe(error: ErrorDetails, path: Path, model: type[BaseModel]) -> tuple[str, str | None]:
    kind = error["type"]
    context: dict[str, Any] = error.get("ctx", {})
    if kind == PROBLEM:
        return context["message"], context["suggestion"]
    if kind == "missing":
        return "is required and not there", None
    if kind == "extra_forbidden":
        sections = list(_models(model, path[:-1]))
        # Of a union, pydantic's own path names the member.
        named = [each for each in sections if _tag(each) in error["loc"]]
        known = list((named or sections)[0].model_fields) if sections else []
        near = get_close_matches(str(path[-1]).lower(), known, n=1)
        return (
            ("is not a known key", near[0]) if near else (f"is not a known key; there may be: {', '.join(known)}", None)
        )
    if kind == "literal_error":
        known = re.findall(r"'([^']*)'", context["expected"])
        near = get_close_matches(str(error["input"]).lower(), [each.lower() for each in known], n=1)
        suggestion = next((each for each in known if near and each.lower() == near[0]), None)
        return f"must be {' or '.join(known)}", suggestion
    if kind in _PLAIN:
        return _PLAIN[kind].format(**context), None
    return "is not valid", None


def _tag(section: type[BaseModel]) -> str | None:
    """What tells a member of a union from the others: the only value of its `type`."""
    field = section.model_fields.get("type")
    values = typing.get_args(field.annotation) if field else ()
    return str(values[0]) if values else None


def _problem(place: Place, path: Path, message: str, suggestion: str | None, model: type[BaseModel]) -> Problem:
    return Problem(place.line, place.column, _path_text(path, model), message, suggestion)


def _path_text(path: Path, model: type[BaseModel]) -> str:
    """The path as text, cut behind the first unknown key: below a secret, a key may be the secret itself."""
    text = ""
    for index, step in enumerate(path):
        if isinstance(step, int):
            text += f"[{step}]"
            continue
        if next(_models(model, path[:index]), None) is None:
            break
        name = step if re.fullmatch(r"[\w.-]{1,60}", step) else ascii(step[:60])
        text += f".{name}" if text else name
    return text


def _models(model: type[BaseModel], path: Path) -> Iterator[type[BaseModel]]:
    """The sections that may stand at a path."""
    if not path:
        yield model
    elif path[0] in model.model_fields:
        rest = path[1:]
        for inner in _inside(model.model_fields[str(path[0])].annotation):
            yield from _models(inner, rest[1:] if rest and isinstance(rest[0], int) else rest)


def _inside(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in typing.get_args(annotation):
        yield from _inside(part)
