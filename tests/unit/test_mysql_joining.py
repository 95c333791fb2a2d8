"""In which order the locks of a snapshot are taken, by product: on MySQL they could wait for each other."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from crmbackup.core.clock import SystemClock
from crmbackup.engines.mysql import joining, reader
from crmbackup.engines.mysql.catalog import Table
from crmbackup.engines.mysql.connection import Version, parse_server

MYISAM = Table("crm", "old", "MyISAM", 1, 1, (), (), transactional=False, elsewhere=False, history=False)


@pytest.mark.parametrize(
    ("version", "order"),
    [
        # FLUSH TABLES waits for every table that somebody has locked, MySQL's for those of this backup as well.
        (Version("mysql", (8, 4)), ["FLUSH TABLES WITH READ LOCK", "LOCK TABLES", "view", "UNLOCK TABLES"]),
        (Version("mariadb", (10, 11)), ["LOCK TABLES", "BACKUP STAGE BLOCK_COMMIT", "view", "BACKUP STAGE END"]),
    ],
    ids=str,
)
def test_tables_that_belong_to_no_snapshot_are_locked_without_waiting_for_ourselves(
    monkeypatch: pytest.MonkeyPatch, version: Version, order: list[str]
) -> None:
    said: list[str] = []

    def execute(_: object, text: str, *__: object) -> list[Any]:
        said.append(text)
        return []

    def view(*_: object) -> None:
        said.append("view")

    def connection(*_: object) -> SimpleNamespace:
        return SimpleNamespace(close=lambda: None, ping=lambda reconnect: None)

    monkeypatch.setattr(joining, "connect", connection)
    monkeypatch.setattr(joining, "version_of", lambda _: version)
    monkeypatch.setattr(joining, "read_tables", lambda *_: [MYISAM])
    monkeypatch.setattr(joining, "execute", execute)
    monkeypatch.setattr(joining, "value", lambda *_: "")
    for name in ("connect_here", "touch", "touch_all", "leave"):
        monkeypatch.setattr(reader, name, lambda *_: None)
    monkeypatch.setattr(reader, "begin", view)
    monkeypatch.setattr(reader, "open_view", lambda *_: None)
    server = parse_server("mysql://crm@localhost/crm", None)
    workers: Any = SimpleNamespace(count=2, each=lambda work, *arguments: [work(*arguments)])
    with joining.joined(workers, server, 1.0, SystemClock(), lambda _: None) as moment:
        assert moment.tables == [MYISAM]
    places = [next(place for place, text in enumerate(said) if text.startswith(wanted)) for wanted in order]
    assert places == sorted(places)
