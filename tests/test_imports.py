"""The import rules of the four packages, from the source and in fresh interpreters."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGES = ("stgs", "data_prep", "cluster", "jobs")
FORBIDDEN = {
    "stgs": ("ray", "pandas", "data_prep", "cluster", "jobs"),
    "data_prep": ("ray", "stgs", "cluster", "jobs"),
    "cluster": ("jobs",),
}
STGS_MAY_IMPORT = {"stgs", "torch", "torchvision", "safetensors", "numpy", *sys.stdlib_module_names}

# Makes the modules named on the command line look as if they were not installed, then imports the whole package.
IMPORT_ALL = """
import importlib, pkgutil, sys

class WithoutTheHidden:
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        hidden = name.partition(".")[0] in sys.argv[2:]
        return None if hidden else self.finder.find_spec(name, path, target)

    def __getattr__(self, name):
        return getattr(self.finder, name)

sys.meta_path[:] = map(WithoutTheHidden, sys.meta_path)
package = importlib.import_module(sys.argv[1])
for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
    importlib.import_module(module.name)
print("imported")
"""


@pytest.mark.parametrize("package", FORBIDDEN)
def test_package_imports_without_what_it_must_not_import(package: str, repository: Path) -> None:
    command = [sys.executable, "-c", IMPORT_ALL, package, *FORBIDDEN[package]]
    result = subprocess.run(command, cwd=repository, capture_output=True, text=True, timeout=100)
    assert result.stdout == "imported\n", result.stderr


def sources(repository: Path, *packages: str) -> Iterator[tuple[str, ast.Module]]:
    for package in packages:
        files = sorted((repository / package).rglob("*.py"))
        assert files, f"{package} has no source files"
        for path in files:
            yield path.relative_to(repository).as_posix(), ast.parse(path.read_text(encoding="utf-8"))


def imported(tree: ast.Module) -> set[str]:
    """Top-level names of all modules that a file imports, anywhere in it."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide what is imported"
            names.add(str(node.module).partition(".")[0])
    return names


@pytest.mark.parametrize("package", FORBIDDEN)
def test_no_file_names_a_forbidden_module(package: str, repository: Path) -> None:
    found = {name: imported(tree) & set(FORBIDDEN[package]) for name, tree in sources(repository, package)}
    assert {name: modules for name, modules in found.items() if modules} == {}


def test_stgs_needs_torch_safetensors_and_numpy_only(repository: Path) -> None:
    found = {name: imported(tree) - STGS_MAY_IMPORT for name, tree in sources(repository, "stgs")}
    assert {name: modules for name, modules in found.items() if modules} == {}


@pytest.mark.parametrize(
    ("module", "allowed"),
    [
        ("torchvision", ("stgs/backbone", "data_prep/augment_visual.py")),
        ("pandas", "jobs/"),
        ("librosa", "data_prep/"),
        ("audiomentations", "data_prep/augment_sound.py"),
        ("av", "data_prep/"),
    ],
)
def test_module_is_imported_in_its_place_only(module: str, allowed: str | tuple[str, ...], repository: Path) -> None:
    users = [name for name, tree in sources(repository, *PACKAGES) if module in imported(tree)]
    assert [name for name in users if not name.startswith(allowed)] == []


def test_only_the_session_starts_ray(repository: Path) -> None:
    users = []
    for name, tree in sources(repository, *PACKAGES):
        for node in ast.walk(tree):
            attribute = isinstance(node, ast.Attribute) and ast.unparse(node) == "ray.init"
            taken = (
                isinstance(node, ast.ImportFrom) and node.module == "ray" and any(a.name == "init" for a in node.names)
            )
            if attribute or taken:
                users.append(name)
    assert users == ["cluster/session.py"]
