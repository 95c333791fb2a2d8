from __future__ import annotations

import sqlite3
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy.dialects import mysql, postgresql
from sqlalchemy.schema import CreateTable

from crmbackup.catalog import schema
from crmbackup.catalog.catalog import Catalog
from crmbackup.catalog.failures import display, parse_url, reported
from crmbackup.core.errors import CrmBackupError, LocalDenied, LocalError
from tests.unit.test_catalog import DRILL, RUN, SNAPSHOT


def filled(path: Path) -> str:
    url = f"sqlite:///{path}"
    catalog = Catalog(url)
    catalog.record(RUN)
    catalog.record(SNAPSHOT)
    catalog.record(DRILL)
    catalog.close()
    return url


def change(path: Path, *statements: str) -> None:
    connection = sqlite3.connect(path)
    for statement in statements:
        connection.execute(statement)
    connection.commit()
    connection.close()


def test_a_newer_catalog_is_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "c.db"
    url = filled(path)
    change(path, "UPDATE crmbackup_catalog SET version = 2")
    with pytest.raises(LocalError, match="form 2") as caught:
        Catalog(url)
    assert caught.value.hint
    change(path, "UPDATE crmbackup_catalog SET version = 1")
    catalog = Catalog(url)
    assert catalog.runs() == [RUN]
    catalog.close()


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE crmbackup_catalog SET version = 0",
        "DELETE FROM crmbackup_catalog",
        "DROP TABLE crmbackup_catalog",
    ],
)
def test_an_older_or_half_made_catalog_is_made_anew(tmp_path: Path, statement: str) -> None:
    path = tmp_path / "c.db"
    url = filled(path)
    change(path, statement, "ALTER TABLE crmbackup_runs DROP COLUMN bytes_read")
    catalog = Catalog(url)
    assert catalog.history == "discarded"
    assert catalog.runs() == []
    catalog.record(RUN)
    assert catalog.runs() == [RUN]
    catalog.close()


def test_a_file_that_is_no_database_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "c.db"
    path.write_bytes(b"this is not a database at all" * 200)
    with pytest.raises(LocalError, match="damaged") as caught:
        Catalog(f"sqlite:///{path}")
    assert "catalog rebuild" in caught.value.hint
    assert path.read_bytes().startswith(b"this is")


def test_a_damaged_file_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "c.db"
    url = filled(path)
    content = bytearray(path.read_bytes())
    content[4096:] = b"\xa5" * (len(content) - 4096)
    path.write_bytes(bytes(content))
    with pytest.raises(LocalError, match="damaged"):
        Catalog(url).runs()


def test_a_file_deleted_under_an_open_catalog_is_reported_and_the_next_open_starts_anew(tmp_path: Path) -> None:
    path = tmp_path / "c.db"
    url = filled(path)
    catalog = Catalog(url)
    for part in tmp_path.iterdir():
        part.unlink()
    attempts: list[Callable[[], object]] = [catalog.runs, lambda: catalog.record(RUN)]
    for attempt in attempts:
        with pytest.raises(LocalError, match="no such table") as caught:
            attempt()
        assert "catalog rebuild" in caught.value.hint
    catalog.close()
    catalog = Catalog(url)
    assert catalog.history == "new"
    catalog.close()


def test_a_read_only_catalog_can_be_read_but_not_written(tmp_path: Path) -> None:
    path = tmp_path / "c.db"
    filled(path)
    catalog = Catalog(f"sqlite:///file:{path}?mode=ro&uri=true")
    assert catalog.history == "kept"
    assert catalog.runs() == [RUN]
    with pytest.raises(LocalDenied, match="readonly"):
        catalog.record(RUN)
    assert catalog.runs() == [RUN]
    catalog.close()


def test_a_directory_in_place_of_the_file_is_reported(tmp_path: Path) -> None:
    with pytest.raises(LocalError, match="open"):
        Catalog(f"sqlite:///{tmp_path}")


def test_a_file_in_place_of_a_directory_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(LocalError):
        Catalog(f"sqlite:///{tmp_path}/file/c.db")


def test_a_catalog_kept_locked_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "c.db"
    filled(path)
    holder = sqlite3.connect(path, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    catalog = Catalog(f"sqlite:///file:{path}?timeout=0.05&uri=true")
    with pytest.raises(LocalError, match="locked") as caught:
        catalog.record(RUN)
    assert "another process" in caught.value.hint
    holder.execute("ROLLBACK")
    catalog.record(RUN)
    holder.close()
    catalog.close()


def test_a_number_that_no_database_holds_is_reported(tmp_path: Path) -> None:
    catalog = Catalog(f"sqlite:///{tmp_path}/c.db")
    with pytest.raises(LocalError):
        catalog.record(replace(RUN, bytes_read=2**70))
    assert catalog.runs() == []
    catalog.close()


def test_values_changed_from_outside_are_reported(tmp_path: Path) -> None:
    path = tmp_path / "c.db"
    url = filled(path)
    change(path, "UPDATE crmbackup_runs SET started_at = 'yesterday'")
    catalog = Catalog(url)
    with pytest.raises(LocalError):
        catalog.runs()
    catalog.close()


SECRET = "pa%2Fss-Geheim"


@pytest.mark.parametrize(
    "url",
    [
        f"postgresql+nosuch://me:{SECRET}@db.example.org:5432/crm",
        f"mysql+nosuch://me:{SECRET}@db.example.org/crm",
        f"nosuch://me:{SECRET}@db.example.org/crm",
        f"postgresql+nosuch://db.example.org/crm?password={SECRET}",
        f"mssql+pyodbc:///?odbc_connect=PWD%3D{SECRET}",
        f"postgresql://me:{SECRET}@db.example.org:port/crm",
        f"postgresql://me:{SECRET}",
        f"{SECRET}",
        "",
    ],
)
def test_no_error_holds_the_password(url: str) -> None:
    with pytest.raises(LocalError) as caught:
        Catalog(url)
    told = f"{caught.value} {caught.value.hint} {caught.value.args}"
    assert "Geheim" not in told
    assert caught.value.hint


@given(st.text(max_size=40))
def test_any_text_is_an_address_or_a_clear_error(text: str) -> None:
    try:
        display(parse_url(text))
    except LocalError as error:
        assert "database URL" in error.what  # noqa: PT017  # either outcome is right


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30))
def test_a_driver_that_repeats_the_password_is_not_repeated(password: str) -> None:
    url = parse_url("postgresql://me@db.example.org/crm").set(password=password)
    with pytest.raises(LocalError) as caught, reported(url, "open the catalog"):
        raise OSError(f"login with {password!s} failed")
    assert caught.value.why.count("***") >= 1
    assert display(url) == "postgresql://me:***@db.example.org/crm"


def test_errors_of_ours_pass_unchanged() -> None:
    with pytest.raises(CrmBackupError) as caught, reported(parse_url("sqlite://"), "open the catalog"):
        raise LocalDenied("x")
    assert caught.value.what == "x"


@pytest.mark.parametrize("dialect", [mysql.dialect(), postgresql.dialect()])
def test_other_databases_can_have_the_tables(dialect: object) -> None:
    for table in schema.metadata.sorted_tables:
        text = str(CreateTable(table).compile(dialect=dialect))  # type: ignore[arg-type]
        assert table.name.startswith("crmbackup_")
        assert ("utf8mb4_bin" in text) is isinstance(dialect, mysql.dialect)
