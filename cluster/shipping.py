"""What a submitted job takes along: the program and the job's configuration file, and nothing else.

Ray would ship a whole working directory; of a checkout that is data, runs and whatever secrets lie there. So an
archive is made from a list of what is allowed: the Python files of the four packages, pyproject.toml where the program
runs from a checkout, and the file given to --config.
"""

from __future__ import annotations

import importlib.util
import io
import zipfile
from pathlib import Path

PACKAGES = ("stgs", "data_prep", "cluster", "jobs")
CONFIG_FOLDER = "config"
_PROJECT = "pyproject.toml"
# The earliest moment that a zip file can hold: equal files give equal archives, which Ray uploads once.
_DATE = (1980, 1, 1, 0, 0, 0)
_READABLE = 0o644 << 16


def archive(config: tuple[str, bytes] | None = None) -> bytes:
    """A zip file of the program as it is imported here, the same bytes for the same files.

    config: name and content of the job's configuration file; it is put at `config_place(name)`. Raises
    ModuleNotFoundError if a package is not installed.
    """
    entries = dict(_program())
    if config is not None:
        entries[config_place(config[0])] = config[1]
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name in sorted(entries):
            entry = zipfile.ZipInfo(name, _DATE)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = _READABLE
            file.writestr(entry, entries[name])
    return buffer.getvalue()


def config_place(name: str) -> str:
    """Where a configuration file called `name` lies in the archive, and below the job's working directory."""
    return f"{CONFIG_FOLDER}/{name}"


def _program() -> dict[str, bytes]:
    """Path in the archive -> content."""
    found = {}
    folders = {name: _folder(name) for name in PACKAGES}
    for name, folder in folders.items():
        for path in folder.rglob("*.py"):
            relative = path.relative_to(folder)
            # Folders that are no packages, such as those of editors, are none of the program.
            packaged = all((folder / parent / "__init__.py").is_file() for parent in relative.parents)
            if path.is_file() and packaged and not path.name.startswith("."):
                found[f"{name}/{relative.as_posix()}"] = path.read_bytes()
    project = folders[PACKAGES[0]].parent / _PROJECT
    # Beside an installed package there is none, or, in a folder of many packages, another project's.
    if project.is_file() and all(folder.parent == project.parent for folder in folders.values()):
        found[_PROJECT] = project.read_bytes()
    return found


def _folder(package: str) -> Path:
    """The folder of a package, found without importing it: `cluster` imports no job."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"there is no package {package!r} to ship")
    return Path(spec.submodule_search_locations[0])
