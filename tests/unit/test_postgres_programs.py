"""Finding PostgreSQL's programs: small scripts that answer --version as the real ones do, on a PATH of our own."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from crmbackup.core.errors import ProgramMissing
from crmbackup.engines.postgres.programs import Program, find_program

#: No host has a program of that name in PostgreSQL's usual directories.
NAME = "pg_crmbackup_test"


def put(directory: Path, answer: str, *, code: int = 0, mode: int = 0o755) -> Path:
    directory.mkdir(exist_ok=True)
    path = directory / NAME
    path.write_text(f"#!/bin/sh\necho '{answer}'\nexit {code}\n")
    path.chmod(mode)
    return path


@pytest.fixture
def on_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with programs of 16.3, 14.9, 14.11 and 12.22, in that order on the PATH."""
    versions = ["16.3", "14.9 (Debian 14.9-1.pgdg120+1)", "14.11", "12.22"]
    places = [tmp_path / f"place{number}" for number in range(len(versions))]
    for place, version in zip(places, versions, strict=True):
        put(place, f"{NAME} (PostgreSQL) {version}")
    monkeypatch.setenv("PATH", os.pathsep.join(map(str, [*places, tmp_path / "absent"])))
    return tmp_path


def test_the_oldest_that_is_new_enough_is_taken_at_its_newest_minor(on_path: Path) -> None:
    assert find_program(NAME, at_least=13) == Program(on_path / "place2" / NAME, 14, 11)
    assert find_program(NAME, at_least=15).major == 16
    assert find_program(NAME, at_least=12).major == 12


def test_a_server_is_only_run_by_programs_of_its_own_version(on_path: Path) -> None:
    assert find_program(NAME, at_least=14, exactly=True).path == on_path / "place2" / NAME
    with pytest.raises(ProgramMissing) as raised:
        find_program(NAME, at_least=15, exactly=True)
    assert raised.value.what == f"{NAME} of PostgreSQL 15 is not on this host"
    assert f"{on_path / 'place0' / NAME} of 16" in raised.value.why
    assert "install postgresql-15" in raised.value.hint
    assert "drill.target" in raised.value.hint


def test_what_is_too_old_is_not_taken_and_the_hint_says_what_to_install(on_path: Path) -> None:
    with pytest.raises(ProgramMissing) as raised:
        find_program(NAME, at_least=17)
    assert "17 or later" in raised.value.what
    assert "postgresql-client-17" in raised.value.hint
    assert "source.programs" in raised.value.hint


def test_nothing_at_all_is_said_to_be_nothing() -> None:
    with pytest.raises(ProgramMissing) as raised:
        find_program(NAME, at_least=12)
    assert raised.value.why == "none was found"


def test_the_directory_of_the_policy_is_the_only_one_searched(on_path: Path) -> None:
    chosen = put(on_path / "chosen", f"{NAME} (PostgreSQL) 17.1")
    assert find_program(NAME, at_least=12, directory=chosen.parent) == Program(chosen, 17, 1)
    with pytest.raises(ProgramMissing):
        find_program(NAME, at_least=14, exactly=True, directory=chosen.parent)


def test_what_does_not_run_or_is_something_else_is_passed_over(on_path: Path) -> None:
    chosen = on_path / "chosen"
    for answer, code, mode in [
        (f"{NAME} (PostgreSQL) 15.1", 0, 0o644),
        (f"{NAME} (PostgreSQL) 15.1", 1, 0o755),
        (f"{NAME} (EDB Postgres) x", 0, 0o755),
    ]:
        chosen = on_path / f"chosen{code}{mode}{len(answer)}"
        put(chosen, answer, code=code, mode=mode)
        with pytest.raises(ProgramMissing):
            find_program(NAME, at_least=12, directory=chosen)


def test_a_version_before_its_release_counts(on_path: Path) -> None:
    chosen = put(on_path / "chosen", f"{NAME} (PostgreSQL) 19beta1")
    assert find_program(NAME, at_least=18, directory=chosen.parent) == Program(chosen, 19, 0)


def test_debians_wrapper_is_run_only_where_the_policy_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrapper = put(tmp_path / "common", f"{NAME} (PostgreSQL) 15.1").rename(tmp_path / "common" / "pg_wrapper")
    usual = tmp_path / "bin"
    usual.mkdir()
    (usual / NAME).symlink_to(wrapper)
    monkeypatch.setenv("PATH", str(usual))
    with pytest.raises(ProgramMissing):
        find_program(NAME, at_least=12)
    assert find_program(NAME, at_least=12, directory=usual) == Program(usual / NAME, 15, 1)
