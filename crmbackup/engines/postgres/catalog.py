"""What a database holds, from its catalogs: tables, sequences, large objects, and what is not carried."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, NamedTuple

import psycopg

from crmbackup.engines.postgres.connection import quoted, text_of
from crmbackup.engines.postgres.describe_sql import UNFILLED, copied, since_of
from crmbackup.engines.postgres.types import TypeFacts, read_types

Connection = psycopg.Connection[tuple[Any, ...]]

#: Schemas that belong to the server or to one session.
_OURS = "n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'"
#: Extensions that keep data outside what PostgreSQL's own catalogs tell of.
UNSUPPORTED = {
    "timescaledb": "its hypertables need hooks of its own before and after a restore",
    "citus": "its distributed tables lie on other servers",
}

_TABLES = f"""
SELECT c.oid, n.nspname, c.relname, format('%I.%I', n.nspname, c.relname), e.oid IS NOT NULL,
       has_table_privilege(c.oid, 'SELECT') AND has_schema_privilege(n.oid, 'USAGE'), row_security_active(c.oid){{more}}
  FROM pg_catalog.pg_class c
  JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
  LEFT JOIN pg_catalog.pg_am am ON am.oid = c.relam
  LEFT JOIN (SELECT u.oid, u.condition FROM pg_catalog.pg_extension x,
                    LATERAL unnest(x.extconfig, x.extcondition) AS u(oid, condition)) e ON e.oid = c.oid
 WHERE c.relkind = 'r' AND {_OURS}
   AND (e.oid IS NOT NULL OR NOT EXISTS (SELECT 1 FROM pg_catalog.pg_depend d
         WHERE d.classid = 'pg_catalog.pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e'))
 ORDER BY n.nspname COLLATE "C", c.relname COLLATE "C"
"""
_MORE = """, c.relpersistence, coalesce(am.amname, ''), coalesce(pg_relation_filenode(c.oid), 0), pg_relation_size(c.oid),
       CASE WHEN c.reltoastrelid <> 0 THEN pg_relation_size(c.reltoastrelid) ELSE 0 END, coalesce(e.condition, ''),
       NOT c.relispartition AND EXISTS (SELECT 1 FROM pg_catalog.pg_inherits i WHERE i.inhrelid = c.oid)"""

_COLUMNS = """
SELECT a.attrelid, a.attname, a.attnum, a.atttypid, a.atttypmod, a.attcollation, a.attgenerated,
       a.atthasmissing, a.attmissingval::text, a.attisdropped
  FROM pg_catalog.pg_attribute a
 WHERE a.attrelid = ANY(%s) AND a.attnum > 0
 ORDER BY a.attrelid, a.attnum
"""

_SEQUENCES = f"""
SELECT c.oid, n.nspname, c.relname, format('%I.%I', n.nspname, c.relname),
       has_table_privilege(c.oid, 'SELECT') AND has_schema_privilege(n.oid, 'USAGE')
       AND NOT (c.relpersistence = 'u' AND pg_is_in_recovery())
  FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
 WHERE c.relkind = 'S' AND {_OURS}
   AND (NOT EXISTS (SELECT 1 FROM pg_catalog.pg_depend d
         WHERE d.classid = 'pg_catalog.pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')
        OR EXISTS (SELECT 1 FROM pg_catalog.pg_extension x WHERE c.oid = ANY(x.extconfig)))
 ORDER BY n.nspname COLLATE "C", c.relname COLLATE "C"
"""

#: A hash over an enum is one over oids, which are others after a restore (pg_dump loads such partitions by the root). So is
#: one over arrays, ranges and rows of enums, or over an expression: the operator class tells, by the type that it is for:
#: anyenum, anyarray, record, anyrange, anymultirange, or an enum of its own. Other arrays, ranges and rows do no harm.
_ENUM_HASHED = """
WITH RECURSIVE hashed(oid) AS (
    SELECT p.partrelid FROM pg_catalog.pg_partitioned_table p
     WHERE p.partstrat = 'h' AND EXISTS (
           SELECT 1 FROM pg_catalog.pg_opclass o JOIN pg_catalog.pg_type t ON t.oid = o.opcintype
            WHERE o.oid = ANY(p.partclass) AND (t.oid IN (3500, 2277, 2249, 3831, 4537) OR t.typtype = 'e'))
), below(root, oid) AS (
    SELECT h.oid, i.inhrelid FROM hashed h JOIN pg_catalog.pg_inherits i ON i.inhparent = h.oid
    UNION ALL
    SELECT b.root, i.inhrelid FROM below b JOIN pg_catalog.pg_inherits i ON i.inhparent = b.oid
)
SELECT b.oid, n.nspname, c.relname FROM below b
  JOIN pg_catalog.pg_class c ON c.oid = b.root JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
 ORDER BY b.oid, b.root
"""


class Listed(NamedTuple):
    """A table as far as it can be told without waiting for whoever holds it. extension: as in `Table`. readable: the user
    has the right to. filtered: policies for rows hold for the user.
    """

    oid: int
    schema: str
    name: str
    label: str
    extension: bool
    readable: bool
    filtered: bool

    @property
    def sql(self) -> str:
        """Its name in SQL."""
        return quoted(self.schema, self.name)


@dataclass(frozen=True)
class Table:
    """One table that holds rows of its own. Picklable.

    label: qualified and quoted where needed, for people. blocks: of its heap. width: bytes that one block leads to, its
    TOAST included. columns: those that COPY carries (generated ones follow from them); of a table that inherits by name, since
    its parents' come first after a restore, wherever they lie. condition: the rows of an
    extension's configuration table that are the user's. root: the partitioned table that it must be loaded through, or
    empty. always_read: why its slices can never be skipped, or empty.
    """

    oid: int
    schema: str
    name: str
    label: str
    persistence: str
    heap: bool
    filenode: int
    size: int
    blocks: int
    width: int
    columns: tuple[str, ...]
    condition: str
    fingerprint: str
    always_read: str
    root: tuple[str, str] | None
    extension: bool

    @property
    def sql(self) -> str:
        """Its name in SQL."""
        return quoted(self.schema, self.name)

    def copy_sql(self, where: str = "") -> str:
        """COPY of the rows of the table alone, without those of tables that inherit from it."""
        columns = ", ".join(map(quoted, self.columns))
        conditions = [part for part in (where, _bare(self.condition)) if part]
        if not conditions:
            # Of a table, not a query: the server then looks at no index of it (see `_unplannable`).
            return f"COPY {self.sql} {f'({columns}) ' if columns else ''}TO STDOUT"
        rows = f"SELECT {columns} FROM ONLY {self.sql} WHERE " + " AND ".join(f"({part})" for part in conditions)
        return f"COPY ({rows}) TO STDOUT"


def _bare(condition: str) -> str:
    """An extension's condition begins with WHERE, or is empty."""
    text = condition.strip()
    return text[5:].strip() if text.upper().startswith("WHERE") else text


@dataclass(frozen=True)
class SequenceState:
    """One sequence and where it stands."""

    schema: str
    name: str
    label: str
    last_value: int
    is_called: bool


def list_tables(connection: Connection) -> list[Listed]:
    """Every table with rows of its own, by schema and name. Waits for nobody."""
    return [Listed(*row) for row in connection.execute(_TABLES.format(more="").encode())]


def read_tables(connection: Connection) -> list[Table]:
    """The same, with all that reading them needs. Waits for whoever holds a table exclusively (sizes are measured)."""
    block_size = int(_value(connection, "SHOW block_size"))
    rows = connection.execute(_TABLES.format(more=_MORE).encode()).fetchall()
    columns: dict[int, list[tuple[Any, ...]]] = defaultdict(list)
    for row in connection.execute(_COLUMNS, ([row[0] for row in rows],)):
        columns[row[0]].append(row[1:])
    types = read_types(connection)
    roots: dict[int, tuple[str, str]] = {}
    for oid, schema, name in connection.execute(_ENUM_HASHED.encode()):
        roots.setdefault(oid, (schema, name))
    unplannable = _unplannable(connection, {row[0]: quoted(row[1], row[2]) for row in rows})
    extensions = repr(
        connection.execute("SELECT extname, extversion FROM pg_catalog.pg_extension ORDER BY 1").fetchall()
    )
    tables = []
    for oid, schema, name, label, extension, _, _, persistence, method, filenode, size, toast, condition, heir in rows:
        own = columns[oid]
        carried = [column[0] for column in own if not column[8] and not column[5]]
        order = sorted(carried) if heir else carried
        blocks = size // block_size
        facts = types.of([column[2] for column in own if not column[8]])
        tables.append(
            Table(
                oid=oid,
                schema=schema,
                name=name,
                label=label,
                persistence=persistence,
                heap=method == "heap",
                filenode=filenode,
                size=size + toast,
                blocks=blocks,
                width=(size + toast) // blocks if blocks else block_size,
                columns=tuple(order),
                condition=condition,
                fingerprint=_fingerprint(
                    connection, own, facts, extensions, condition, () if order == carried else order
                ),
                always_read=unplannable.get(oid, "")
                or (facts.always_read if method == "heap" else f"its access method is {method}"),
                root=roots.get(oid),
                extension=extension,
            )
        )
    return tables


#: Tables with an index or statistics over what is not PostgreSQL's own function or operator.
_OVER_FUNCTIONS = """
SELECT i.indrelid FROM pg_catalog.pg_index i JOIN pg_catalog.pg_depend d
    ON d.classid = 'pg_catalog.pg_class'::regclass AND d.objid = i.indexrelid
 WHERE d.refclassid IN ('pg_catalog.pg_proc'::regclass, 'pg_catalog.pg_operator'::regclass) AND d.refobjid >= 16384
 UNION
SELECT s.stxrelid FROM pg_catalog.pg_statistic_ext s JOIN pg_catalog.pg_depend d
    ON d.classid = 'pg_catalog.pg_statistic_ext'::regclass AND d.objid = s.oid
 WHERE d.refclassid IN ('pg_catalog.pg_proc'::regclass, 'pg_catalog.pg_operator'::regclass) AND d.refobjid >= 16384
"""


def _unplannable(connection: Connection, tables: Mapping[int, str]) -> dict[int, str]:
    """For the oids of tables that no query can read, why. tables: names in SQL by oid. Within a transaction.

    Where an index is over a function in SQL whose text names others without their schema, the server fails to find them
    already as it plans, since our search_path is empty.
    """
    result = {}
    for (oid,) in connection.execute(_OVER_FUNCTIONS).fetchall():
        if oid not in tables:
            continue
        connection.execute("SAVEPOINT crmbackup")
        try:
            connection.execute(f"EXPLAIN SELECT FROM ONLY {tables[oid]}".encode(connection.info.encoding))
        except (psycopg.ProgrammingError, psycopg.DataError) as error:
            connection.execute("ROLLBACK TO SAVEPOINT crmbackup")
            result[oid] = f"a function of its indexes needs a search_path ({text_of(error)})"
        connection.execute("RELEASE SAVEPOINT crmbackup")
    return result


def _fingerprint(
    connection: Connection,
    columns: Sequence[tuple[Any, ...]],
    facts: TypeFacts,
    extensions: str,
    condition: str,
    order: Sequence[str],
) -> str:
    """All that can change the text of a row while its tuple stays. order: of columns that are not written as they lie."""
    parts = (connection.info.server_version, columns, facts.fingerprint, extensions, condition, *order)
    return blake2b(repr(parts).encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()


def read_sequences(connection: Connection) -> tuple[list[SequenceState], list[str]]:
    """Where every sequence stands now (sequences are outside transactions), and the labels of those that cannot be
    read: without right, or unlogged on a standby.
    """
    rows = connection.execute(_SEQUENCES.encode()).fetchall()
    denied = [row[3] for row in rows if not row[4]]
    readable = [row for row in rows if row[4]]
    result: list[SequenceState] = []
    for start in range(0, len(readable), 200):
        batch = readable[start : start + 200]
        selects = (
            f"SELECT {number}, last_value, is_called FROM {quoted(row[1], row[2])}" for number, row in enumerate(batch)
        )
        text = " UNION ALL ".join(selects).encode(connection.info.encoding)
        found = {number: (last, called) for number, last, called in connection.execute(text)}
        result += [SequenceState(row[1], row[2], row[3], *found[number]) for number, row in enumerate(batch)]
    return result, denied


def read_omissions(connection: Connection) -> list[tuple[str, str]]:
    """What a snapshot does not carry, each with the reason."""
    found = connection.execute(
        f"""
        SELECT format('%I.%I', n.nspname, c.relname), c.relkind FROM pg_catalog.pg_class c
          JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
         WHERE c.relkind = 'f' AND {_OURS} ORDER BY 1""".encode()
    ).fetchall()
    omitted = [
        (f"foreign table {label}", "its rows lie on another server; the definition is kept") for label, _ in found
    ]
    unfilled = connection.execute(
        f"""{UNFILLED}
        SELECT format('%I.%I', n.nspname, c.relname) FROM unfilled u JOIN pg_catalog.pg_class c ON c.oid = u.oid
          JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
         WHERE c.relkind = 'm' AND c.relispopulated AND {_OURS} ORDER BY 1""".encode()
    ).fetchall()
    omitted += [
        (f"materialized view {label}", "it comes back empty: it reads another one that was not filled")
        for (label,) in unfilled
    ]
    comments = connection.execute(
        f"""
        SELECT DISTINCT i.type || ' ' || i.identity
          FROM pg_catalog.pg_description d JOIN ({copied(since_of(connection.info.server_version // 10000))}) c(class, oid)
            ON c.class = d.classoid AND c.oid = d.objoid,
               LATERAL pg_catalog.pg_identify_object(d.classoid, d.objoid, d.objsubid) i ORDER BY 1""".encode()
    ).fetchall()
    omitted += [
        (f"comment on {name}", "it is on what the table has from its parent, and pg_dump leaves it out")
        for (name,) in comments
    ]
    spaces = connection.execute(
        "SELECT spcname FROM pg_catalog.pg_tablespace WHERE spcname NOT IN ('pg_default', 'pg_global') ORDER BY 1"
    ).fetchall()
    omitted += [(f"tablespace {name}", "tables come back in the default tablespace") for (name,) in spaces]
    prepared = connection.execute(
        "SELECT gid FROM pg_catalog.pg_prepared_xacts WHERE database = pg_catalog.current_database() ORDER BY 1"
    ).fetchall()
    omitted += [
        (f"prepared transaction {gid}", "it was not committed when the snapshot was taken") for (gid,) in prepared
    ]
    return omitted


def unsupported_extensions(connection: Connection) -> Mapping[str, str]:
    """Installed extensions whose data cannot be carried, and why."""
    names = {name for (name,) in connection.execute("SELECT extname FROM pg_catalog.pg_extension")}
    return {name: UNSUPPORTED[name] for name in sorted(names & UNSUPPORTED.keys())}


def read_matviews(connection: Connection) -> list[str]:
    """Materialised views that are filled and can be again, in an order in which they can be refreshed (each after what it
    reads).
    """
    rows = connection.execute(
        f"""{UNFILLED}
        SELECT c.oid, format('%I.%I', n.nspname, c.relname) FROM pg_catalog.pg_class c
          JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
         WHERE c.relkind = 'm' AND c.oid NOT IN (SELECT u.oid FROM unfilled u) AND {_OURS} ORDER BY 2""".encode()
    ).fetchall()
    found: dict[int, str] = dict(rows)
    # Of views of views too: what a relation's rule reads, over any number of steps.
    reads: dict[int, set[int]] = defaultdict(set)
    for reader, read in connection.execute(
        """
        SELECT r.ev_class, d.refobjid FROM pg_catalog.pg_rewrite r JOIN pg_catalog.pg_depend d ON d.objid = r.oid
         WHERE d.classid = 'pg_catalog.pg_rewrite'::regclass AND d.refclassid = 'pg_catalog.pg_class'::regclass
           AND d.refobjid <> r.ev_class AND r.rulename = '_RETURN'"""
    ):
        reads[reader].add(read)
    order: list[str] = []
    done: set[int] = set()

    def visit(oid: int) -> None:
        stack = [(oid, iter(sorted(reads[oid])))]
        done.add(oid)
        while stack:
            current, rest = stack[-1]
            following = next((item for item in rest if item not in done), None)
            if following is not None:
                done.add(following)
                stack.append((following, iter(sorted(reads[following]))))
                continue
            stack.pop()
            if current in found:
                order.append(found[current])

    for oid in sorted(found):
        if oid not in done:
            visit(oid)
    return order


def _value(connection: Connection, sql: str) -> Any:
    row = connection.execute(sql.encode()).fetchone()
    assert row is not None
    return row[0]
