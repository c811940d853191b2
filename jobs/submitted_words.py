"""The words of a command, made ready to be given on another machine.

The command's own parser reads them, so that wrong use is told before anything is submitted. Local paths become absolute
(a job runs in a directory of its own), in the --config file, too, which goes along with the job.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import re
import sys
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from cluster.shipping import config_place
from data_prep import storage
from jobs.cli import UsageError, read_options
from jobs.options import Option, add_arguments, build, flatten, options_of

# Options that hold paths or URIs, and the words that may stand there instead (up to a colon). One that has a list of
# choices holds none of them, whatever its name.
PATHS: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("corpus", "faces", "features", "gallery", "genotype", "genotypes", "manifest", "network"), ()),
    **dict.fromkeys(("baselines", "check", "onnx", "out", "roots", "run", "storage", "swan", "videos"), ()),
    **dict.fromkeys(("checkpoint", "initial_weights", "sequences"), ()),
    **dict.fromkeys(("visual_weights", "audio_weights"), ("imagenet", "random")),
    "spectrogram_statistics": ("clip",),
    "json_lines": ("-",),
}
# What `stgs submit` says before the command; a job joins the cluster that it runs on.
_OWN = ("address", "num_cpus")
_TAKEOVER, _DRY_RUN = "takeover", "dry_run"
_RUN_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")


@dataclass(frozen=True, slots=True)
class SubmittedWords:
    """words: as the job gets them. config: name and content of the --config file. run: URI of what the command makes,
    or works on. name: the last part of it, as a job's name. takes_over: whether only one driver may work on the run,
    unless --takeover is given; takeover: whether it is. local_paths: those that every machine has to see.
    """

    words: tuple[str, ...]
    config: tuple[str, bytes] | None
    run: str | None
    name: str
    takes_over: bool
    takeover: bool
    local_paths: tuple[str, ...]

    def with_takeover(self) -> SubmittedWords:
        """The same with --takeover among the words. Raises UsageError if the command has no such option."""
        if not self.takes_over:
            raise UsageError("--takeover is for baseline, grid and search; this command needs none.")
        return self if self.takeover else dataclasses.replace(self, words=(*self.words, "--takeover"), takeover=True)


def read_words(command: str, words: Sequence[str]) -> SubmittedWords:
    """Parse the words of a command. Raises UsageError, or SystemExit after printing the command's --help."""
    module = importlib.import_module(f"jobs.{command}")
    if {"-h", "--help"} & set(words):
        sys.exit(module.main(["--help"]))
    config_class = next(iter(typing.get_type_hints(module.run).values()))
    options = options_of(config_class)
    given = _parse(command, options, words)
    as_json, file = given.pop("json"), given.pop("config")
    from_file = {} if file is None else read_options(command, file, options)
    for name in _OWN:
        if name in given or name in from_file:
            raise UsageError(f"{name} is given to {command}, but its job joins the cluster; give --address before it.")
    paths = path_options(options)
    given, from_file = (
        {name: _placed(name, value) if name in paths else value for name, value in values.items()}
        for values in (given, from_file)
    )
    origins = {name: f"{name} in {file}" for name in from_file if name not in given}
    settings = flatten(build(config_class, {**from_file, **given}, origins))
    ready = [word for item in options if item.name in given for word in _words(item, given[item.name])]
    config = None
    if file is not None:
        config = (Path(file).name, yaml.safe_dump(from_file, sort_keys=False).encode())
        ready += ["--config", config_place(config[0])]
    # Some commands find a place for what they make below a run that is given.
    place = getattr(module, "run_directory", lambda settings: settings.get("out") or settings.get("run"))
    run = place(settings)
    if _TAKEOVER in settings:
        _require_run_name(storage.absolute(run))
    return SubmittedWords(
        words=(*ready, *(["--json"] if as_json else [])),
        config=config,
        run=None if run is None else storage.absolute(run),
        name=_name(command if run is None else run),
        takes_over=_TAKEOVER in settings and not settings.get(_DRY_RUN),
        takeover=bool(settings.get(_TAKEOVER)),
        local_paths=tuple(path for name in sorted(paths) for path in _local(name, settings[name])),
    )


def path_options(options: Sequence[Option]) -> set[str]:
    """The names of those options that hold paths or URIs."""
    return {item.name for item in options if item.name in PATHS and item.kind is str and item.choices is None}


def _parse(command: str, options: Sequence[Option], words: Sequence[str]) -> dict[str, Any]:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    add_arguments(parser, options)
    parser.add_argument("--config")
    parser.add_argument("--json", action="store_true")
    try:
        given, unknown = parser.parse_known_args(words)
    except argparse.ArgumentError as error:
        raise UsageError(f"{error}; see 'stgs {command} --help'.") from None
    if unknown:
        raise UsageError(f"unrecognized arguments: {' '.join(unknown)}; see 'stgs {command} --help'.")
    return {name: value for name, value in vars(given).items() if value != []}


def _words(item: Option, value: Any) -> list[str]:
    if item.positional:
        return list(value) if item.many else [value]
    return item.arguments(value)


def _placed(name: str, value: Any) -> Any:
    """An option's value with absolute paths."""
    if isinstance(value, list):
        return [_placed(name, item) for item in value]
    if not isinstance(value, str) or value.partition(":")[0] in PATHS[name]:
        return value
    # An object's key may end with a slash, but a run is one and the same with it and without.
    return storage.absolute(value).rstrip("/") or "/"


def _local(name: str, value: Any) -> list[str]:
    values = value if isinstance(value, list) else [value]
    return [item for item in values if item and "://" not in item and item.partition(":")[0] not in PATHS[name]]


def _require_run_name(run: str) -> None:
    """Refuse the names that `cluster.runs.open_run` refuses, before a cluster is asked."""
    last = run.rstrip("/").rsplit("/", 1)[-1]
    if not _RUN_NAME.fullmatch(last):
        raise UsageError(f"--out ends in {last!r}, but a run's name has 1 to 64 letters, digits, '.', '_' or '-'.")


def _name(uri: str) -> str:
    last = uri.rstrip("/").rsplit("/", 1)[-1]
    return re.sub(r"[^A-Za-z0-9._-]", "-", last)[:64] or "job"
