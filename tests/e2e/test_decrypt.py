"""The stand-alone script reads a repository with no crmbackup in reach."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support_repo import Site

pytestmark = pytest.mark.e2e
SCRIPT = Path(__file__).parents[2] / "scripts" / "decrypt.py"

# crmbackup is installed in this interpreter: the script must not be able to lean on it.
WITHOUT = "import sys, runpy; sys.modules['crmbackup'] = None; del sys.argv[0]; runpy.run_path(sys.argv[0], run_name='__main__')"


def decrypt(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", WITHOUT, str(SCRIPT), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd="/")


def identity_file(site: Site) -> Path:
    path = site.root / "identity.txt"
    path.write_text(f"# from the recovery sheet\n{site.identity.to_text().lower()}\n")
    return path


def test_it_gives_back_full_and_incremental_snapshots(tmp_path: Path) -> None:
    site = Site.make(tmp_path / "site")
    before = site.fill(rows=500, mebibytes=2)
    full = site.backup("full").header
    after = site.fill(rows=20)
    incremental = site.backup("incremental").header
    identity = identity_file(site)

    listing = decrypt(site.repo, identity).stdout
    assert [line.split()[0] for line in listing.splitlines()] == [full.snapshot_id, incremental.snapshot_id]

    done = decrypt(site.repo, identity, tmp_path / "latest.db")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "latest.db").read_bytes() == after
    assert "contacts: 520 rows" in done.stdout

    assert decrypt(site.repo, identity, tmp_path / "full.db", full.snapshot_id).returncode == 0
    assert (tmp_path / "full.db").read_bytes() == before


def test_it_refuses_what_is_not_as_it_was_written(tmp_path: Path) -> None:
    site = Site.make(tmp_path / "site")
    site.fill(rows=100)
    header = site.backup("full").header
    identity = identity_file(site)
    for path in [*site.pack_paths(), site.repo / header.key, site.repo / "repository.json"]:
        whole = path.read_bytes()
        changed = bytearray(whole)
        changed[len(whole) // 2] ^= 1
        path.chmod(0o600)
        path.write_bytes(changed)
        done = decrypt(site.repo, identity, tmp_path / f"{path.name}.db")
        assert done.returncode != 0, f"a changed {path.name} was taken"
        assert not (tmp_path / f"{path.name}.db").exists()
        path.write_bytes(whole)


def test_a_manifest_that_is_damaged_or_forged_does_not_stand_in_the_way(tmp_path: Path) -> None:
    site = Site.make(tmp_path / "site")
    content = site.fill(rows=100)
    good, bad, forged = (site.backup("full").header for _ in range(3))
    path = site.repo / bad.key
    path.chmod(0o600)
    path.write_bytes(path.read_bytes()[:-1])
    path = site.repo / forged.key
    path.chmod(0o600)
    path.write_bytes(path.read_bytes().replace(b'"kind":"full"', b'"kind":"fuII"'))
    (site.repo / "snapshots" / "crm" / "junk").write_bytes(b"CRMBMF01")
    done = decrypt(site.repo, identity_file(site), tmp_path / "out.db")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out.db").read_bytes() == content
    assert good.snapshot_id in done.stdout
    assert done.stderr.count("is left out") == 3


def test_the_latest_of_several_policies_is_not_guessed(tmp_path: Path) -> None:
    site = Site.make(tmp_path / "site")
    site.fill(rows=10)
    header = site.backup("full").header
    other = site.for_policy("other")
    other.fill(rows=5)
    other.backup("full")
    identity = identity_file(site)
    done = decrypt(site.repo, identity, tmp_path / "out.db")
    assert done.returncode != 0
    assert "several policies" in done.stderr
    assert not (tmp_path / "out.db").exists()
    assert decrypt(site.repo, identity, tmp_path / "out.db", header.snapshot_id).returncode == 0


def test_a_mistyped_identity_is_told(tmp_path: Path) -> None:
    site = Site.make(tmp_path / "site")
    identity = identity_file(site)
    text = identity.read_text()
    identity.write_text(text[:-3] + ("a" if text[-3] != "a" else "b") + text[-2:])
    done = decrypt(site.repo, identity)
    assert done.returncode != 0
    assert "checksum" in done.stderr
