"""The records that a drill compares: of tables, of all large objects, of all sequences."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from crmbackup.engines.base import TableRecord
from crmbackup.engines.postgres.catalog import Table
from crmbackup.engines.postgres.rows import ALGORITHM
from crmbackup.engines.sums import digest_text, sum_lines

LARGE_OBJECTS = "(large objects)"
SEQUENCES = "(sequences)"
REFRESHED = "filled again by the restore from what it is made of; not compared"


class Standing(Protocol):
    """Where a sequence stands."""

    @property
    def label(self) -> str:
        """Its name."""
        ...

    @property
    def last_value(self) -> int:
        """The last value it gave, or the first it will give."""
        ...

    @property
    def is_called(self) -> bool:
        """Which of the two."""
        ...


def table_kind(table: Table) -> str:
    """A word for the record."""
    if table.extension:
        return "extension configuration"
    return "unlogged table" if table.persistence == "u" else "table"


def sequences_record(sequences: Iterable[Standing]) -> TableRecord:
    """Of all sequences together: a line for each, summed as rows are."""
    lines = [f"{s.label}\t{s.last_value}\t{'t' if s.is_called else 'f'}\n".encode() for s in sequences]
    checksum = digest_text(sum_lines(lines))
    return TableRecord(SEQUENCES, "sequences", len(lines), checksum, ALGORITHM)


def matview_record(label: str) -> TableRecord:
    """A materialised view may be older than what it is made of, so its rows need not come back."""
    return TableRecord(label, "materialized view", None, None, None, reason=REFRESHED)
