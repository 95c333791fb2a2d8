"""On a terminal: questions, a passphrase that is not shown, the recovery sheet with its QR code, bars."""

from __future__ import annotations

import codecs
import os
import pty
import re
import select
import struct
import time
from fcntl import ioctl
from pathlib import Path
from subprocess import Popen
from termios import TIOCSWINSZ

import pytest
import segno

from tests.e2e.product import SECONDS, Host, content, stopped_at_end, write_policy

pytestmark = pytest.mark.e2e
PASSPHRASE = "otter granite velvet canal"
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Terminal:
    """The other end of a pseudo-terminal on which a command runs."""

    def __init__(self, host: Host, *arguments: object, columns: int = 100, env: dict[str, str] | None = None) -> None:
        ours, theirs = pty.openpty()
        ioctl(theirs, TIOCSWINSZ, struct.pack("HHHH", 60, columns, 0, 0))
        streams = {"stdin": theirs, "stdout": theirs, "stderr": theirs}
        environ = {"TERM": "xterm-256color", "LANG": "C.UTF-8", **(env or {})}
        # The terminal must be the process's own, or Ctrl-C would be a character like any other.
        self.process: Popen[str] = host.start(*arguments, env=environ, prefix=["setsid", "--ctty"], **streams)
        os.close(theirs)
        self._ours = ours
        self.seen = ""
        self._done = 0
        self._decoder = codecs.getincrementaldecoder("utf-8")()

    def expect(self, text: str) -> None:
        """Read until that text is there, behind what was expected before."""
        end = time.monotonic() + SECONDS
        while text not in self.seen[self._done :]:
            assert time.monotonic() < end, f"no {text!r} in {self.seen!r}"
            assert self._read(), f"it ended before {text!r}: {self.seen!r}"
        self._done = self.seen.index(text, self._done) + len(text)

    def answer(self, text: str) -> None:
        self.type(f"{text}\n")

    def type(self, text: str) -> None:
        os.write(self._ours, text.encode())

    def end(self) -> int:
        """Read all; gives the exit code."""
        while self._read():
            pass
        os.close(self._ours)
        return self.process.wait(SECONDS)

    def _read(self) -> bool:
        ready, _, _ = select.select([self._ours], [], [], SECONDS)
        try:
            data = os.read(self._ours, 65536) if ready else b""
        except OSError:  # how Linux tells that nobody has the other end any more
            data = b""
        self.seen += self._decoder.decode(data).replace("\r", "")
        return bool(data)


def test_questions_are_asked_again_until_the_answers_fit(host: Host, database: Path) -> None:
    os.link(database, host.cwd / "here.db")
    terminal = Terminal(host, "policy", "new")
    with stopped_at_end(terminal.process):
        for question, answer in (
            ("Name of the policy [crm]: ", "bad name"),
            ("Name of the policy [crm]: ", ""),
            ("Database to protect (/path/to/file, postgresql://user@host/name or mysql://...): ", "here.db"),
            ("Where to keep snapshots", "./backups"),
            ("[nightly]: ", "sometimes"),
            ("[nightly]: ", "office"),
            ("[UTC]: ", "Europe/Berlin"),
            ("How old", "1h"),
            ("How long", ""),
        ):
            terminal.expect(question)
            terminal.answer(answer)
        assert terminal.end() == 0
    assert "that must be one of nightly, hourly, office, none" in terminal.seen
    text = (host.cwd / "policies" / "crm.yaml").read_text()
    assert f'path: "{host.cwd}/here.db"' in text
    assert f'url: "{host.cwd}/backups"' in text
    host.run("policy", "validate", "crm")


def test_init_asks_for_a_passphrase_and_shows_the_sheet(host: Host, database: Path, tmp_path: Path) -> None:
    policy = write_policy(host.cwd / "crm.yaml", database, str(tmp_path / "repository"))
    terminal = Terminal(host, "init", policy)
    with stopped_at_end(terminal.process):
        for question, answer in (
            ("Passphrase", "too short"),
            ("The same again", "too short"),
            ("Passphrase", PASSPHRASE),
            ("The same again", "something else"),
            ("Passphrase", PASSPHRASE),
            ("The same again", PASSPHRASE),
        ):
            terminal.expect(question)
            terminal.answer(answer)
        assert terminal.end() == 0
    assert "the passphrase is too short" in terminal.seen
    assert PASSPHRASE not in terminal.seen, "it is not echoed"
    plain = ESCAPES.sub("", terminal.seen)
    identity = "".join(re.findall(r"^ {4}((?:CRMB1-|[A-Z2-7]{4}-|[A-Z2-7]{4}$)+)", plain, re.MULTILINE))
    assert modules(plain) == [
        [bool(module) for module in row] for row in segno.make_qr(identity, error="m").matrix_iter(border=0)
    ]

    host.run("backup", policy)
    (tmp_path / "identity.txt").write_text(identity)
    host.run("restore", policy, "--identity-file", tmp_path / "identity.txt", "--to", "a.db")
    terminal = Terminal(host, "restore", policy, "--to", "b.db")
    with stopped_at_end(terminal.process):
        terminal.expect("Passphrase of the identity: ")
        terminal.answer(PASSPHRASE)
        assert terminal.end() == 0
    assert content(host.cwd / "a.db") == content(host.cwd / "b.db") == content(database)


def test_ctrl_c_at_a_question_writes_nothing(host: Host, database: Path, tmp_path: Path) -> None:
    policy = write_policy(host.cwd / "crm.yaml", database, str(tmp_path / "repository"))
    terminal = Terminal(host, "init", policy)
    with stopped_at_end(terminal.process):
        terminal.expect("Passphrase (empty")
        terminal.type("\x03")
        assert terminal.end() == 130
    assert "interrupted: stopped by Ctrl-C" in terminal.seen
    assert not (tmp_path / "repository" / "repository.json").exists()


@pytest.mark.parametrize("columns", [40, 100])
def test_bars_and_tables_fit_the_terminal(ready: Host, columns: int) -> None:
    for arguments, expected in (
        (("backup", "crm", "--full"), ("Shipping", "Full snapshot ")),
        (("drill", "crm"), ("Fetching", "PASSED")),
        (("snapshots", "crm"), ("Snapshot", "Moment (UTC)")),
        (("show", "crm"), ("contacts",)),
    ):
        terminal = Terminal(ready, *arguments, columns=columns)
        with stopped_at_end(terminal.process):
            assert terminal.end() == 0, terminal.seen
        for text in expected:
            assert text in terminal.seen
        if "snapshots" in arguments:
            assert max(len(line) for line in ESCAPES.sub("", terminal.seen).splitlines()) <= columns


def test_no_colour_means_no_colour(ready: Host) -> None:
    terminal = Terminal(ready, "backup", "crm", "--full", env={"NO_COLOR": "1"})
    with stopped_at_end(terminal.process):
        assert terminal.end() == 0
    colours = [code for code in re.findall(r"\x1b\[([0-9;]*)m", terminal.seen) if re.search(r"3[0-8]|4[0-8]|9\d", code)]
    assert colours == []


def modules(text: str) -> list[list[bool]]:
    """The QR code among lines of half blocks, as rows of dark or not, without its quiet zone."""
    rows = []
    for line in text.splitlines():
        if re.search("[█▀▄]", line):
            rows.append([char in "█▀" for char in line])
            rows.append([char in "█▄" for char in line])
    used = [row for row in rows if any(row)]
    width = max(len(row) for row in used)
    padded = [row + [False] * (width - len(row)) for row in used]
    columns = [index for index in range(width) if any(row[index] for row in padded)]
    return [row[columns[0] : columns[-1] + 1] for row in padded]
