"""Text for crontabs and systemd units."""

from __future__ import annotations

import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crmbackup.core.errors import UsageError
from crmbackup.policy.loader import check_policy
from crmbackup.policy.model import Policy, Schedule
from crmbackup.policy.schedule import next_run
from crmbackup.scheduling import crontab, systemd
from crmbackup.scheduling.wake import Scope, Wake, all_upcoming, scope_of, wake_minutes

ZONES = ("UTC", "Europe/Berlin", "Asia/Kolkata", "Asia/Kathmandu", "Australia/Lord_Howe", "America/St_Johns")
ODD = Wake(
    (7, 22, 37, 52), Path("/opt/100% own/crmbackup"), Path("/srv/it's $HOME"), (), {"CRMBACKUP_STATE_DIR": "/a b"}
)
PLAIN = Wake((0, 15, 30, 45), Path("/usr/bin/crmbackup"), Path("/"), (), {}, "root")


def policy(source: str = "{type: sqlite, path: /var/lib/crm/crm.db}", more: str = "") -> Policy:
    text = f"version: 1\nname: crm\nsource: {source}\nrepository: {{url: /srv/backups}}\n{more}\n"
    found, problems = check_policy(text)
    assert found, problems
    return found


@pytest.mark.parametrize(
    ("expressions", "minutes"),
    [
        (["30 2 * * *", "0 * * * *"], (0, 15, 30, 45)),
        (["7 * * * *"], (7, 22, 37, 52)),
        (["7 3 * * *", "22 4 * * *"], (7, 22, 37, 52)),
        (["*/5 * * * *"], tuple(range(0, 60, 5))),
        (["* * * * *"], tuple(range(60))),
        (["1,2,3,4 * * * *"], tuple(range(60))),
        ([], ()),
    ],
)
def test_minutes_at_which_to_wake(expressions: list[str], minutes: tuple[int, ...]) -> None:
    keys = ("full", "incremental", "check")
    assert wake_minutes([Schedule(**dict(zip(keys, expressions, strict=False)))]) == minutes


@settings(deadline=None)
@given(
    st.integers(0, 59),
    st.integers(0, 23),
    st.sampled_from(ZONES),
    st.sampled_from(ZONES),
    st.integers(0, 365 * 24),
)
def test_whatever_zone_the_waker_is_in_it_wakes_when_something_is_due(minute, hour, own, other, hours) -> None:
    expression = f"{minute} {hour} * * *"
    due = next_run(expression, own, datetime(2026, 1, 1, tzinfo=UTC) + timedelta(hours=hours))
    minutes = wake_minutes([Schedule(timezone=own, full=expression)])
    local = due.astimezone(ZoneInfo(other))
    if local.minute % 15 != minute % 15:
        # Swallowed by a clock change: it is due when that is over, and a wake follows within the quarter.
        assert due.minute in (0, 30)
    else:
        assert local.minute in minutes
    assert any((local + timedelta(minutes=late)).minute in minutes for late in range(15))


def test_the_next_times_are_listed_in_the_zone_of_the_policy() -> None:
    found = policy(more='schedule: {timezone: Europe/Berlin, full: "30 2 * * 0", incremental: "0 * * * *"}')
    entries = all_upcoming([found, policy()], datetime(2026, 5, 5, 12, 10, tzinfo=UTC))
    assert [(each.key, f"{each.moment:%a %H:%M %z}") for each in entries] == [
        ("incremental", "Tue 15:00 +0200"),
        ("full", "Sun 02:30 +0200"),
    ]


def test_a_block_says_what_it_is_about() -> None:
    wake = Wake((0,), Path("/usr/bin/crmbackup"), Path("/srv/ä"), (Path("/srv/a.yaml"),))
    for text in (crontab.block(wake), crontab.cron_d(wake), systemd.service(wake, [], [])):
        assert scope_of(text) == Scope(Path("/srv/ä"), (Path("/srv/a.yaml"),))
    assert scope_of(crontab.cron_d(PLAIN)) == Scope(Path("/"), (), "root")
    for text in ("", "# Scope: {", "# Scope: []", '# Scope: {"directory": 1, "policies": null}'):
        assert scope_of(text) is None


def test_what_cron_and_the_shell_take_for_their_own_reaches_the_program(tmp_path: Path) -> None:
    line = crontab.block(ODD).splitlines()[3]
    times, command = line[: len("7,22,37,52 * * * *")], line[len("7,22,37,52 * * * * ") :]
    assert times == "7,22,37,52 * * * *"
    assert "%" not in command.replace("\\%", "")
    # What cron hands to the shell: every \% is a %.
    shell = command.replace("\\%", "%").replace("cd ", "echo ", 1).replace("&& env", "&& printf '%s\\n'")
    done = subprocess.run(["/bin/sh", "-c", shell], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "/srv/it's $HOME", "CRMBACKUP_STATE_DIR=/a b", "/opt/100% own/crmbackup", "run", "--due",
    ]  # fmt: skip


@pytest.mark.parametrize("text", ["/srv/a\nb", "/srv/\x1b[31m", "/srv/a\rb"])
def test_a_path_that_would_make_a_second_line_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        Wake((0,), Path("/usr/bin/crmbackup"), Path(text))
    with pytest.raises(UsageError):
        Wake((0,), Path("/usr/bin/crmbackup"), Path("/"), (Path(text),))


LINES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n\0")).filter(
    lambda line: "crmbackup" not in line
)
CRONTABS = st.builds(
    lambda lines, end: "\n".join(lines) + end, st.lists(LINES), st.sampled_from(["", "\n", "\n\n", "\r\n"])
)


@settings(deadline=None)
@given(CRONTABS, CRONTABS)
def test_other_lines_stay_as_they_are(before: str, after: str) -> None:
    block, newer = crontab.block(PLAIN), crontab.block(ODD)
    once = crontab.with_block(before, block)
    assert crontab.with_block(once, block) == once
    assert crontab.find_block(once) == block
    assert crontab.without_block(once) == before + ("" if not before or before.endswith("\n") else "\n")
    whole = once + after
    assert crontab.with_block(whole, newer) == once.removesuffix(block) + newer + after
    assert crontab.find_block(before) is None
    assert crontab.without_block(before) == before


def test_a_block_without_its_end_is_left_alone() -> None:
    for change in (crontab.find_block, crontab.without_block, lambda text: crontab.with_block(text, "")):
        with pytest.raises(UsageError, match="without a line"):
            change(f"{crontab.BEGIN}\n* * * * * precious\n")


def test_units_name_what_may_be_written(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "crm.db").symlink_to("data/crm.db")
    more = [
        'catalog: {url: "sqlite:////srv/cat/c.db"}',
        "drill: {directory: /srv/drills}",
        "log: {path: /var/log/crmbackup/crm.log}",
        "notify: {metrics: {textfile: /var/lib/exporter/crm.prom}}",
    ]
    found = policy(more="\n".join(more))
    text = systemd.service(PLAIN, [found], [Path("/var/lib/crmbackup")])
    for line in (
        "ReadWritePaths=/var/lib/crmbackup",
        "ReadWritePaths=-/var/lib/crm",
        "ReadWritePaths=-/srv/backups",
        "ReadWritePaths=-/srv/cat",
        "ReadWritePaths=-/srv/drills",
        "ReadWritePaths=-/var/log/crmbackup",
        "ReadWritePaths=-/var/lib/exporter",
        "PrivateTmp=yes",
        "User=root",
        "ProtectSystem=strict",
    ):
        assert f"\n{line}\n" in text
    linked = policy(f"{{type: sqlite, path: {tmp_path}/crm.db}}")
    assert f"\nReadWritePaths=-{tmp_path}/data\n" in systemd.service(PLAIN, [linked], [])
    # A private /tmp would hide a database or a server's socket there.
    in_tmp = policy("{type: sqlite, path: /tmp/crm.db}")
    socket = policy("{type: postgres, url: 'postgresql://u@/crm?host=/tmp'}")
    for each in (in_tmp, socket):
        assert "\nPrivateTmp=no\n" in systemd.service(PLAIN, [each], [])


@pytest.mark.parametrize("wake", [PLAIN, ODD], ids=["plain", "odd"])
def test_systemd_takes_the_units(wake: Wake, tmp_path: Path) -> None:
    program = tmp_path / wake.program.name
    if wake is ODD:
        (tmp_path / "100% $own").mkdir()
        program = tmp_path / "100% $own" / "crm backup"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    wake = Wake(wake.minutes, program, wake.directory, (), wake.environment, wake.user)
    (tmp_path / systemd.SERVICE).write_text(systemd.service(wake, [policy()], [Path("/var/lib/crm backup")]))
    (tmp_path / systemd.TIMER).write_text(systemd.timer(wake))
    units = [str(tmp_path / name) for name in (systemd.SERVICE, systemd.TIMER)]
    done = subprocess.run(["systemd-analyze", "verify", *units], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    # Its own measure of how exposed a service is, from 0 to 10; without any setting it is 9.6.
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--threshold=35", units[0]], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-200:]
