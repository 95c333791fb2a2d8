"""What stands around a run: how its end is judged, and that nothing there changes it."""

from __future__ import annotations

from pathlib import Path

import pytest

from crmbackup.cli import telling
from crmbackup.cli.operation import operation
from crmbackup.cli.telling import ledgers, path_of
from crmbackup.cli.wiring import Wiring
from crmbackup.core.clock import SystemClock
from crmbackup.core.errors import CrmBackupError, Interrupted, Locked, ObjectDamaged
from crmbackup.core.events import Event, Warned
from crmbackup.notify.ledger import ActionRecord
from crmbackup.policy.loader import LoadedPolicy


class Scene:
    """A host with the policy `crm`, and what was shown."""

    def __init__(self, root: Path, more: str = "") -> None:
        self.root = root
        (root / "crm.yaml").write_text(
            f"version: 1\nname: crm\nsource: {{type: sqlite, path: {root}/crm.db}}\nrepository: {{url: {root}/repo}}\n{more}"
        )
        environ = {"CRMBACKUP_CONFIG_DIR": str(root / "config"), "CRMBACKUP_STATE_DIR": str(root / "state")}
        self.host = Wiring({**environ, "PATH": "/usr/bin:/bin"}, root, SystemClock(), "backup")
        self.shown: list[Event] = []

    @property
    def loaded(self) -> LoadedPolicy:
        return self.host.load("./crm.yaml")

    @property
    def warnings(self) -> list[str]:
        return [event.code for event in self.shown if isinstance(event, Warned)]

    @property
    def record(self) -> ActionRecord:
        ledger = ledgers(self.host).one("crm", path_of(self.loaded))
        assert ledger is not None
        return ledger.action("backup")

    def run(self, error: Exception | None = None, *, done: bool = False, failed: bool = False) -> str:
        with operation(self.host, self.loaded, "backup", self.shown.append) as run:
            if done:
                run.done(failed=failed)
            if error:
                raise error
        return run.run_id


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


def test_a_run_that_is_done_stays_so_when_its_output_cannot_be_printed(scene: Scene) -> None:
    with pytest.raises(BrokenPipeError):
        scene.run(BrokenPipeError(), done=True)
    assert (scene.record.exit_code, scene.record.failures) == (0, 0)
    with pytest.raises(BrokenPipeError):
        scene.run(BrokenPipeError())
    assert (scene.record.exit_code, scene.record.failures) == (9, 1)


@pytest.mark.parametrize(
    ("error", "code"), [(ObjectDamaged("x"), 5), (ZeroDivisionError(), 1), (Interrupted("x"), 130)], ids=str
)
def test_failures_are_counted_and_lead_to_their_run(scene: Scene, error: Exception, code: int) -> None:
    with pytest.raises(type(error)):
        scene.run(error, done=isinstance(error, CrmBackupError), failed=True)
    assert (scene.record.exit_code, scene.record.failures) == (code, 1)
    assert vars(error)["run_id"] == scene.host.auditor.run_id


def test_a_run_that_found_another_one_at_work_did_not_take_place(scene: Scene) -> None:
    with pytest.raises(Locked):
        scene.run(Locked("another run"))
    assert scene.record == ActionRecord()


def test_every_run_has_an_id_and_the_first_has_that_of_the_process(scene: Scene) -> None:
    first = scene.host.auditor.run_id
    ids = [scene.run(), scene.run()]
    assert ids[0] == first
    assert ids[1] != first


def test_what_is_broken_in_telling_is_a_warning(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(telling, "messages", broken)
    scene.run()
    assert scene.warnings == ["notify-failed"]
    assert scene.record.exit_code == 0


def test_policy_changes_are_noted_once(scene: Scene) -> None:
    scene.run()
    scene.run()
    Scene(scene.root, "limits: {jobs: 3}\n").run()
    entries = list(scene.host.auditor.log.entries())
    assert [entry["event"] for entry in entries] == ["policy-changed"] * 2
    assert entries[1]["data"]["old"] == entries[0]["data"]["new"]


def test_a_hook_after_a_run_that_fails_is_a_warning(tmp_path: Path) -> None:
    scene = Scene(tmp_path, "hooks: {backup: {after: ['false'], on_error: ['false']}}\n")
    scene.run()
    assert scene.warnings == ["hook-failed"]
    with pytest.raises(ObjectDamaged):
        scene.run(ObjectDamaged("x"))
    assert scene.warnings == ["hook-failed"] * 2
    assert scene.record.exit_code == 5


def test_an_audit_log_that_cannot_be_written_is_loud_or_an_error(scene: Scene) -> None:
    (scene.root / "state").mkdir()
    (scene.root / "state" / "audit.log").mkdir()
    with operation(scene.host, None, "restore", scene.shown.append):
        scene.host.auditor.record("restore", "crm", {})
    assert scene.warnings == ["audit-failed"]
    with pytest.raises(CrmBackupError):
        scene.host.auditor.record("deletion", "crm", {}, required=True)
