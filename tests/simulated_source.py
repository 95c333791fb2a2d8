"""A stand-in for a database and for worker processes, so that a simulation is one process."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from crmbackup.core.clock import Clock
from crmbackup.core.events import Emit
from crmbackup.engines.base import Image, Parent, Slice, SliceData, Snapshot, SourceEngine, SourceInfo, Workers
from crmbackup.operations.shipping import BATCH_BYTES, prepare


class InlineExecutor(Executor):
    """Runs what it is given at once, in this thread. What that raises comes from `submit`, a crash of its host too."""

    def submit(self, work: Callable[..., Any], /, *args: Any, **named: Any) -> Future[Any]:
        done: Future[Any] = Future()
        done.set_result(work(*args, **named))
        return done


class InlineWorkers:
    """Runs what it is given at once, in this process; uploads too."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._context: tuple[object, ...] = ()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def each(self, work: Callable[..., Any], /, *args: object) -> list[Any]:
        if work is prepare:
            self._context = (*args, InlineExecutor)
            return [prepare(*self._context)]  # type: ignore[arg-type,func-returns-value]
        return [self.submit(work, *args).result()]

    def submit(self, work: Callable[..., Any], /, *args: object) -> Future[Any]:
        prepare(*self._context)  # type: ignore[arg-type]  # several hosts share this process
        return InlineExecutor().submit(work, *args)


@dataclass(frozen=True)
class Piece:
    """One value of the database. Two fill a pack."""

    value: int
    size: int = BATCH_BYTES // 2

    def read(self) -> Iterator[SliceData]:
        yield SliceData(str(self.value).encode("ascii"), None)


class StandIn(SourceEngine):
    """A database of a few numbers."""

    name = "stand-in"

    def __init__(self, values: Sequence[int], clock: Clock) -> None:
        self._values, self._clock = tuple(values), clock

    def preflight(self, jobs: int) -> int:
        return jobs

    @contextmanager
    def open_snapshot(
        self, workers: Workers, parent: Parent | None, state: Path, clock: Clock, emit: Emit
    ) -> Iterator[StandInSnapshot]:
        yield StandInSnapshot(self._values, parent.layout if parent else {"values": []}, self._clock)


class StandInSnapshot(Snapshot):
    """Ships what differs from the parent."""

    def __init__(self, values: Sequence[int], parent: Mapping[str, Any], clock: Clock) -> None:
        self.info = SourceInfo(clock.now(), "stand-in", 8 * len(values), {}, {}, {})
        self._values = values
        before = parent["values"]
        # Chunk n of an image is its value n.
        self._chunks = {n: n for n, value in enumerate(values) if n < len(before) and before[n] == value}
        self._new = [n for n in range(len(values)) if n not in self._chunks]

    @property
    def read_size(self) -> int:
        return sum(Piece(self._values[n]).size for n in self._new)

    def slices(self) -> Iterator[Slice]:
        return (Piece(self._values[n]) for n in self._new)

    def shipped(self, number: int, chunks: Sequence[tuple[int, object]]) -> None:
        self._chunks[self._new[number]] = chunks[0][0]

    def finish(self) -> Image:
        chunks = [self._chunks[n] for n in range(len(self._values))]
        return Image({"values": list(self._values)}, chunks, "", [])
