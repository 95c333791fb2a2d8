"""Chunks that a restore needs as a file first: workers write them, each as a piece of its own."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from crmbackup.core.files import local_error


@dataclass(frozen=True)
class Piece:
    """Where one chunk goes."""

    path: Path


def write_piece(piece: Piece, data: bytes) -> None:
    """In the worker; only their owner may read pieces. Raises LocalError kinds."""
    try:
        with open(piece.path, "wb", opener=private) as stream:
            stream.write(data)
    except OSError as error:
        raise local_error(error, f"write {piece.path}") from error


def private(path: str, flags: int) -> int:
    """An opener for files that only their owner may read."""
    return os.open(path, flags, 0o600)
