"""Foreign keys that the rows themselves break: for whoever needs all rows, and the keys as far as they hold."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
from psycopg import errors as pg

from crmbackup.core.errors import ObjectDamaged
from crmbackup.core.events import Emit, Notice, Warned
from crmbackup.engines.postgres.connection import Server, in_encoding, target_errors, text_of
from crmbackup.engines.postgres.programs import Program
from crmbackup.engines.postgres.restore_program import statement_of
from crmbackup.engines.postgres.restore_toc import Entry

Connection = psycopg.Connection[tuple[Any, ...]]

_HINT = "mend the rows, then ALTER TABLE ... VALIDATE CONSTRAINT ..."
_HINT_LEFT_OUT = "mend the rows, then add the key again: its definition is in the snapshot (--schema-only)"
_NAME = rb'(?:"(?:[^"]|"")*"|[^\s".]+)'
#: As pg_dump writes it: ONLY, unless the table is partitioned.
_KEY = re.compile(rb"ALTER TABLE ((?:ONLY )?" + _NAME + rb"\." + _NAME + rb")\s+ADD CONSTRAINT (" + _NAME + rb") ")


@dataclass
class BrokenKeys:
    """Keys that rows break. left_out: ids of those that could not be made at all.

    whole: statements that make a database without these rows have all keys as the source has them, for a transaction
    that is taken back: so its definitions are compared, and each key can be asked which rows break it.
    """

    left_out: set[int] = field(default_factory=set)
    whole: list[str] = field(default_factory=list)


def make_foreign_keys(
    program: Program,
    server: Server,
    archive: Path,
    keys: Sequence[Entry],
    remarks: Sequence[Entry],
    encoding: str,
    connection: Connection,
    emit: Emit,
    *,
    neutral: bool,
) -> BrokenKeys:
    """Make these foreign keys one by one, but for those that are there; one that rows break is NOT VALID, or left out
    where the server has no such (of partitioned tables before 18), with a warning, in a drill (neutral) a notice.

    remarks: comments, some of them on keys. encoding: the archive's. Raises TargetError kinds.
    """
    found = BrokenKeys()
    texts: list[bytes] = []
    for key in keys:
        text = statement_of(program, archive, key)
        # The statements are passed on byte by byte.
        with target_errors(server, key.label), in_encoding(connection, encoding):
            try:
                connection.execute(text)
            except pg.DuplicateObject:
                continue  # made before another one ended the first try
            except pg.ForeignKeyViolation as error:
                whole = _whole(text, key)
                try:
                    connection.execute(text + b" NOT VALID")
                except (pg.FeatureNotSupported, pg.WrongObjectType):
                    found.left_out.add(key.id)
                    said = [statement_of(program, archive, entry) for entry in remarks if key.id in entry.needs]
                    whole = [whole[0], text, *said]
                texts += whole
                _tell(emit, key, error, left_out=key.id in found.left_out, neutral=neutral)
    with target_errors(server):
        for text in texts:
            row = connection.execute("SELECT pg_catalog.convert_from(%b, %s)", (text, encoding)).fetchone()
            found.whole.append(str(row[0]) if row else "")
    return found


def _whole(text: bytes, key: Entry) -> list[bytes]:
    match = _KEY.match(text)
    if not match:
        raise ObjectDamaged("the definitions of the snapshot cannot be read", why=f"no foreign key in {key.label}")
    table, name = match.groups()
    return [
        b"TRUNCATE TABLE " + table + b" CASCADE",
        b"ALTER TABLE " + table.removeprefix(b"ONLY ") + b" VALIDATE CONSTRAINT " + name,
    ]


def _tell(emit: Emit, key: Entry, error: psycopg.Error, *, left_out: bool, neutral: bool) -> None:
    what = f"{key.label} {'is left out' if left_out else 'is NOT VALID'}: {text_of(error)}"
    emit(Notice(what) if neutral else Warned("constraint-broken", what, _HINT_LEFT_OUT if left_out else _HINT))
