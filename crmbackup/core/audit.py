"""The audit log: lines that each hold the hash of the one before.

    {"data":{...},"event":"restore","hash":"...","host":"crm1","n":17,"operator":"ann","policy":"crm",
     "prev":"<hash of line 16>","run":"...","time":"..."}

A line is canonical JSON; `hash` is the SHA-256 of it without `hash`. Line 1 has 64 zeros for `prev`. Number and hash of
the last line, the *head*, are also kept in a file beside the log, so that a log that was cut at its end, or is gone, is
noticed by the next append and by `verify`. Whoever can write both files can forge both: only a head that was noted
elsewhere, in a message or a log on another machine, shows that.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crmbackup.core.canonical import canonical_json, parse_json
from crmbackup.core.clock import Clock, to_text
from crmbackup.core.files import PRIVATE_FILE, local_error, lock_file, make_private_directory, write_durably

_BLOCK = 64 * 1024
#: The event that `append` writes by itself where the log is not what it was when it was last written to.
CHAIN_BROKEN = "chain-broken"
FIELDS = {"data", "event", "hash", "host", "n", "operator", "policy", "prev", "run", "time"}


@dataclass(frozen=True)
class Head:
    """The last line: its number, 0 in an empty log, and its hash."""

    number: int
    digest: str

    def __str__(self) -> str:
        return f"{self.number}:{self.digest}"


START = Head(0, "0" * 64)


@dataclass(frozen=True)
class Verification:
    """What `verify` found. flaws: one sentence each, in order; empty when every line is as it was written."""

    entries: int
    head: Head
    flaws: tuple[str, ...]


class AuditLog:
    """A log file and its head. Safe for use by several processes."""

    def __init__(self, path: Path, clock: Clock) -> None:
        self.path = path
        self._head_path = path.with_suffix(".head")
        self._clock = clock

    def append(
        self,
        event: str,
        data: Mapping[str, object],
        *,
        policy: str | None,
        run: str | None,
        operator: str | None,
        host: str,
    ) -> Head:
        """Add a line and make it durable; gives its number and hash.

        data: what canonical JSON can hold, no secrets. Raises LocalError when the line could not be added, or could
        not be noted as the last one; the log is as good as before either way.
        """
        given = {"data": dict(data), "event": event, "host": host, "operator": operator, "policy": policy, "run": run}
        fields = {name: _printable(value) for name, value in given.items()}
        make_private_directory(self.path.parent)
        try:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_APPEND, PRIVATE_FILE)
        except OSError as error:
            raise local_error(error, f"write {self.path}") from error
        try:
            lock_file(descriptor, self.path, self._clock)
            head, lost = self._state(descriptor)
            lines = []
            if lost:
                broken = {**fields, "event": CHAIN_BROKEN, "data": lost, "policy": None}
                lines.append(self._line(broken, head))
                head = _head_of(lines[-1])
            lines.append(self._line(fields, head))
            head = _head_of(lines[-1])
            _write_all(descriptor, b"".join(lines))
            self._note(head)
        except OSError as error:
            raise local_error(error, f"write {self.path}") from error
        finally:
            os.close(descriptor)
        return head

    def _line(self, fields: Mapping[str, object], previous: Head) -> bytes:
        entry = {**fields, "n": previous.number + 1, "prev": previous.digest, "time": to_text(self._clock.now())}
        return canonical_json({**entry, "hash": _digest(entry)}) + b"\n"

    def _state(self, descriptor: int) -> tuple[Head, dict[str, object]]:
        """What to go on from, and what is to be said of a log that is not what it was; empty when it is."""
        noted = self.noted()
        last, rest = _tail(descriptor)
        head = _readable_head(last) if last else START
        if rest and head and head.number >= (noted or START).number:
            # A crash cut an append short, and nobody was told that it had been made.
            os.ftruncate(descriptor, os.fstat(descriptor).st_size - len(rest))
        elif rest:
            _write_all(descriptor, b"\n")
            head = None
        if head is None:
            head = Head((noted or START).number, hashlib.sha256(last).hexdigest())
            return head, {"why": "the last line cannot be read", "noted": str(noted or "")}
        if noted is None:
            return head, {} if head == START else {"why": "there is no note of the last line", "found": str(head)}
        if head.number < noted.number or (head.number == noted.number and head != noted):
            return head, {"why": "the log does not end as it did", "noted": str(noted), "found": str(head)}
        return head, {}

    def _note(self, head: Head) -> None:
        write_durably(self._head_path, canonical_json({"hash": head.digest, "n": head.number}) + b"\n")

    def noted(self) -> Head | None:
        """The head that is kept beside the log; None when it is not there or not readable."""
        try:
            fields: Any = parse_json(self._head_path.read_bytes())
            return Head(int(fields["n"]), str(fields["hash"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def entries(self) -> Iterator[dict[str, Any]]:
        """Every line that can be read, the oldest first. Raises LocalError."""
        for line in self._lines():
            entry = _readable(line)
            if entry:
                yield entry

    def verify(self, known: Head | None = None) -> Verification:
        """Whether the log is what was written. known: a head that was noted elsewhere. Raises LocalError."""
        flaws: list[str] = []
        previous, count = START, 0
        wanted = {head.number: head for head in (self.noted(), known) if head}
        seen: dict[int, str] = {}
        for count, line in enumerate(self._lines(), 1):
            entry = _readable(line)
            if entry is None:
                flaws.append(f"line {count} cannot be read, or was changed")
                previous = Head(previous.number + 1, "")
                continue
            flaws += _flaws_of(entry, previous, count)
            previous = Head(entry["n"], entry["hash"])
            seen[previous.number] = previous.digest
        if count and self.noted() is None:
            flaws.append(f"{self._head_path.name} is missing: whether lines at the end are missing cannot be told")
        for head in wanted.values():
            if head.number > previous.number:
                flaws.append(f"{_entries(previous.number + 1, head.number)} missing at the end")
            elif head.number and seen.get(head.number) != head.digest:
                flaws.append(f"entry {head.number} is not the one whose hash was noted")
        return Verification(count, previous, tuple(flaws))

    def _lines(self) -> Iterator[bytes]:
        try:
            with self.path.open("rb") as stream:
                yield from stream
        except FileNotFoundError:
            return
        except OSError as error:
            raise local_error(error, f"read {self.path}") from error


def _printable(value: object) -> object:
    """The value with bytes of file names that are not UTF-8 spelled out: JSON cannot hold them, and no name may keep a
    restore from being noted.
    """
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode("utf-8")
    if isinstance(value, dict):
        return {key: _printable(each) for key, each in value.items()}
    return [_printable(each) for each in value] if isinstance(value, list | tuple) else value


def _digest(entry: Mapping[str, object]) -> str:
    return hashlib.sha256(canonical_json(entry)).hexdigest()


def _readable(line: bytes) -> dict[str, Any] | None:
    """The entry of a whole line, None unless it is exactly what was written for its content."""
    try:
        entry: Any = parse_json(line)
        if not isinstance(entry, dict) or entry.keys() != FIELDS or not isinstance(entry["n"], int):
            return None
        right = _digest({key: value for key, value in entry.items() if key != "hash"}) == entry["hash"]
        return entry if right and canonical_json(entry) + b"\n" == line else None
    except ValueError:
        return None


def _readable_head(line: bytes) -> Head | None:
    entry = _readable(line)
    return Head(entry["n"], entry["hash"]) if entry else None


def _head_of(line: bytes) -> Head:
    entry = json.loads(line)
    return Head(entry["n"], entry["hash"])


def _flaws_of(entry: Mapping[str, Any], previous: Head, count: int) -> Iterator[str]:
    number = entry["n"]  # previous.digest is empty after a line that could not be read
    if number > previous.number + 1:
        yield f"{_entries(previous.number + 1, number - 1)} missing before line {count}"
    elif number <= previous.number:
        yield f"line {count} stands in the wrong place: it is entry {number} and follows entry {previous.number}"
    elif previous.digest and entry["prev"] != previous.digest:
        yield f"line {count} does not continue the one before it: one of them is not what was written"
    if entry["event"] == CHAIN_BROKEN:
        why = entry["data"].get("why", "") if isinstance(entry["data"], dict) else ""
        yield f"line {count} was written by crmbackup when it found that {why}"


def _tail(descriptor: int) -> tuple[bytes, bytes]:
    """The last whole line with its end, and what stands behind it."""
    size = os.fstat(descriptor).st_size
    length = min(size, _BLOCK)
    while True:
        data = os.pread(descriptor, length, size - length)
        whole, end, rest = data.rpartition(b"\n")
        if length == size or b"\n" in whole:
            return (whole.rpartition(b"\n")[2] + end if end else b""), rest
        length = min(size, length * 4)


def _write_all(descriptor: int, data: bytes) -> None:
    """All of it, durably, or nothing."""
    size = os.fstat(descriptor).st_size
    try:
        written = 0
        while written < len(data):
            written += os.write(descriptor, data[written:])
        os.fsync(descriptor)
    except OSError:
        os.ftruncate(descriptor, size)
        raise


def _entries(first: int, last: int) -> str:
    return f"entry {first} is" if first == last else f"entries {first} to {last} are"
