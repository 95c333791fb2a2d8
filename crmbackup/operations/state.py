"""What a host keeps of one policy between runs. All of it can be lost: the next snapshot is then a full one.

<state>/<repository id>/<policy>/
lock             held while a run writes; the kernel gives it back when the process ends, however it ends
chunk.key        keys the chunk ids
pending.jsonl    packs that the run at hand has written: an interrupted run's are reused
current          the name of the directory of the last committed snapshot
<snapshot id>/   parent.json, and what the engine saved
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import blake3

from crmbackup.core.canonical import canonical_json
from crmbackup.core.errors import RepositoryError
from crmbackup.core.files import local_error, make_private_directory, write_durably
from crmbackup.operations.locks import locked
from crmbackup.repository.chunks import ChunkIndex, ChunkRef, ChunkTable, PackInfo, decode_chunks, encode_chunks

_KEY_SIZE = 32
_KEY_ID_LENGTH = 16


@dataclass(frozen=True)
class Remembered:
    """The last snapshot that this host committed. rows: of all tables together, None when not counted."""

    snapshot_id: str
    key: str
    generation: str
    packs: tuple[PackInfo, ...]
    chunks: Sequence[ChunkRef]
    layout: Mapping[str, Any]
    rows: int | None
    directory: Path


class PolicyState:
    """The state directory of one policy."""

    def __init__(self, root: Path, repository_id: str, policy: str) -> None:
        self.directory = root / repository_id / policy

    def locked(self) -> AbstractContextManager[None]:
        """Keep other runs of this policy on this host out. Raises Locked, LocalError."""
        return locked(self.directory / "lock", "another run of this policy")

    def chunk_key(self) -> bytes:
        """The key of this policy's chunk ids; a new one when it is lost. What was remembered under another is lost too."""
        key = self._stored_key()
        if key is None:
            key = os.urandom(_KEY_SIZE)
            write_durably(self.directory / "chunk.key", key.hex().encode("ascii"))
        return key

    def _stored_key(self) -> bytes | None:
        try:
            key = bytes.fromhex((self.directory / "chunk.key").read_text("ascii"))
        except (OSError, ValueError):
            return None
        return key if len(key) == _KEY_SIZE else None

    def _key_id(self) -> str | None:
        """Names the chunk key. A snapshot has one key for all its chunks, so those under another cannot be reused."""
        key = self._stored_key()
        return blake3.blake3(key).hexdigest()[:_KEY_ID_LENGTH] if key else None

    def remembered(self) -> Remembered | None:
        """The last committed snapshot, if its record is whole."""
        try:
            directory = self.directory / (self.directory / "current").read_text("ascii").strip()
            body, _, digest = (directory / "parent.json").read_bytes().rpartition(b"\n")
            if blake3.blake3(body).hexdigest().encode("ascii") != digest:
                return None
            fields = json.loads(body)
            if fields["key_id"] != self._key_id():
                return None
            packs = tuple(PackInfo(str(name), int(size)) for name, size in fields["packs"])
            chunks = decode_chunks(fields["chunks"], packs)
            return Remembered(
                fields["snapshot_id"],
                fields["key"],
                fields["generation"],
                packs,
                chunks,
                fields["layout"],
                fields["rows"],
                directory,
            )
        except (OSError, ValueError, KeyError, TypeError, RepositoryError):
            return None

    def prepare(self, snapshot_id: str) -> Path:
        """A fresh directory in which the engine saves its state; leftovers of interrupted runs are removed."""
        current = self.remembered()
        try:
            for path in self.directory.iterdir():
                if path.is_dir() and (current is None or path != current.directory):
                    shutil.rmtree(path)
        except OSError as error:
            raise local_error(error, f"clean up {self.directory}") from error
        directory = self.directory / snapshot_id
        make_private_directory(directory)
        return directory

    def remember(
        self,
        directory: Path,
        *,
        snapshot_id: str,
        key: str,
        generation: str,
        packs: Sequence[PackInfo],
        chunks: Sequence[ChunkRef],
        layout: Mapping[str, object],
        rows: int | None,
    ) -> None:
        """Make a committed snapshot the parent of the next incremental."""
        fields = {
            "snapshot_id": snapshot_id,
            "key": key,
            "key_id": self._key_id(),
            "generation": generation,
            "packs": [[pack.pack_id, pack.size] for pack in packs],
            "chunks": encode_chunks(chunks, packs),
            "layout": layout,
            "rows": rows,
        }
        body = canonical_json(fields)
        write_durably(directory / "parent.json", body + b"\n" + blake3.blake3(body).hexdigest().encode("ascii"))
        write_durably(self.directory / "current", directory.name.encode("ascii"))

    # Packs of a run that is not committed yet

    def note_pack(self, pack: PackInfo, chunks: Sequence[ChunkRef]) -> None:
        """Remember a pack that is in storage, so that an interrupted run is not in vain."""
        fields = {"pack": [pack.pack_id, pack.size], "chunks": encode_chunks(chunks, [pack]), "key_id": self._key_id()}
        line = json.dumps(fields)
        path = self.directory / "pending.jsonl"
        try:
            with path.open("a", encoding="ascii") as stream:
                stream.write(line + "\n")
        except OSError as error:
            raise local_error(error, f"write {path}") from error

    def pending(self, stored: Mapping[str, int], condemned: set[str]) -> ChunkIndex:
        """Chunks of an interrupted run whose packs are in storage, whole and not condemned."""
        found = ChunkTable()
        key_id = self._key_id()
        for line in self._notes():
            try:
                fields = json.loads(line)
                pack = PackInfo(str(fields["pack"][0]), int(fields["pack"][1]))
                chunks = decode_chunks(fields["chunks"], [pack])
                same_key = fields["key_id"] == key_id
            except (ValueError, KeyError, TypeError, RepositoryError):
                continue  # the crash may have cut the last line
            if same_key and stored.get(pack.pack_id) == pack.size and pack.pack_id not in condemned:
                found.extend(chunks)
        return ChunkIndex(found)

    def _notes(self) -> Iterator[bytes]:
        """The lines that can be read: without the rest some chunks are stored once more."""
        with suppress(OSError), (self.directory / "pending.jsonl").open("rb") as stream:
            yield from stream

    def forget_pending(self) -> None:
        """After a commit. Raises LocalError."""
        path = self.directory / "pending.jsonl"
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise local_error(error, f"remove {path}") from error
