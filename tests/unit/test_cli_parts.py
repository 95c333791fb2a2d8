"""The parts of the command line that need no repository: paths, options, texts, the recovery sheet, errors."""

from __future__ import annotations

import contextlib
import io
import json
import re
import string
from datetime import UTC, datetime
from pathlib import Path

import click
import pytest
import segno
from hypothesis import given
from hypothesis import strategies as st

from crmbackup.cli import failures, options, render
from crmbackup.cli.hostfiles import HostFiles
from crmbackup.cli.paths import HostPaths, host_paths
from crmbackup.cli.policy import ANSWERS
from crmbackup.cli.render import JsonShow, TextShow
from crmbackup.cli.sheet import Look, Sheet, qr_lines
from crmbackup.core.errors import DiskFull, HostKeyMissing, LocalError, UsageError
from crmbackup.core.events import Notice, PhaseEnded, PhaseStarted, Progress, Warned
from crmbackup.policy.new import questions
from crmbackup.repository.identity import Identity
from crmbackup.repository.repository import Pin
from tests.faulty import FakeClock

# Where files are


def test_root_has_the_directories_of_the_system_and_others_their_own() -> None:
    assert host_paths({"HOME": "/root"}, root=True) == HostPaths(Path("/etc/crmbackup"), Path("/var/lib/crmbackup"))
    own = host_paths({"HOME": "/home/ada"}, root=False)
    assert own == HostPaths(Path("/home/ada/.config/crmbackup"), Path("/home/ada/.local/state/crmbackup"))
    xdg = host_paths({"XDG_CONFIG_HOME": "/x", "XDG_STATE_HOME": "/y"}, root=False)
    assert xdg == HostPaths(Path("/x/crmbackup"), Path("/y/crmbackup"))
    told = {"CRMBACKUP_CONFIG_DIR": "/a", "CRMBACKUP_STATE_DIR": "/b", "XDG_CONFIG_HOME": "/x"}
    assert host_paths(told, root=False) == host_paths(told, root=True) == HostPaths(Path("/a"), Path("/b"))


def test_without_any_home_the_variable_to_set_is_named() -> None:
    with pytest.raises(UsageError) as caught:
        host_paths({"CRMBACKUP_CONFIG_DIR": "/a"}, root=False)
    assert caught.value.hint == "set CRMBACKUP_STATE_DIR"


def test_what_a_host_knows_survives_and_damage_is_told_apart_from_absence(tmp_path: Path) -> None:
    files = HostFiles(HostPaths(tmp_path / "config", tmp_path / "state"))
    assert (files.host_key(), files.pin("/r"), files.conditional_put("/r")) == (None, None, None)
    key, pin = files.make_host_key(), Pin("ab" * 16, b"\x01" * 32, 7)
    assert files.make_host_key().public == key.public
    files.save_pin("/r", pin)
    files.save_conditional_put("/r", value=False)
    again = HostFiles(HostPaths(tmp_path / "config", tmp_path / "state"))
    assert (again.pin("/r"), again.pin("/other"), again.conditional_put("/r")) == (pin, None, False)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.rglob("*") if path.is_file()} == {0o600}

    (tmp_path / "config" / "host.key").write_bytes(b"\xff")
    with pytest.raises(LocalError):
        again.host_key()
    (tmp_path / "config" / "host.key").write_bytes(b"00")
    with pytest.raises(HostKeyMissing, match="damaged"):
        again.host_key()
    for path in (tmp_path / "config" / "repositories").iterdir():
        path.write_text("[]")
    with pytest.raises(LocalError, match="damaged"):
        again.pin("/r")
    for path in (tmp_path / "state" / "storages").iterdir():
        path.write_text("{")
    assert again.conditional_put("/r") is None, "a cache: it is found out again"


# Options


@given(st.datetimes(timezones=st.sampled_from([UTC])))
def test_moments_with_a_zone_are_exact(moment: datetime) -> None:
    assert options.moment(moment.isoformat()) == moment


def test_moments_without_a_zone_are_local_and_others_refused() -> None:
    assert options.moment("2026-03-01T14:30") == datetime(2026, 3, 1, 14, 30).astimezone(UTC)
    assert options.moment("2026-03-01") == datetime(2026, 3, 1).astimezone(UTC)
    assert options.moment("2026-03-01 14:30+02:00") == datetime(2026, 3, 1, 12, 30, tzinfo=UTC)
    for text in ("", "noon", "2026-02-30", "0001-01-01T00:00+23:00", "14:30"):
        with pytest.raises(click.BadParameter):
            options.moment(text)


@given(st.integers(1, 10**8).flatmap(lambda total: st.tuples(st.integers(1, total), st.just(total))))
def test_parts(pair: tuple[int, int]) -> None:
    assert options.part(f"{pair[0]}/{pair[1]}") == pair


@pytest.mark.parametrize(
    "text", ["", "1", "/", "1/", "/2", "0/2", "3/2", "-1/2", "1/2/3", "a/b", "1 / 2", "٣/٤", "1/1" + "0" * 10]
)
def test_what_is_no_part(text: str) -> None:
    with pytest.raises(click.BadParameter):
        options.part(text)


@given(st.text(alphabet="0123456789abcdefABCDEF", min_size=1, max_size=16))
def test_ids_and_their_beginnings_are_snapshots(text: str) -> None:
    assert options.snapshot_name(text) == options.drill_snapshot(text) == text.lower()


@given(st.text(alphabet=string.printable).filter(lambda text: not re.fullmatch("(?i)[0-9a-f]{1,16}|latest", text)))
def test_other_names_of_snapshots_are_refused(text: str) -> None:
    with pytest.raises(click.BadParameter):
        options.snapshot_name(text)


def test_latest_and_random() -> None:
    assert options.snapshot_name("LATEST") == "latest"
    assert options.drill_snapshot("Random") == "random"


def test_the_options_of_policy_new_are_its_questions() -> None:
    assert list(ANSWERS) == [question.key for question in questions()]
    for question in questions():
        for choice in question.choices:
            assert choice in ANSWERS[question.key]
        if question.default:
            assert f"Default: {question.default}" in ANSWERS[question.key]


# Texts


def test_texts_for_people() -> None:
    sizes = {0: "0 B", 1023: "1023 B", 1024: "1.0 KiB", 5 * 2**20: "5.0 MiB", 3 * 2**30: "3.0 GiB", 2**42: "4.00 TiB"}
    assert {number: render.size(number) for number in sizes} == sizes
    times = {
        0.04: "0.0 s",
        59.9: "59.9 s",
        60: "1 min",
        61: "1 min 1 s",
        3600: "1 h",
        5400: "1 h 30 min",
        90061: "1 d 1 h",
        864000: "10 d",
    }
    assert {seconds: render.duration(seconds) for seconds in times} == times
    assert [render.plural(number, "row") for number in (0, 1, 2, 1000)] == ["0 rows", "1 row", "2 rows", "1,000 rows"]
    assert [render.rows_of(number) for number in (None, 1)] == ["rows not counted", "1 row"]
    assert [render.count(number) for number in (None, 12345)] == ["-", "12,345"]
    assert render.when(datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=UTC)) == "2026-01-02 03:04:05 UTC"


@given(st.text())
def test_nothing_that_is_printed_steers_a_terminal(text: str) -> None:
    shown = render.printable(text)
    assert shown.isprintable()
    assert render.printable(shown) == shown
    if text.isprintable():
        assert shown == text
    assert render.printable(text, lines=True).replace("\n", "").isprintable()


@given(rows=st.lists(st.tuples(st.text(max_size=20), st.integers().map(str)), max_size=5))
def test_tables_keep_every_cell_on_its_line(rows: list[tuple[str, str]]) -> None:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        render.table([("Name", False), ("Number", True)], rows)
    lines = out.getvalue().split("\n")
    assert len(lines) == len(rows) + 3
    for line, (name, number) in zip(lines[2:], rows, strict=False):
        assert line.startswith(render.printable(name).rstrip() if number else "")
        assert line.endswith(number)


# Showing


def lines_of(text: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in text.splitlines()]


def test_json_tells_progress_at_most_twice_a_second(capsys: pytest.CaptureFixture[str]) -> None:
    clock = FakeClock()
    with JsonShow(clock) as show:
        show.event(PhaseStarted("ship", 1000))
        for _ in range(1000):
            clock.sleep(0.01)
            show.event(Progress("ship", 1))
        show.event(PhaseEnded("ship", 10.0))
        show.event(Progress("unknown", 5))
        show.event(Notice("so", {"a": 1}))
        show.event(Warned("w", "text", "hint"))
        show.result(
            "done", {"when": datetime(2026, 1, 1, tzinfo=UTC), "key": b"\x01", "path": Path("/x")}, lambda: None
        )
    found = lines_of(capsys.readouterr().out)
    progress = [line for line in found if line["type"] == "progress"]
    assert 15 <= len(progress) <= 20
    assert [line["done"] for line in progress] == sorted(line["done"] for line in progress)
    assert {line["total"] for line in progress} == {1000}
    assert found[-1] == {"type": "done", "when": "2026-01-01T00:00:00.000000Z", "key": "01", "path": "/x"}


def test_text_elsewhere_than_on_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    for verbose in (False, True):
        with TextShow(verbose=verbose) as show:
            show.event(Notice("a notice"))
            show.event(PhaseStarted("ship", 5))
            show.event(Progress("ship", 5))
            show.event(PhaseEnded("ship", 1.5))
            show.event(Warned("w", "a \x1b[31mwarning", "a hint"))
            show.result("x", {}, lambda: click.echo("shown if watched"), quiet=True)
            show.result("x", {}, lambda: click.echo("shown"))
    both = capsys.readouterr()
    assert both.out == "shown\nshown if watched\nshown\n"
    assert both.err.count("crmbackup: warning: a \\x1b[31mwarning\n  hint: a hint\n") == 2
    assert both.err.count("a notice\nShipping: 1.5 s\n") == 1


# Errors


@pytest.mark.parametrize(
    ("raised", "code", "text"),
    [
        (DiskFull("cannot write", why="full", hint="free some"), 9, "disk-full: cannot write: full\n  hint: free some"),
        (PermissionError(13, "Permission denied", "/x"), 9, "local-denied: cannot use /x: Permission denied"),
        (OSError(28, "No space left on device"), 9, "disk-full: cannot go on: No space left on device"),
        (UnicodeEncodeError("ascii", "aé", 1, 2, "no"), 9, "local: the locale has no way to write '\\xe9'"),
        (
            UnicodeEncodeError("utf-8", "a\udce9", 1, 2, "no"),
            9,
            "local: a name holds bytes that are not UTF-8: '\\udce9'",
        ),
        (ZeroDivisionError("by zero"), 1, "error: internal error, ZeroDivisionError: by zero"),
    ],
)
def test_every_exception_becomes_a_message_and_a_code(
    raised: Exception, code: int, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert failures.report(raised, as_json=False, verbose=False) == code
    assert capsys.readouterr().err.startswith(f"crmbackup: {text}")
    assert failures.report(raised, as_json=True, verbose=False) == code
    (line,) = lines_of(capsys.readouterr().err)
    assert (line["type"], line["exit_code"]) == ("error", code)
    assert text.startswith(f"{line['code']}: {line['message']}")


def test_verbose_shows_where_a_fault_is(capsys: pytest.CaptureFixture[str]) -> None:
    try:
        raise ZeroDivisionError("here")
    except ZeroDivisionError as error:
        failures.report(error, as_json=False, verbose=True)
    assert "Traceback" in capsys.readouterr().err
    failures.report(DiskFull("x"), as_json=False, verbose=True)
    assert "Traceback" not in capsys.readouterr().err


# The recovery sheet


def sheet(**fields: object) -> Sheet:
    given = {
        "policy": "crm",
        "address": "s3://bucket/a b?endpoint=https://s3.example.org",
        "repository_id": "00" * 16,
        "made": datetime(2026, 1, 1, tzinfo=UTC),
        "host": "crm-1",
        "tool": "crmbackup 0",
        "identity": None,
        "file": None,
        "sheet": None,
        "wrapped": False,
    }
    return Sheet(**{**given, **fields})  # type: ignore[arg-type]


@pytest.mark.parametrize("look", Look)
@given(seed=st.binary(min_size=32, max_size=32))
def test_the_code_on_the_sheet_is_the_identity(look: Look, seed: bytes) -> None:
    text = Identity(seed).to_text()
    drawn = [re.sub("\x1b\\[[0-9;]*m", "", line) for line in qr_lines(text, look)]
    if look is Look.ASCII:
        rows = [[line[index] == "#" for index in range(0, len(line), 2)] for line in drawn]
        assert all(line.isascii() for line in drawn)
    else:
        rows = [[char in half for char in line] for line in drawn for half in ("█▀", "█▄")]
    expected = [[bool(module) for module in row] for row in segno.make_qr(text, error="m").matrix_iter(border=4)]
    assert rows[: len(expected)] == expected
    assert not any(module for row in rows[len(expected) :] for module in row)


def test_the_sheet_says_how_to_restore_with_what_there_is() -> None:
    identity = Identity(b"\x01" * 32).to_text()
    full = sheet(identity=identity, wrapped=True).text()
    assert full.replace("\n    ", "").count(identity) == 1
    assert "cat > identity.txt" in full
    assert "export AWS_ACCESS_KEY_ID" in full
    assert "--repository 's3://bucket/a b?endpoint=https://s3.example.org'" in full
    in_file = sheet(file=Path("/media/id"), address="/srv/r").text()
    assert "cp /media/" in in_file
    assert "AWS" not in in_file
    assert "does not hold the identity" in in_file
    passphrase = sheet(wrapped=True).text()
    assert "--identity-file" not in passphrase
    assert "asks for the passphrase" in passphrase
    for text in (full, in_file, passphrase):
        numbers = [int(number) for number in re.findall(r"^  (\d)\. ", text, re.MULTILINE)]
        assert numbers == list(range(1, len(numbers) + 1))
        assert "\x1b" not in text
    assert "\x1b[" in sheet(identity=identity).text(Look.TERMINAL)
