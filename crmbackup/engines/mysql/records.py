"""The records that a drill compares: how tables are called in them, and that of all sequences."""

from __future__ import annotations

from collections.abc import Sequence

from crmbackup.engines.base import TableRecord
from crmbackup.engines.mysql.catalog import Table
from crmbackup.engines.mysql.layout import SequenceLayout
from crmbackup.engines.mysql.rows import ALGORITHM
from crmbackup.engines.sums import digest_text, sum_lines

SEQUENCES = "(sequences)"


def sequences_record(sequences: Sequence[SequenceLayout]) -> TableRecord:
    """Of all sequences together: a line for each, summed as rows are."""
    lines = [f"{each.name}\t{each.next_value}\t{each.cycles}\n".encode() for each in sequences]
    return TableRecord(SEQUENCES, "sequences", len(lines), digest_text(sum_lines(lines)), ALGORITHM)


def table_kind(table: Table) -> str:
    """The word for a table in its record."""
    return "table" if table.transactional else "non-transactional table"
