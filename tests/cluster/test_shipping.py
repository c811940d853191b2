"""What a submitted job takes along: the program and its configuration, and no stray file."""

import io
import json
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from cluster.shipping import PACKAGES, archive

STRAY = (
    ".env",
    ".aws/credentials",
    "data/clips.parquet",
    "notes.py",
    "stgs/.env",
    "stgs/secrets.json",
    "cluster/.hidden.py",
    "cluster/kuberay.yaml",
    "jobs/__pycache__/cli.cpython-311.pyc",
    "data_prep/old/copy.py",
)
LIST = """
import io, json, zipfile
from cluster.shipping import archive
print(json.dumps(zipfile.ZipFile(io.BytesIO(archive(("grid.yaml", b"epochs: 2")))).namelist()))
"""


@pytest.fixture
def checkout(tmp_path: Path, repository: Path) -> Path:
    """A copy of the packages, with files around and among them that nobody may ship."""
    folder = tmp_path / "checkout"
    for package in PACKAGES:
        shutil.copytree(repository / package, folder / package, ignore=shutil.ignore_patterns("__pycache__", ".*"))
    shutil.copy(repository / "pyproject.toml", folder)
    for name in STRAY:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("SECRET=1")
    return folder


def listed(folder: Path) -> list[str]:
    """The archive's names, of the packages in `folder`."""
    command = [sys.executable, "-c", LIST]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def installed_packages(repository: Path) -> list[str]:
    """What an installation consists of."""
    settings = tomllib.loads((repository / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    assert list(settings) == ["packages"], "package-data has to be shipped, too"
    return settings["packages"]


def test_the_archive_holds_the_program_and_nothing_else(checkout: Path, repository: Path) -> None:
    folders = [package.replace(".", "/") for package in installed_packages(repository)]
    modules = [f"{name}/{path.name}" for name in folders for path in (repository / name).iterdir()]
    program = [name for name in modules if name.endswith(".py") and "/." not in name]
    assert listed(checkout) == sorted([*program, "pyproject.toml", "config/grid.yaml"])
    # Installed packages have no pyproject.toml of their own beside them.
    (checkout / "pyproject.toml").unlink()
    assert listed(checkout) == sorted([*program, "config/grid.yaml"])


def test_the_archive_runs_alone_and_is_the_same_twice(tmp_path: Path) -> None:
    data = archive()
    assert data == archive()
    assert data != archive(("grid.yaml", b"epochs: 2"))
    with zipfile.ZipFile(io.BytesIO(data)) as file:
        file.extractall(tmp_path)
    command = [sys.executable, "-m", "jobs.cli", "--help"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert "usage: stgs" in done.stdout, done.stderr


def test_every_package_is_installed_and_shipped(repository: Path) -> None:
    there = {
        ".".join(path.parent.relative_to(repository).parts)
        for name in PACKAGES
        for path in (repository / name).rglob("__init__.py")
    }
    assert set(installed_packages(repository)) == there
    with zipfile.ZipFile(io.BytesIO(archive())) as file:
        assert {f"{package.replace('.', '/')}/__init__.py" for package in there} <= set(file.namelist())
