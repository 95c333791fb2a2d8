"""The log of runs: whole lines with the run's id, and a log that fails is said once."""

from __future__ import annotations

import json
import os
import socket
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from crmbackup.cli.logs import FileSink, RunLog, Sink, SyslogSink
from crmbackup.core.events import Notice, PhaseEnded, PhaseStarted, Progress, Warned


class StoppedClock:
    def now(self) -> datetime:
        return datetime(2026, 3, 1, 2, 30, 7, 120000, tzinfo=UTC)

    def monotonic(self) -> float:
        return 0.0

    def sleep(self, seconds: float) -> None:
        raise AssertionError


def run_log(*sinks: Sink, form: Literal["text", "json"] = "text") -> tuple[RunLog, list[Warned]]:
    warned: list[Warned] = []
    return RunLog(list(sinks), form, {"run": "ab12", "policy": "crm"}, StoppedClock(), warned.append), warned


def tell(log: RunLog) -> None:
    log.line("info", "start", "backup started", host="crm1")
    log.event(PhaseStarted("ship", 10))
    log.event(Progress("ship", 5))
    log.event(PhaseEnded("ship", 1.25))
    log.event(Notice("two\nlines", {"run": "not this one"}))
    log.event(Warned("full-instead", "a full one", "nothing"))


def test_text(tmp_path: Path) -> None:
    log, warned = run_log(FileSink(tmp_path / "crm.log"))
    tell(log)
    assert (tmp_path / "crm.log").read_text().splitlines() == [
        "2026-03-01T02:30:07Z info    run=ab12 policy=crm backup started",
        "2026-03-01T02:30:07Z info    run=ab12 policy=crm ship took 1.2 s",
        "2026-03-01T02:30:07Z info    run=ab12 policy=crm two\\nlines",
        "2026-03-01T02:30:07Z warning run=ab12 policy=crm full-instead: a full one (hint: nothing)",
    ]
    assert warned == []


def test_json(tmp_path: Path) -> None:
    log, _ = run_log(FileSink(tmp_path / "crm.log"), form="json")
    tell(log)
    lines = [json.loads(line) for line in (tmp_path / "crm.log").read_text().splitlines()]
    assert [(line["level"], line["type"], line["run"]) for line in lines] == [
        ("info", "start", "ab12"),
        ("info", "phase", "ab12"),
        ("info", "notice", "ab12"),
        ("warning", "warning", "ab12"),
    ]
    assert lines[0]["time"] == "2026-03-01T02:30:07.120000Z"
    assert (lines[2]["text"], lines[3]["code"]) == ("two\nlines", "full-instead")


def test_a_file_that_was_renamed_is_left_alone(tmp_path: Path) -> None:
    log, _ = run_log(FileSink(tmp_path / "crm.log"))
    log.line("info", "start", "one")
    (tmp_path / "crm.log").rename(tmp_path / "crm.log.1")
    log.line("info", "end", "two")
    assert (tmp_path / "crm.log.1").read_text().endswith("one\n")
    assert (tmp_path / "crm.log").read_text().endswith("two\n")


def test_a_log_that_cannot_be_written_is_said_once_and_hinders_no_other(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "nowhere" / "crm.log", Path("/dev/full"), tmp_path / "pipe", tmp_path):
        log, warned = run_log(FileSink(path), FileSink(tmp_path / "good.log"))
        tell(log)
        assert [each.code for each in warned] == ["log-failed"]
        assert str(path) in warned[0].text
    assert len((tmp_path / "good.log").read_text().splitlines()) == 16


def test_syslog(tmp_path: Path) -> None:
    path = str(tmp_path / "log")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        server.bind(path)
        log, warned = run_log(SyslogSink(path))
        log.event(Warned("full-instead", "Zürich", ""))
        text = server.recv(4096).decode()
    assert text.startswith(f"<28>crmbackup[{os.getpid()}]: ")  # daemon, warning
    assert text.endswith("run=ab12 policy=crm full-instead: Zürich")
    log.event(Notice("gone"))
    assert [each.code for each in warned] == ["log-failed"]
