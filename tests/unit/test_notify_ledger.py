"""What is remembered of runs, and the metrics that are made of it."""

from __future__ import annotations

import fcntl
import os
import sys
from pathlib import Path
from typing import cast

import pytest
from prometheus_client.parser import text_string_to_metric_families

import crmbackup.notify
from crmbackup.cli.telling import write_metrics
from crmbackup.cli.wiring import Wiring
from crmbackup.core import files
from crmbackup.core.clock import SystemClock
from crmbackup.core.errors import LocalError, NotifyFailed
from crmbackup.notify import metrics
from crmbackup.notify.ledger import ActionRecord, Ledger, Ledgers

POLICY = Path("/etc/crmbackup/policies/crm.yaml")


@pytest.fixture
def ledgers(tmp_path: Path) -> Ledgers:
    return Ledgers(tmp_path / "health", SystemClock())


def test_what_is_written_comes_back(ledgers: Ledgers) -> None:
    assert ledgers.one("crm", POLICY) is None
    with ledgers.opened("crm", POLICY) as ledger:
        ledger.facts["captured"] = 12.5
        ledger.table_rows["контакты"] = 3
        ledger.action("backup").told["key"] = [1.5, "source-missing"]
    found = ledgers.one("crm", POLICY)
    assert found == Ledger(
        "crm",
        facts={"captured": 12.5},
        table_rows={"контакты": 3},
        actions={"backup": ActionRecord(told={"key": [1.5, "source-missing"]})},
    )
    assert ledgers.one("crm", Path("/elsewhere/crm.yaml")) is None


def test_a_block_that_fails_writes_nothing(ledgers: Ledgers) -> None:
    with pytest.raises(ZeroDivisionError), ledgers.opened("crm", POLICY) as ledger:
        ledger.facts["captured"] = 1 / 0
    assert ledgers.one("crm", POLICY) is None


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"format":2}', '{"format":1,"actions":3}', '{"format":1}'])
def test_a_damaged_ledger_begins_anew(ledgers: Ledgers, tmp_path: Path, text: str) -> None:
    with ledgers.opened("crm", POLICY) as ledger:
        ledger.facts["captured"] = 1.0
    (path,) = (tmp_path / "health").glob("*.json")
    path.write_text(text)
    with ledgers.opened("crm", POLICY) as ledger:
        assert ledger == Ledger("crm")
        ledger.facts["captured"] = 2.0
    assert ledgers.one("crm", POLICY) is not None


def test_a_directory_that_cannot_be_used_is_told(
    ledgers: Ledgers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LocalError), Ledgers(tmp_path / "file", SystemClock()).opened("crm", POLICY):
        pass
    monkeypatch.setattr(files, "LOCK_SECONDS", 0.05)
    with ledgers.opened("crm", POLICY):
        pass
    with (tmp_path / "health" / "lock").open() as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(LocalError, match="keeps it locked"), ledgers.opened("crm", POLICY):
            pass


def test_policies_that_share_a_textfile_are_all_in_it(ledgers: Ledgers, tmp_path: Path) -> None:
    path = tmp_path / "crmbackup.prom"
    for name, textfile in (("crm", path), ("shop", path), ("other", tmp_path / "other.prom")):
        with ledgers.opened(name, POLICY) as ledger:
            ledger.database, ledger.place, ledger.textfile = f"{name}.db", '/srv/"b\\', str(textfile)
            ledger.facts["captured"] = 1.75e9
            ledger.table_rows["t\n1"] = 5
            record = ledger.action("drill")
            record.attempted, record.exit_code, record.seconds = 1.75e9, 7, 2.5
    path.write_text("old")
    metrics.write(path, ledgers.sharing(str(path)), "1.2.3")
    assert path.stat().st_mode & 0o777 == 0o644
    assert [each.name for each in tmp_path.iterdir() if each.name.endswith("tmp")] == []
    samples = {
        (sample.name, sample.labels["policy"]): sample
        for family in text_string_to_metric_families(path.read_text())
        for sample in family.samples
    }
    assert {policy for _, policy in samples} == {"crm", "shop"}
    sample = samples["crmbackup_last_success_timestamp_seconds", "shop"]
    assert (sample.value, sample.labels) == (1.75e9, {"policy": "shop", "database": "shop.db", "repo": '/srv/"b\\'})
    assert samples["crmbackup_last_exit_code", "crm"].labels["action"] == "drill"
    assert samples["crmbackup_table_rows", "crm"].labels["table"] == "t\n1"
    assert samples["crmbackup_build_info", "crm"].labels["version"] == "1.2.3"
    assert not any(name == "crmbackup_snapshots" for name, _ in samples), "what is not known has no series"


def test_the_collector_may_read_it_whatever_the_umask(ledgers: Ledgers, tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        metrics.write(tmp_path / "x.prom", [Ledger("crm")], "1")
    finally:
        os.umask(before)
    assert (tmp_path / "x.prom").stat().st_mode & 0o777 == 0o644


def test_a_host_without_the_library_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "crmbackup.notify.metrics", None)
    monkeypatch.delattr(crmbackup.notify, "metrics", raising=False)
    with pytest.raises(NotifyFailed) as caught:
        write_metrics(cast("Wiring", None), "/srv/crm.prom")
    assert caught.value.hint == "pip install 'crmbackup[notify]'"
