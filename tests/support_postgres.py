"""A chain of snapshots of one PostgreSQL database, and restores of them, through the real engine.

with ProcessWorkers(2) as workers:
    chain = PgChain(server, scratch, workers)
    taken = chain.take()
    chain.prove(taken)
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from crmbackup.engines.base import Restore, RestoreOptions, TableRecord, Target, Verification
from crmbackup.engines.postgres.connection import Server
from crmbackup.engines.postgres.target import PostgresTarget, PostgresTargetEngine
from tests.chains import rebuild
from tests.support_postgres_snapshots import Snapshots, Taken

__all__ = ["PgChain", "Taken", "assert_same", "different", "differing_kinds"]


@dataclass
class PgChain(Snapshots):
    """Snapshots of one database, each upon the one before, and databases that are rebuilt from them."""

    look: bool = False

    def restore(self, taken: Taken, target: Target, *, spoil: Callable[[Restore, int], None] | None = None) -> None:
        """As `rebuild`."""
        rebuild(taken, target, self.workers, self.events.append, spoil)

    def target(self, server: Server, **options: object) -> PostgresTarget:
        """A database to restore to."""
        return PostgresTarget(server, RestoreOptions(**options), None)  # type: ignore[arg-type]

    def verify(self, taken: Taken, target: Target) -> Verification:
        """Look at a rebuilt database as a drill does."""
        return target.verify(self.workers, taken.image.tables, taken.info.properties, self.events.append)

    def prove(self, taken: Taken) -> Verification:
        """A drill on a private server: every record and definition is as in the source."""
        engine = PostgresTargetEngine(None, None)
        properties = taken.info.properties
        # Not in `scratch`: pytest's directories let nobody pass, and PostgreSQL does not run as root.
        directory = Path(tempfile.gettempdir())
        with engine.isolated(directory, taken.image.layout, properties, self.events.append) as place:
            self.restore(taken, place.target)
            found = self.verify(taken, place.target)
        assert place.gone()
        assert_same(taken, found)
        return found


def assert_same(taken: Taken, found: Verification) -> None:
    """What was found is what was backed up."""
    assert different(taken.image.tables, found.tables) == []
    assert differing_kinds(taken, found) == []
    assert found.schema == taken.info.schema
    assert [check for check in found.checks if not check.ok] == []


def differing_kinds(taken: Taken, found: Verification) -> list[str]:
    """Kinds of objects whose definitions are others than in the source."""
    expected: Any = taken.info.schema["kinds"]
    actual: Any = found.schema["kinds"]
    return [kind for kind in sorted({*expected, *actual}) if expected.get(kind) != actual.get(kind)]


def different(expected: Sequence[TableRecord], actual: Sequence[TableRecord]) -> list[tuple[object, object]]:
    """Records that differ in more than who computed them and why."""
    ones = {one.name: replace(one, carried=False, reason="") for one in expected}
    others = {other.name: replace(other, carried=False, reason="") for other in actual}
    names = sorted({*ones, *others})
    return [(ones.get(name), others.get(name)) for name in names if ones.get(name) != others.get(name)]
