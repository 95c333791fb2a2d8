from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crmbackup.catalog.catalog import Catalog
from crmbackup.catalog.inbox import Inbox
from crmbackup.catalog.records import Row
from crmbackup.cli.wiring import Wiring
from crmbackup.core.clock import SystemClock
from crmbackup.core.errors import LocalError
from tests.unit.test_catalog import DRILL, MOMENTS, RUN, SNAPSHOT

#: With what names of files and messages of servers may hold.
ANYTHING = st.text(st.characters(), max_size=20)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "catalog.inbox"


@pytest.fixture
def inbox(path: Path) -> Inbox:
    return Inbox(path, SystemClock())


def taken(inbox: Inbox) -> list[Row]:
    found: list[Row] = []
    inbox.empty(found.extend)
    return found


@given(text=ANYTHING, moment=MOMENTS, number=st.integers(0, 2**63 - 1), seconds=st.floats(0, 1e9))
def test_rows_come_out_as_they_went_in(
    tmp_path_factory: pytest.TempPathFactory, text: str, moment: datetime, number: int, seconds: float
) -> None:
    rows: list[Row] = [
        replace(RUN, error_text=text, finished_at=moment, bytes_read=number),
        replace(SNAPSHOT, policy=text, captured_at=moment, size=number),
        replace(DRILL, report_path=text, started_at=moment, rto_seconds=seconds),
        replace(RUN, finished_at=None, bytes_read=None),
    ]
    inbox = Inbox(tmp_path_factory.mktemp("inbox") / "catalog.inbox", SystemClock())
    inbox.add(rows[:1])
    inbox.add(rows[1:])
    assert taken(inbox) == rows
    assert taken(inbox) == []


def test_an_inbox_that_never_was_is_empty(inbox: Inbox, path: Path) -> None:
    assert taken(inbox) == []
    assert not path.exists()
    assert inbox.add([RUN]) == path.stat().st_size
    assert path.stat().st_mode & 0o777 == 0o600


def test_an_append_that_a_crash_cut_short_is_left_out(inbox: Inbox, path: Path) -> None:
    inbox.add([RUN])
    with path.open("ab") as stream:
        stream.write(b'{"Run": {"run_id": "r2", "pol')
    assert taken(inbox) == [RUN]
    with path.open("ab") as stream:
        stream.write(b'{"Run": {"run_id": "r2", "pol')
    inbox.add([SNAPSHOT])
    assert taken(inbox) == [SNAPSHOT]


def test_rows_that_could_not_be_put_wait_on(inbox: Inbox, tmp_path: Path) -> None:
    inbox.add([RUN, SNAPSHOT])

    def refuse(_: object) -> None:
        raise LocalError("the catalog is locked")

    with pytest.raises(LocalError, match="locked"):
        inbox.empty(refuse)
    with closing(Catalog(f"sqlite:///{tmp_path}/catalog.db")) as catalog:
        catalog.record(RUN)  # as it was before a crash between putting and forgetting
        inbox.empty(lambda rows: catalog.record(*rows))
        assert catalog.runs() == [RUN]
        assert catalog.snapshots() == [SNAPSHOT]


@pytest.mark.parametrize(
    "line", ["", "no JSON", "[]", '{"Other": {}}', '{"Run": {}}', '{"Run": {"at": 1}}', '{"Run": {"started_at": "x"}}']
)
def test_lines_of_somebody_else_are_an_error_that_says_what_to_do(inbox: Inbox, path: Path, line: str) -> None:
    inbox.add([RUN])
    with path.open("a") as stream:
        stream.write(line + "\n")
    with pytest.raises(LocalError, match="line 2") as caught:
        taken(inbox)
    assert "catalog rebuild" in caught.value.hint
    assert path.stat().st_size


def test_the_catalog_takes_rows_up_when_it_is_read_and_when_many_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = {
        "HOME": str(tmp_path),
        "CRMBACKUP_STATE_DIR": str(tmp_path / "state"),
        "CRMBACKUP_CONFIG_DIR": str(tmp_path),
    }
    host = Wiring(home, tmp_path, SystemClock())
    host.record(None, RUN, SNAPSHOT)
    assert not host.paths.catalog.exists()
    with closing(host.catalog(None)) as catalog:
        assert (catalog.runs(), catalog.snapshots()) == ([RUN], [SNAPSHOT])

    monkeypatch.setattr("crmbackup.catalog.inbox.LIMIT", 1)
    host.record(None, DRILL)
    assert host.paths.catalog_inbox.stat().st_size == 0
    with closing(Catalog(f"sqlite:///{host.paths.catalog}")) as catalog:
        assert catalog.drills() == [DRILL]
