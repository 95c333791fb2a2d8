"""Foreign tables among partitions and heirs, whose servers nobody can reach where a database is restored."""

from __future__ import annotations

from collections.abc import Callable

from tests.support_postgres import assert_same
from tests.support_postgres_cases import Case, make_case, workers

__all__ = ["make_case", "workers"]

FAR = """
CREATE EXTENSION postgres_fdw;
CREATE SERVER far FOREIGN DATA WRAPPER postgres_fdw OPTIONS (host '127.0.0.1', port '1');
CREATE USER MAPPING FOR CURRENT_USER SERVER far;
CREATE TABLE deals (id int, year int) PARTITION BY LIST (year);
CREATE FOREIGN TABLE deals_old PARTITION OF deals FOR VALUES IN (2001) SERVER far;
CREATE TABLE deals_new PARTITION OF deals FOR VALUES IN (2026);
CREATE TABLE deals_more PARTITION OF deals DEFAULT PARTITION BY LIST (year);
CREATE TABLE deals_rest PARTITION OF deals_more DEFAULT;
CREATE TABLE notes (a int); CREATE FOREIGN TABLE notes_old () INHERITS (notes) SERVER far;
INSERT INTO deals SELECT i, 2026 + i % 2 FROM generate_series(1, 500) i; INSERT INTO notes SELECT generate_series(1, 500);
"""


def test_partitions_on_servers_that_cannot_be_reached(make_case: Callable[..., Case]) -> None:
    case = make_case(FAR)
    taken = case.chain.take()
    case.chain.prove(taken)
    place = case.place()
    assert_same(taken, case.restored(taken, place))
    rows = case.execute(
        place.database, "SELECT DISTINCT tablename FROM pg_stats WHERE schemaname = 'public' ORDER BY 1"
    )
    assert rows == [("deals_more",), ("deals_new",), ("deals_rest",)]
