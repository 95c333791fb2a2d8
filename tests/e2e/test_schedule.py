"""Installing a schedule, with Debian's own crontab, cron and systemd-analyze.

Everything runs in a mount namespace in which cron's directories are others: the machine's are not touched.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.e2e.product import Done, Host, stopped_at_end, write_policy

pytestmark = pytest.mark.e2e
SCHEDULE = 'schedule: {timezone: Europe/Berlin, full: "30 2 * * 0", incremental: "%s", drill: "0 5 1 * *"}'
OTHERS = b'# mine\n\nMAILTO=""\nPATH=/bin\n5 5 * * *  echo "100\\%" # \xe9 latin\n*/5 * * * * true   '
#: From one full minute to the next, and a backup.
PATIENCE = 100


@dataclass
class Cron:
    """cron's files of our own, and how to run something that sees them."""

    root: Path

    @property
    def prefix(self) -> list[str]:
        places = {
            "crontabs": "/var/spool/cron/crontabs",
            "cron.d": "/etc/cron.d",
            "run": "/run",
            "crontab": "/etc/crontab",
        }
        mounts = " && ".join(f'mount --bind "$0/{name}" {place}' for name, place in places.items())
        who = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
        return ["unshare", *who, "--mount", "sh", "-c", f'{mounts} && exec "$@"', str(self.root)]

    def crontab(self, content: bytes | None = None) -> bytes:
        """The user's crontab, after it was replaced if there is a content."""
        if content is not None:
            subprocess.run([*self.prefix, "crontab", "-"], input=content, check=True)
        return subprocess.run([*self.prefix, "crontab", "-l"], capture_output=True).stdout


@pytest.fixture
def cron(tmp_path: Path) -> Cron:
    root = tmp_path / "cron"
    for name in ("crontabs", "cron.d", "run"):
        (root / name).mkdir(parents=True)
    (root / "crontab").write_text("")
    return Cron(root)


@pytest.fixture
def crm(host: Host, database: Path, tmp_path: Path) -> Host:
    """A host with a policy that has a schedule."""
    (host.cwd / "policies").mkdir()
    policy(host, database, tmp_path)
    return host


def policy(host: Host, database: Path, tmp_path: Path, incremental: str = "0 * * * *") -> Path:
    path = host.cwd / "policies" / "crm.yaml"
    return write_policy(path, database, str(tmp_path / "repository"), more=SCHEDULE % incremental)


def test_a_crontab_keeps_every_other_line_to_the_byte(crm: Host, cron: Cron, database: Path, tmp_path: Path) -> None:
    def run(*arguments: object, code: int = 0) -> Done:
        return crm.run("schedule", *arguments, code=code, prefix=cron.prefix)

    assert "Nothing wakes crmbackup yet" in run("show").out
    assert run("diff", code=14).err.startswith("crmbackup: attention: nothing wakes crmbackup on this machine")
    assert run("remove").out == "Nothing was installed\n"
    before = cron.crontab(OTHERS + b"\n")
    assert before == OTHERS + b"\n"
    preview = run("diff", "--crontab", code=14).out
    assert run("install", "--crontab").out.startswith("Installed in the crontab of root\n")
    installed = cron.crontab()
    assert installed.startswith(before)
    block = installed.removeprefix(before).decode()
    assert [f"+{line}" for line in block.splitlines()] == preview.splitlines()[3:]
    assert block == run("show", "--crontab").out
    assert re.search(
        rf"^\*/15 \* \* \* \* cd {crm.cwd} && env CRMBACKUP_\S+ CRMBACKUP_\S+ \S+ run --due$", block, re.MULTILINE
    )
    again = run("install", "--crontab", "--json")
    assert again.one("schedule-installed")["changed"] is False
    assert cron.crontab() == installed
    assert "is as the policies call for" in run("diff").out

    # Lines that came behind the block stay behind it when it is replaced.
    cron.crontab(installed + b"1 1 1 1 * last\n")
    policy(crm, database, tmp_path, "7 * * * *")
    difference = run("diff", code=14)
    assert re.search(r"^-\*/15 ", difference.out, re.MULTILINE)
    assert re.search(r"^\+0,7,15,22,30,37,45,52 ", difference.out, re.MULTILINE)
    assert "crmbackup schedule install --crontab" in difference.err
    run("install", "--crontab")
    assert cron.crontab().startswith(before + b"# BEGIN crmbackup")
    assert cron.crontab().endswith(b"# END crmbackup\n1 1 1 1 * last\n")
    assert run("remove").out == "Removed from the crontab of root\n"
    assert cron.crontab() == before + b"1 1 1 1 * last\n"

    # A block that somebody cut in two.
    cron.crontab(installed.replace(b"# END crmbackup\n", b""))
    for command in ("install", "remove"):
        assert "without a line `# END crmbackup`" in run(command, "--crontab", code=2).err
    assert cron.crontab() == installed.replace(b"# END crmbackup\n", b"")

    # What Debian's `crontab -l` does not list as it is.
    with_return = cron.crontab(b"0 0 * * * true\r\n")
    assert with_return == b"0 0 * * * true\\r\n"
    assert "without harm to other lines" in run("install", "--crontab", code=9).err
    assert b"true\r\n" in (cron.root / "crontabs" / "root").read_bytes()


def test_where_there_is_only_our_block_no_empty_crontab_stays(crm: Host, cron: Cron) -> None:
    crm.run("schedule", "install", "--crontab", prefix=cron.prefix)
    crm.run("schedule", "remove", "--crontab", prefix=cron.prefix)
    assert list((cron.root / "crontabs").iterdir()) == []


def test_a_file_for_cron_d_and_units(crm: Host, cron: Cron, tmp_path: Path) -> None:
    units = tmp_path / "units"
    units.mkdir()
    done = crm.run("schedule", "install", "--cron-d", "--user", "daemon", prefix=cron.prefix)
    assert done.out.startswith("Installed in /etc/cron.d/crmbackup\n")
    file = cron.root / "cron.d" / "crmbackup"
    assert file.stat().st_mode & 0o777 == 0o644
    assert re.search(r"^\*/15 \* \* \* \* daemon cd ", file.read_text(), re.MULTILINE)
    assert "is as the policies call for" in crm.run("schedule", "diff", prefix=cron.prefix).out
    assert [path.name for path in file.parent.iterdir()] == ["crmbackup"], "no temporary file stays: cron would run it"
    done = crm.run("schedule", "install", "--crontab", prefix=cron.prefix)
    assert "woken by /etc/cron.d/crmbackup too\n  hint: `crmbackup schedule remove --cron-d`" in done.err
    shown = crm.run("schedule", "show", "--json", prefix=cron.prefix).one("schedule")
    assert {each["kind"] for each in shown["installed"]} == {"crontab", "cron-d"}
    assert next(each["key"] for each in shown["next"]) == "incremental"
    assert crm.run("schedule", "remove", prefix=cron.prefix).out.count("/etc/cron.d/crmbackup") == 1
    assert list(file.parent.iterdir()) == []

    done = crm.run("schedule", "install", "--systemd", "--directory", units)
    assert "Now run: systemctl daemon-reload && systemctl enable --now crmbackup.timer" in done.out
    subprocess.run(["systemd-analyze", "verify", *units.iterdir()], check=True)
    assert crm.state.stat().st_mode & 0o777 == 0o700, "the unit would not start without"
    crm.run("schedule", "diff", "--directory", units, "--systemd")
    (units / "crmbackup.timer").write_text("changed")
    crm.run("schedule", "diff", "--directory", units, "--systemd", code=14)
    crm.run("schedule", "remove", "--directory", units, "--systemd")
    assert list(units.iterdir()) == []


def test_what_cannot_be_installed(crm: Host, cron: Cron, database: Path, tmp_path: Path) -> None:
    def fails(*arguments: object, code: int) -> str:
        return crm.run("schedule", *arguments, "--json", code=code, prefix=cron.prefix).error["message"]

    assert "Say where" in fails("install", code=2)
    assert "exclude each other" in fails("install", "--crontab", "--cron-d", code=2)
    assert "no user nobody-at-all" in fails("install", "--cron-d", "--user", "nobody-at-all", code=2)
    assert "cannot find a policy" in fails("install", "--crontab", "cmr", code=2)
    write_policy(crm.cwd / "plain.yaml", database, "/srv/r")
    assert fails("install", "--crontab", "./plain.yaml", code=2) == "nothing is scheduled"
    crm.environ |= {"S3_ID": "x"}
    inside = ["access_key_id: {env: S3_ID}", "secret_access_key: {env: S3_SECRET}"]
    path = write_policy(crm.cwd / "s3.yaml", database, "s3://bucket/p", more=SCHEDULE % "0 * * * *", inside=inside)
    done = crm.run("schedule", "install", "--crontab", path, prefix=cron.prefix)
    assert "s3 takes secrets from the environment, which is empty then: S3_ID, S3_SECRET" in done.err
    assert str(path).encode() in cron.crontab()
    (crm.cwd / "policies" / "broken.yaml").write_text("version: 1\n")
    assert "broken.yaml has 3 problems" in crm.run("schedule", "install", "--crontab", prefix=cron.prefix).err
    (cron.root / "cron.d").chmod(0o555)
    prefix = ["unshare", "--user", "--map-user=daemon"] if os.geteuid() == 0 else []
    done = crm.run("schedule", "install", "--cron-d", "--directory", cron.root / "cron.d", code=9, prefix=prefix)
    assert "use sudo, or --crontab" in done.err


@pytest.fixture
def twin(crm: Host, tmp_path: Path) -> Iterator[Host]:
    """Another state and configuration with the same policies, whose repository is made."""
    crm.run("init", "crm", "--no-passphrase", "--identity-out", tmp_path / "identity.txt")
    twin = Host.make(tmp_path / "twin % 測試")
    twin.cwd.rmdir()
    twin.cwd.symlink_to(crm.cwd)
    twin.run("init", "crm", "--join", "--identity-file", tmp_path / "identity.txt")
    return twin


def test_debians_cron_runs_it(crm: Host, twin: Host, cron: Cron, database: Path, tmp_path: Path) -> None:
    """Both kinds at once: a user's crontab for one state directory, /etc/cron.d for another with odd characters."""
    policy(crm, database, tmp_path, "* * * * *")
    for each, kind in ((crm, "--crontab"), (twin, "--cron-d")):
        each.run("schedule", "install", kind, prefix=cron.prefix)
        each.run("run", "--due")  # from now on the host knows the policy, and may have done what was due
    before = {each.home: recorded(each) for each in (crm, twin)}
    daemon = subprocess.Popen([*cron.prefix, "cron", "-f"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    with stopped_at_end(daemon):
        end = time.monotonic() + PATIENCE
        while any(recorded(each) in (None, before[each.home]) for each in (crm, twin)):
            assert daemon.poll() is None, daemon.stdout.read()
            assert time.monotonic() < end
            time.sleep(0.2)
    assert "full" in {each["kind"] for each in crm.snapshots("crm")}
    assert len(crm.snapshots("crm")) >= 2


def recorded(host: Host) -> bytes | None:
    """What is noted of the last scheduled backup, if one is done and went well."""
    for path in (host.state / "schedule").glob("crm-*/backup.json"):
        found = path.read_bytes()
        if json.loads(found)["exit_code"] == 0:
            return found
    return None
