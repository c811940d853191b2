"""The project's files: the lock, the Makefile, the license."""

import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

LOCK_LINE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*==[0-9][0-9A-Za-z.]*")


@pytest.fixture(scope="module")
def lock(repository: Path) -> list[str]:
    return (repository / "requirements.lock").read_text(encoding="utf-8").splitlines()


@pytest.fixture(scope="module")
def project(repository: Path) -> dict:
    return tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def test_lock_has_one_plain_version_a_line(lock: list[str]) -> None:
    # This excludes addresses, '@', and local versions such as 2.10.0+cu128.
    assert [line for line in lock if not LOCK_LINE.fullmatch(line)] == []


def test_lock_is_sorted_and_names_each_package_once(lock: list[str]) -> None:
    names = [canonicalize_name(line.partition("==")[0]) for line in lock]
    assert lock == sorted(lock, key=str.upper)
    assert len(set(names)) == len(names)


def test_lock_holds_every_dependency_in_a_version_that_fits(lock: list[str], project: dict) -> None:
    locked = {canonicalize_name(name): version for name, version in (line.split("==") for line in lock)}
    wanted = [
        *project["dependencies"],
        *(item for extra in project["optional-dependencies"].values() for item in extra),
    ]
    for requirement in map(Requirement, wanted):
        version = locked.get(canonicalize_name(requirement.name), "nothing")
        assert requirement.specifier.contains(version), f"{requirement} is locked as {version}"


def test_lock_holds_what_installs_it(lock: list[str]) -> None:
    assert {"pip", "setuptools", "wheel"} <= {line.partition("==")[0] for line in lock}


def test_license_and_versions_of_python(repository: Path, project: dict) -> None:
    assert project["license"] == "Apache-2.0"
    assert "Apache License" in (repository / "LICENSE").read_text(encoding="utf-8")[:200]
    assert project["requires-python"] == ">=3.11,<3.13"


def test_ci_calls_make(repository: Path) -> None:
    script = repository / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert {"make lint", "make test"} <= set(script.read_text(encoding="utf-8").splitlines())


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")
def test_make_installs_once_and_again_after_a_change(repository: Path, tmp_path: Path) -> None:
    for name in ("Makefile", "requirements.lock", "pyproject.toml"):
        shutil.copy(repository / name, tmp_path)

    def needs_installation() -> bool:
        # -q runs nothing; its exit status says whether there is something to do.
        return subprocess.run(["make", "-q", ".venv/.installed"], cwd=tmp_path, timeout=20).returncode == 1

    assert needs_installation()
    stamp = tmp_path / ".venv" / ".installed"
    stamp.parent.mkdir()
    stamp.touch()
    assert not needs_installation()
    for name in ("requirements.lock", "pyproject.toml"):
        later = stamp.stat().st_mtime + 10
        os.utime(tmp_path / name, (later, later))
        assert needs_installation()
        os.utime(tmp_path / name, (0, 0))
