"""Whoever is to be told of runs, by real mail and web servers, and what is noted of them."""

from __future__ import annotations

import fcntl
import json
import shutil
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from crmbackup.cli.hostfiles import HostFiles
from crmbackup.cli.paths import HostPaths
from tests.e2e.product import Host, quiet, stopped_at_end, write_policy
from tests.receivers import Mailbox, Webhook, mailbox, webhook
from tests.support_repo import wait_until

pytestmark = [pytest.mark.e2e, pytest.mark.filterwarnings("ignore:.*login_data.*:DeprecationWarning")]
TOKEN = "0fd1c7a4-token"
SECRETS = ("hunter22pass", TOKEN, "s3cr3tpw", "hooktoken")


@pytest.fixture
def mails() -> Iterator[Mailbox]:
    with mailbox() as found:
        yield found


@pytest.fixture
def web() -> Iterator[Webhook]:
    with webhook() as found:
        yield found


@pytest.fixture(scope="session")
def _ready_once(_crm_once: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A host with an identity and a made repository, without snapshots: copied for each test."""
    root = tmp_path_factory.mktemp("telling")
    host = Host.make(root / "host")
    policy = write_policy(host.cwd / "crm.yaml", _crm_once, "./repository")
    policy.write_text(policy.read_text().replace("./repository", str(root / "repository")))
    host.run("init", policy, "--no-passphrase", "--identity-out", root / "identity.txt")
    return root


class Desk:
    """A host whose policy `crm` is written by the test."""

    def __init__(self, root: Path, made: Path, database: Path) -> None:
        self.root = root
        self.database = database
        self.host = Host.make(root / "desk")
        shutil.copytree(made / "host" / "home" / "config", self.host.config)
        shutil.copytree(made / "repository", root / "repository")
        shutil.copy(made / "identity.txt", root / "identity.txt")
        # A host knows repositories by address, and this copy has another one.
        pin = HostFiles(HostPaths(self.host.config, self.host.state)).pin(str(made / "repository"))
        assert pin is not None
        HostFiles(HostPaths(self.host.config, self.host.state)).save_pin(str(root / "repository"), pin)
        (self.host.cwd / "policies").mkdir()
        self.policy("")

    def policy(self, more: str, name: str = "crm") -> None:
        path = self.host.cwd / "policies" / f"{name}.yaml"
        inside = ["identity: {file: " + str(self.root / "identity.txt") + "}"]
        write_policy(path, self.database, str(self.root / "repository"), more=more, inside=inside)

    def secret(self, name: str, text: str) -> str:
        path = self.root / name
        path.write_text(text + "\n")
        return "{file: " + str(path) + "}"

    def written(self) -> str:
        """All that was printed, and all that stands in files of this host and its logs."""
        files = [path for path in self.host.state.rglob("*") if path.is_file()] + list(self.root.glob("*.log"))
        return "\n".join([*self.host.printed, *(path.read_bytes().decode("latin-1") for path in files)])


@pytest.fixture
def desk(tmp_path: Path, _ready_once: Path, database: Path) -> Desk:
    return Desk(tmp_path, _ready_once, database)


def metrics(path: Path) -> dict[str, float]:
    """Value by name, and by name and action where there is one."""
    return {
        " ".join(filter(None, (sample.name, sample.labels.get("action")))): sample.value
        for family in text_string_to_metric_families(path.read_text())
        for sample in family.samples
    }


def test_a_life_with_a_failure_in_it(desk: Desk, mails: Mailbox, web: Webhook) -> None:
    host, log, prom = desk.host, desk.root / "crm.log", desk.root / "crm.prom"
    desk.policy(
        f"""
objectives: {{rpo: 26h}}
notify:
  apprise:
    - {{url: {desk.secret("mail", mails.url)}, on: [failure, recovery, warning, drill]}}
    - {{url: {desk.secret("hook", f"json://ann:s3cr3tpw@127.0.0.1:{web.port}/hooktoken")}, on: [success, failure]}}
  pings: [{{url: {desk.secret("ping", f"http://127.0.0.1:{web.port}/{TOKEN}?create=1")}}}]
  metrics: {{textfile: {prom}, table_rows: true}}
log: {{path: {log}, format: json}}
hooks:
  backup: {{after: [sh, -c, "env | sort | grep -v ^_= > {desk.root}/after.env"]}}
"""
    )
    assert host.run("notify", "test", "crm").out.count(": reached") == 3
    assert mails.subjects == ["crmbackup crm: test"]
    assert sorted(web.paths) == [f"/{TOKEN}/log?create=1", "/hooktoken"]
    web.requests.clear()
    mails.mails.clear()

    # It works: pings, and a message for who wants them all.
    quiet(host.watched("backup", "crm"))
    first = metrics(prom)
    assert web.paths[0] == f"/{TOKEN}/start?create=1"
    assert sorted(web.paths[1:]) == [f"/{TOKEN}?create=1", "/hooktoken"]
    assert [request.body for request in web.requests if TOKEN in request.path] == ["", ""]
    assert web.requests[-1].user in ("", "ann:s3cr3tpw")
    assert mails.mails == []
    (snapshot,) = host.snapshots("crm")
    environ = dict(line.split("=", 1) for line in (desk.root / "after.env").read_text().splitlines())
    assert environ["CRMBACKUP_SNAPSHOT_ID"] == snapshot["snapshot_id"]
    assert (environ["CRMBACKUP_OUTCOME"], environ["CRMBACKUP_EXIT_CODE"], environ["CRMBACKUP_HOOK"]) == (
        "success",
        "0",
        "after",
    )
    assert "CRMBACKUP_STATE_DIR" not in environ
    assert first["crmbackup_last_exit_code backup"] == 0
    assert first["crmbackup_snapshots"] == 1

    # It fails, twice: told once.
    moved = desk.database.rename(desk.database.with_name("moved.db"))
    failed = host.run("backup", "crm", code=3)
    run_id = failed.err.splitlines()[-1].split()[-1]
    host.run("backup", "crm", code=3)
    assert mails.subjects == ["crmbackup crm: backup FAILED (source-missing)"]
    text = mails.mails[0].get_content()
    for part in ("check source.path", "Last good", run_id, str(desk.root / "repository"), "Exit code:"):
        assert part in text
    assert web.paths.count(f"/{TOKEN}/3?create=1") == 2
    second = metrics(prom)
    assert second["crmbackup_last_exit_code backup"] == 3
    assert second["crmbackup_last_success_timestamp_seconds"] == first["crmbackup_last_success_timestamp_seconds"]
    assert (
        second["crmbackup_last_attempt_timestamp_seconds backup"]
        > first["crmbackup_last_attempt_timestamp_seconds backup"]
    )
    (run,) = [line for line in host.run("catalog", "runs", "crm", "--json").lines if line["run_id"] == run_id]
    assert run["error_code"] == "source-missing"

    # It works again: told once. So is a drill, and a restore is told to nobody.
    moved.rename(desk.database)
    quiet(host.run("backup", "crm"))
    quiet(host.run("backup", "crm"))
    quiet(host.run("drill", "crm"))
    quiet(host.run("check", "crm"))
    host.run("restore", "crm", "--to", desk.root / "out.db")
    assert mails.subjects[1:] == ["crmbackup crm: backup works again", "crmbackup crm: drill passed"]
    assert "Had failed" in mails.mails[1].get_content()
    assert "2 runs" in mails.mails[1].get_content()
    third = metrics(prom)
    assert third["crmbackup_last_drill_success_timestamp_seconds"] > 0
    assert third["crmbackup_last_verify_success_timestamp_seconds"] > 0
    assert third["crmbackup_drill_rto_seconds"] > 0
    assert third["crmbackup_table_rows"] > 0

    # Every line of the log has its run.
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [line["code"] for line in lines if line["run"] == run_id and line["type"] == "end"] == ["source-missing"]
    assert {line["action"] for line in lines} == {"backup", "drill", "check", "restore"}

    # The audit log, whose head the last message has.
    entries = [line for line in host.run("audit", "show", "--json").lines if line["type"] == "audit"]
    assert [entry["event"] for entry in entries] == [
        *("policy-changed", "key-use", "key-use", "key-use", "restore", "restore-ended")
    ]
    assert [entry["data"]["for"] for entry in entries if entry["event"] == "key-use"] == ["drill", "check", "restore"]
    assert entries[-1]["run"] == entries[-2]["run"] == entries[-3]["run"]
    noted = mails.mails[-1].get_content().split("Audit:")[1].split()[0]
    assert host.run("audit", "verify", "--head", noted, "--json").one("audit-verified")["entries"] == 6
    audit = host.state / "audit.log"
    audit.write_text(audit.read_text().replace("out.db", "our.db", 1))
    broken = host.run("audit", "verify", code=5)
    assert broken.out == "  line 5 cannot be read, or was changed\n"

    assert not [secret for secret in SECRETS if secret in desk.written()]
    assert host.command_lines
    assert not [line for line in host.command_lines for secret in SECRETS if secret in line]


def test_receivers_that_refuse_or_make_no_sense(desk: Desk, web: Webhook) -> None:
    receivers = [
        f"{{url: {desk.secret(name, url)}}}" for name, url in (("nonsense", f"{TOKEN}://{TOKEN}"), ("absent", ""))
    ]
    urls = (f"http://127.0.0.1:{web.port}/{TOKEN}", TOKEN)
    pings = [f"{{url: {desk.secret(f'ping{number}', url)}}}" for number, url in enumerate(urls)]
    web.answers = {f"/{TOKEN}/start": 404, f"/{TOKEN}": 404, f"/{TOKEN}/log": 404}
    desk.policy(f"notify: {{apprise: [{', '.join(receivers)}], pings: [{', '.join(pings)}], timeout: 1m}}\n")
    done = desk.host.run("backup", "crm")
    assert len(desk.host.snapshots("crm")) == 1
    assert done.err.count("notify.pings[0] (http) was not reached: the server answered 404") == 2  # start and end
    tried = desk.host.run("notify", "test", "crm", code=9)
    for part in (
        "apprise[0]: NOT reached: Apprise does not understand its address",
        "apprise[1]: NOT reached: cannot get a secret from file",
        "pings[0] (http): NOT reached: the server answered 404",
        "pings[1]: NOT reached: its address does not begin with http://",
    ):
        assert f"notify.{part}" in tried.out
    assert "notify-failed: 4 of 4 receivers not reached" in tried.err
    assert not [secret for secret in SECRETS if secret in desk.written()]


def test_receivers_that_hang_or_are_not_there_cost_their_time_and_no_more(desk: Desk, web: Webhook) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        urls = (
            f"json://ann:s3cr3tpw@127.0.0.1:{web.port}/hooktoken",
            f"mailto://bob:hunter22pass@127.0.0.1:{closed.getsockname()[1]}/?from=a@example.org&to=b@example.org",
        )
        receivers = [f"{{url: {desk.secret(f'at{number}', url)}, on: [success]}}" for number, url in enumerate(urls)]
        web.answers["/hooktoken"] = None
        desk.policy(f"notify: {{apprise: [{', '.join(receivers)}], timeout: 3s}}\n")
        done = desk.host.run("backup", "crm")
    assert len(desk.host.snapshots("crm")) == 1
    for part in ("apprise[0] (json)", "apprise[1] (mailto)"):
        assert f"notify.{part} was not reached: " in done.err
    assert not [secret for secret in SECRETS if secret in desk.written()]


def test_places_that_cannot_be_written_stop_nothing(desk: Desk) -> None:
    host, file = desk.host, desk.root / "file"
    file.write_text("")
    desk.policy(f"notify: {{metrics: {{textfile: {file}/crm.prom}}}}\nlog: {{path: {file}/crm.log}}\n")
    done = host.run("backup", "crm", "--json")
    assert sorted(line["code"] for line in done.lines if line["type"] == "warning") == ["local", "log-failed"]
    assert done.one("snapshot")["kind"] == "full"
    shutil.rmtree(host.state / "health")
    (host.state / "health").write_text("")
    (host.state / "audit.log").unlink()
    (host.state / "audit.log").mkdir()
    done = host.run("restore", "crm", "--to", desk.root / "out.db")
    assert (desk.root / "out.db").exists()
    assert done.err.count("THE AUDIT LOG LACKS THIS") == 3
    assert "restore-ended" in done.err


def test_hooks_and_what_their_failing_means(desk: Desk) -> None:
    host, seen = desk.host, desk.root / "seen"
    said = f"echo $CRMBACKUP_HOOK $CRMBACKUP_ACTION $CRMBACKUP_EXIT_CODE $CRMBACKUP_ERROR_CODE >> {seen}"
    failing = f"backup: {{before: [sh, -c, 'echo no disk; exit 7'], on_error: [sh, -c, '{said}']}}"
    drilled = f"drill: {{before: [sh, -c, '{said}'], after: [sh, -c, '{said}; exit 1']}}"
    desk.policy(f"hooks:\n  {failing}\n  {drilled}\n")
    done = host.run("backup", "crm", "--json", code=9)
    assert done.error["code"] == "hook-failed"
    assert "exit code 7; it printed:\nno disk" in done.error["why"]
    assert host.snapshots("crm") == []
    assert seen.read_text() == "on_error backup 9 hook-failed\n"
    desk.policy(f"hooks:\n  {drilled}\n")
    host.run("backup", "crm")
    done = host.run("drill", "crm")
    assert "warning: hooks.drill.after failed: sh: it ended with exit code 1" in done.err
    assert seen.read_text().splitlines()[1:] == ["before drill", "after drill 0"]


def test_stopping_while_somebody_is_told_changes_nothing(desk: Desk, web: Webhook) -> None:
    web.answers["/hooktoken"] = None
    url = desk.secret("hook", f"json://127.0.0.1:{web.port}/hooktoken")
    desk.policy(f"notify: {{apprise: [{{url: {url}, on: [success]}}], timeout: 10m}}\n")
    with stopped_at_end(desk.host.start("backup", "crm")) as process:
        web.wait_for("/hooktoken")
        process.send_signal(signal.SIGINT)
        done = desk.host.ended(process)
    assert done.code == 0
    assert "not everybody was told: stopped by Ctrl-C" in done.err
    assert len(desk.host.snapshots("crm")) == 1


def test_a_run_that_is_killed_or_locked_out_tells_nothing_but_its_start(desk: Desk, web: Webhook) -> None:
    url = desk.secret("ping", f"http://127.0.0.1:{web.port}/{TOKEN}")
    hook = desk.secret("hook", f"json://127.0.0.1:{web.port}/hooktoken")
    waiting = "{before: [sh, -c, 'touch started; exec sleep 5']}"
    tell = f"notify: {{pings: [{{url: {url}}}], apprise: [{{url: {hook}}}]}}\n"
    desk.host.run("backup", "crm")
    desk.policy(tell + f"hooks: {{backup: {waiting}}}\n")
    with stopped_at_end(desk.host.start("backup", "crm")) as process:
        web.wait_for(f"/{TOKEN}/start")
        process.kill()
        process.wait()
    assert web.paths == [f"/{TOKEN}/start"]

    desk.policy(tell)
    (state,) = desk.host.state.glob("*/crm")
    lock = state / "lock"
    with lock.open("r+") as held:
        fcntl.lockf(held, fcntl.LOCK_EX)
        desk.host.run("backup", "crm", code=11)
    assert set(web.paths) == {f"/{TOKEN}/start"}


def test_monitor(desk: Desk, tmp_path: Path) -> None:
    host = desk.host
    desk.policy(f"objectives: {{rpo: 26h}}\nnotify: {{metrics: {{textfile: {desk.root}/crm.prom}}}}\n")
    assert (
        host.run("monitor", "crm", code=2).out
        == "CRMBACKUP CRITICAL - crm there is no complete snapshot, never drilled\n"
    )
    host.run("backup", "crm")
    host.run("drill", "crm")
    (desk.root / "identity.txt").unlink()  # no key is needed, nor what this host knows of drills
    shutil.rmtree(host.state / "reports")
    out = host.run("monitor", "crm").out
    assert out.startswith("CRMBACKUP OK - crm newest ")
    assert " ago PASS | 'age'=" in out
    assert out.count("\n") == 1

    # The newest failed drill counts, and only if it is genuine.
    host.run("drill", "crm", code=6)
    assert host.run("monitor", "crm").code == 0
    desk.policy("objectives: {rpo: 1s}\n")
    # WARNING after a second, CRITICAL after two: which of them depends on how fast this machine is.
    wait_until(lambda: ", RPO is 1s" in host.ended(host.start("monitor", "crm")).out, "an old snapshot")

    # All policies; one is broken, one has another repository that is not there.
    desk.policy("objectives: {rpo: 26h}\n")
    (host.cwd / "policies" / "broken.yaml").write_text("version: 1\n")
    out = host.run("monitor", code=3).out
    assert out.startswith("CRMBACKUP UNKNOWN - broken the policy ")
    assert "OK crm newest" in out
    assert "'crm_age'=" in out
    write_policy(host.cwd / "policies" / "gone.yaml", desk.database, str(tmp_path / "file"))
    (tmp_path / "file").mkdir()
    assert host.run("monitor", code=2).out.startswith("CRMBACKUP CRITICAL - gone there is no repository")

    # The state is lost: what the repository knows comes back.
    desk.policy(f"notify: {{metrics: {{textfile: {desk.root}/crm.prom}}}}\n")
    before = metrics(desk.root / "crm.prom")
    shutil.rmtree(host.state / "health")
    host.run("monitor", "crm", "--metrics")
    after = metrics(desk.root / "crm.prom")
    for name in (
        "last_success_timestamp_seconds",
        "snapshots",
        "snapshot_bytes",
        "last_drill_success_timestamp_seconds",
    ):
        assert after[f"crmbackup_{name}"] == before[f"crmbackup_{name}"]

    # Wrong use and lateness are UNKNOWN.
    assert "UNKNOWN - No such option" in host.run("monitor", "--critical", code=3).out
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        inside = [f"endpoint: http://127.0.0.1:{deaf.getsockname()[1]}", "region: x"]
        write_policy(host.cwd / "policies" / "deaf.yaml", desk.database, "s3://bucket/p", inside=inside)
        keys = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}
        out = host.run("monitor", "deaf", "--timeout", 2, code=3, env=keys).out
    assert out == "CRMBACKUP UNKNOWN - no answer within 2 s\n"
