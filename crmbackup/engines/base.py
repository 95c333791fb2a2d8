"""What an engine offers to the operations, whatever the database.

Backing up: `Engine.open_snapshot` gives one consistent view, shared by all workers. Its slices are read in the
workers (`Slice.read`) and shipped as one chunk each; `Snapshot.finish` then gives the image: how to rebuild the
database from chunks, and what every table held. Leaving the context checks that the view held throughout.

Restoring: `Engine.open_restore` writes chunks where the image says, in any order, from several processes.

Chunks are known to engines by number only: numbers below `Parent.chunks` are the parent's, the rest are the new
slices in the order in which the snapshot gave them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol, TypeVar

from crmbackup.core.clock import Clock
from crmbackup.core.events import Emit

T = TypeVar("T")


class Workers(Protocol):
    """Where work runs: processes that live as long as a snapshot or a restore is open."""

    @property
    def count(self) -> int:
        """How many there are."""
        ...

    def submit(self, work: Callable[..., T], /, *args: object) -> Future[T]:
        """Run a module-level function in one of them."""
        ...

    def each(self, work: Callable[..., T], /, *args: object) -> list[T]:
        """Run a module-level function once in every one of them, all at the same time. Raises the first error."""
        ...


class Slice(Protocol):
    """A part of the database that becomes one chunk. Picklable; read in a worker that joined the snapshot."""

    @property
    def size(self) -> int:
        """About how many bytes `read` gives; used to fill packs."""
        ...

    def read(self) -> SliceData:
        """The chunk's bytes, from within the snapshot."""
        ...


@dataclass(frozen=True)
class SliceData:
    """What a worker read. `facts` go back to the engine's `finish`, picklable."""

    payload: bytes | bytearray | memoryview
    facts: object


@dataclass(frozen=True)
class Segment:
    """A part of a table with a digest of its own: rows with `low` < key <= `high`; None is open-ended.

    raw: text is taken as bytes since some of it is not valid in the database's encoding.
    """

    low: int | None
    high: int | None
    rows: int
    digest: str
    raw: bool = False


@dataclass(frozen=True)
class TableRecord:
    """What one table held inside the snapshot.

    kind: "table", "virtual", "shadow" or another word of the engine. rows and checksum are None where they could not be
    or were not asked to be computed; `reason` then says why. unreadable: the table could not be read at all, only its
    stored bytes are covered. carried: counts and checksum are the parent's, since nothing of the table changed.
    """

    name: str
    kind: str
    rows: int | None
    checksum: str | None
    algorithm: str | None
    segments: tuple[Segment, ...] = ()
    unreadable: bool = False
    reason: str = ""
    carried: bool = False


@dataclass(frozen=True)
class SourceInfo:
    """The consistent view as a whole. `size` in bytes; `position` is what the engine calls its place in time."""

    captured: datetime
    engine_version: str
    size: int
    position: Mapping[str, object]
    properties: Mapping[str, object]
    schema: Mapping[str, object]


@dataclass(frozen=True)
class Parent:
    """The snapshot that an incremental builds on, as this host remembers it.

    directory: what the engine saved for it. chunks: how many chunks its image had. layout: its image's layout.
    """

    directory: Path
    chunks: int
    layout: Mapping[str, Any]


@dataclass(frozen=True)
class Image:
    """How to rebuild the database, and what it held.

    layout: JSON, with chunks numbered from 0. chunks: which chunks (numbered as the module says) those are, in that
    order. digest: covers the whole image. not_covered: visible omissions, each a name and a reason.
    """

    layout: Mapping[str, Any]
    chunks: Sequence[int]
    digest: str
    tables: Sequence[TableRecord]
    not_covered: Sequence[tuple[str, str]] = ()


class Snapshot(ABC):
    """One consistent view that is open. `full_because` says why an incremental could not be made, else empty."""

    info: SourceInfo
    full_because: str = ""

    @property
    @abstractmethod
    def read_size(self) -> int:
        """Bytes that will be read in slices, for progress; exact once `slices` has begun."""

    @abstractmethod
    def slices(self) -> Iterator[Slice]:
        """What must be read and shipped, in order."""

    @abstractmethod
    def shipped(self, number: int, facts: object) -> None:
        """The chunk of the slice that `slices` gave as its `number`-th (from 0) is safe in storage."""

    @abstractmethod
    def finish(self) -> Image:
        """After all slices were shipped: what every table held. The state directory is then complete."""


@dataclass(frozen=True)
class CheckOutcome:
    """One check of a restored database."""

    name: str
    ok: bool
    detail: str = ""


@dataclass(frozen=True)
class Verification:
    """What a restored database was seen to hold, measured as the snapshot was."""

    engine_version: str
    tables: Sequence[TableRecord]
    schema: Mapping[str, object]
    checks: Sequence[CheckOutcome] = field(default_factory=tuple)


class Restore(ABC):
    """A database that is being rebuilt beside its target; it appears only with `commit`."""

    @abstractmethod
    def placements(self) -> Mapping[int, object]:
        """For each chunk number of the layout, where its bytes go: picklable, for `place`."""

    @property
    @abstractmethod
    def place(self) -> Callable[[object, bytes], object]:
        """Module-level function that writes one chunk's bytes; what it gives goes to `commit`."""

    @abstractmethod
    def commit(self, placed: Mapping[int, object], workers: Workers) -> None:
        """Verify the whole image, make it durable and give it its name. Raises VerificationFailed."""


class SourceEngine(ABC):
    """The side of an engine that reads one database."""

    name: str

    @abstractmethod
    def preflight(self, jobs: int) -> int:
        """Look at the source before any worker starts: raises SourceError; gives how many workers can share a view."""

    @abstractmethod
    def open_snapshot(
        self, workers: Workers, parent: Parent | None, state: Path, clock: Clock, emit: Emit
    ) -> AbstractContextManager[Snapshot]:
        """A consistent view. What the next incremental needs is saved in the empty directory `state`.

        Leaving it normally raises SourceChanged if the view did not hold to the end.
        """


class TargetEngine(ABC):
    """The side of an engine that rebuilds databases and looks at what was rebuilt. Needs no source."""

    @abstractmethod
    def open_restore(
        self, layout: Mapping[str, Any], digest: str, target: Path, *, overwrite: bool
    ) -> AbstractContextManager[Restore]:
        """Rebuild a database as the file or name `target`. Leaving without `commit` leaves nothing behind.

        Raises TargetExists, DiskFull, ObjectDamaged.
        """

    @abstractmethod
    def verify(
        self,
        workers: Workers,
        target: Path,
        tables: Sequence[TableRecord],
        properties: Mapping[str, Any],
        emit: Emit,
    ) -> Verification:
        """Read a restored database as its snapshot was read, with the same segments, and run the engine's own checks.

        properties: what `SourceInfo.properties` said.
        """

    @abstractmethod
    def query(self, target: Path, sql: str) -> object:
        """The first column of the first row that a read-only query gives on a restored database; None without a row.

        Raises SourceError for SQL that fails.
        """
