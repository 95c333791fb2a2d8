"""What an engine offers to the operations, whatever the database.

Backing up: `SourceEngine.open_snapshot` gives one consistent view, shared by all workers. Its slices are read in the
workers (`Slice.read`) and shipped as one or more chunks each; `Snapshot.finish` then gives the image: how to rebuild
the database from chunks, and what every table held. Leaving the context checks that the view held throughout.

Restoring: `Target.open_restore` writes chunks where the image says, in stages; those of one stage in any order, from
several processes. A drill asks for an isolated target, which is gone afterwards.

Chunks are known to engines by number only: numbers below `Parent.chunks` are the parent's, the rest are told by
`Snapshot.shipped`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

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
    """A part of the database that becomes chunks. Picklable; read in a worker that joined the snapshot."""

    @property
    def size(self) -> int:
        """About how many bytes `read` gives; used to fill packs."""
        ...

    def read(self) -> Iterator[SliceData]:
        """The bytes of its chunks, in order, from within the snapshot. At least one, each of bounded size."""
        ...


class ParentChunk(NamedTuple):
    """A chunk of the parent, by its number there; size in bytes."""

    number: int
    size: int


@dataclass(frozen=True)
class SliceData:
    """One chunk that a worker read. `facts` go back to the engine's `shipped`, picklable. payload: its bytes; or which
    chunk of the parent has just these bytes, where the engine knows that without making them.
    """

    payload: bytes | bytearray | memoryview | ParentChunk
    facts: object


@dataclass(frozen=True, slots=True)
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
    def shipped(self, number: int, chunks: Sequence[tuple[int, object]]) -> None:
        """The slice that `slices` gave as its `number`-th (from 0) is safe in storage: its chunks, each with facts."""

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
    """What a restored database was seen to hold, measured as the snapshot was.

    left_out: what a drill keeps from coming back lest it act, each with the reason: names of tables as in their records,
    or other words. schema then has "without", and is compared with what the snapshot's has under "drilled".
    """

    engine_version: str
    tables: Sequence[TableRecord]
    schema: Mapping[str, object]
    checks: Sequence[CheckOutcome] = field(default_factory=tuple)
    left_out: Sequence[tuple[str, str]] = field(default_factory=tuple)


class Restore(ABC):
    """A database that is being rebuilt; nobody mistakes it for a whole one before `commit`."""

    @abstractmethod
    def stages(self) -> Iterator[Mapping[int, object]]:
        """One or more stages, each begun when everything of the one before was placed: for each chunk number of the
        layout that it needs, where the bytes go, picklable, for `place`.
        """

    @property
    @abstractmethod
    def place(self) -> Callable[[object, bytes], object]:
        """Module-level function that writes one chunk's bytes; what it gives goes to `commit`."""

    @abstractmethod
    def commit(self, placed: Mapping[int, object], workers: Workers) -> None:
        """Verify the whole image, make it durable and give it its name. Raises VerificationFailed."""


@dataclass(frozen=True)
class RestoreOptions:
    """How much to bring back, and over what. tables: only these and what they need; none means all.

    content: "all", "schema" or "data". create: make the database first. roles: "restore" gives objects to their owners
    and refuses where one is missing, "create" makes missing ones without a password, "ignore" leaves all to whoever
    restores. foreign_keys: "check" ends the restore at one that the rows break, "not-valid" makes it for new rows only.
    """

    overwrite: bool = False
    create: bool = False
    tables: tuple[str, ...] = ()
    content: str = "all"
    roles: str = "restore"
    foreign_keys: str = "check"


class Target(ABC):
    """One place for a database: to be restored to, or that was."""

    @property
    @abstractmethod
    def name(self) -> str:
        """For people: holds no secret."""

    @abstractmethod
    def check(self) -> bool:
        """Refuse early, without a snapshot, what a restore would refuse. Gives whether something would be replaced.

        Raises TargetExists, LocalError kinds, TargetError kinds.
        """

    @abstractmethod
    def describe(self, layout: Mapping[str, Any]) -> Sequence[str]:
        """Lines for the plan: what of a snapshot comes back here and what does not. Changes nothing.

        Raises UsageError for options that do not fit the snapshot, ObjectDamaged.
        """

    @abstractmethod
    def open_restore(
        self, layout: Mapping[str, Any], digest: str, workers: Workers, emit: Emit
    ) -> AbstractContextManager[Restore]:
        """Rebuild a database here. Leaving without `commit` leaves nothing behind.

        Raises TargetExists, DiskFull, ObjectDamaged.
        """

    @abstractmethod
    def verify(
        self, workers: Workers, tables: Sequence[TableRecord], properties: Mapping[str, Any], emit: Emit
    ) -> Verification:
        """Read a restored database as its snapshot was read, with the same segments, and run the engine's own checks.

        properties: what `SourceInfo.properties` said.
        """

    @abstractmethod
    def query(self, sql: str) -> object:
        """The first column of the first row that a read-only query gives on a restored database; None without a row.

        Raises SourceError for SQL that fails.
        """


@dataclass(frozen=True)
class IsolatedTarget:
    """A target for a drill. kind, place and isolation are words for the report; `gone` tells, after leaving the
    context that gave it, whether nothing of it is left.
    """

    target: Target
    kind: str
    place: str
    isolation: Sequence[str]
    empty_before: bool
    gone: Callable[[], bool]


class SourceEngine(ABC):
    """The side of an engine that reads one database."""

    name: str

    @abstractmethod
    def preflight(self, jobs: int) -> int:
        """Look at the source before any worker starts: raises SourceError; gives how many workers can share a view."""

    def programs(self, *, drills: bool) -> Sequence[str]:
        """After `preflight`: the programs and libraries on this host that backups of the source need, with versions;
        with `drills` also those that a drill on this host needs. Raises ProgramMissing.
        """
        return ()

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
    def target(self, address: str, options: RestoreOptions) -> Target:
        """The database that `address` names: a file, or a URL. Raises UsageError for what this engine cannot do."""

    @abstractmethod
    def touched(
        self, layout: Mapping[str, Any], damaged: Collection[int], read: Callable[[int], bytes | None]
    ) -> Sequence[str]:
        """What of a snapshot lies in damaged chunks: names of tables, or other words where there is no table.

        damaged: their numbers in the layout. read: gives the bytes of another chunk, None where they cannot be had; it
        may be asked for all of them. Raises ObjectDamaged for a layout that cannot be read.
        """

    @abstractmethod
    def isolated(
        self, directory: Path, layout: Mapping[str, Any], properties: Mapping[str, Any], emit: Emit
    ) -> AbstractContextManager[IsolatedTarget]:
        """A target of its own for the drill of one snapshot, where nothing can act on the outside; removed at the end.

        directory: where local files may be made. Raises LocalError kinds.
        """
