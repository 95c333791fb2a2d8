"""What this host remembers of a snapshot, in one file that is used only if not a byte of it changed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from hashlib import blake2b
from pathlib import Path
from typing import Any

from crmbackup.core.files import local_error


class MemoryLostError(Exception):
    """What was remembered cannot be used; the text says why."""


def save_remembered(path: Path, version: int, fields: Mapping[str, object]) -> None:
    """Write fields that JSON can hold. One wrong digit in there could hide changed rows: a digest goes before them.

    Raises LocalError.
    """
    text = json.dumps({**fields, "version": version})
    try:
        path.write_text(f"{_digest(text)}\n{text}", "ascii")
    except OSError as error:
        raise local_error(error, f"write {path}") from error


def load_remembered(path: Path, version: int) -> Mapping[str, Any]:
    """Read them back. Raises MemoryLostError."""
    try:
        digest, _, text = path.read_text("ascii").partition("\n")
        if digest != _digest(text):
            raise MemoryLostError("this host's memory of the last snapshot is damaged")
        fields: Mapping[str, Any] = json.loads(text)
        if fields["version"] != version:
            raise MemoryLostError("this host's memory of the last snapshot is from another version")
        return fields
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise MemoryLostError("this host's memory of the last snapshot cannot be read") from error


def _digest(text: str) -> str:
    return blake2b(text.encode("ascii"), digest_size=16).hexdigest()
