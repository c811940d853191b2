"""The console command `stgs`: finds the command's module, builds its configuration, and reports how it ended.

Exit codes (design.md section 5): 0 complete; 1 failed; 2 wrong use; 3 stopped early and resumable; 4 complete, but
some points failed or some clips were refused.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib
import json
import math
import os
import signal
import sys
import traceback
import typing
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from jobs.options import Option, SessionOptions, UsageError, add_arguments, build, group, option, options_of

__all__ = ["COMMANDS", "Outcome", "SessionOptions", "UsageError", "group", "main", "option", "run_command"]

COMPLETE, FAILED, WRONG_USE, STOPPED, PARTLY = 0, 1, 2, 3, 4

# Name of each command and its line in `stgs --help`; the module is jobs.<name>, imported when the command is used.
COMMANDS: dict[str, str] = {
    "demo": "make a small talking-face corpus, then run everything below, to the report",
    "manifest": "list the clips of a data set, with labels, subjects and splits",
    "augment": "add augmented clips of train and dev to a manifest, or show what each augmentation does",
    "prepare": "cut faces and spectrograms out of the clips of a manifest: the corpus",
    "extract": "run the frozen backbones over a corpus: the features",
    "search": "search one fusion network on features",
    "grid": "search a grid of temperatures and numbers of samples",
    "train": "train the found networks and the controls of a run",
    "evaluate": "read the test clips once and score the trained networks",
    "baseline": "train and test a baseline of another publication on the same clips",
    "report": "write a run's report as one HTML page",
    "score": "print P(fake) for new clips",
    "export": "write backbones and found network as one ONNX file",
    "describe": "print the size of a genotype and draw it",
    "submit": "run one of the commands above, or doctor, as a job of a Ray cluster",
    "jobs": "list the jobs of a cluster, or follow one",
    "stop": "stop a job of a cluster; it saves first",
    "results": "fetch the results of a job, or of a run",
    "status": "show how far a run is, from its storage alone",
    "doctor": "check machines and storage, one line each",
}

# What is said at Ctrl-C and SIGTERM, where nothing was begun that could go on.
_GO_ON = "stopped; run it again to go on where it stopped."
_RESUME = "stopped; go on with --resume."
_INTERRUPTED = {
    "search": _RESUME,
    "grid": _RESUME,
    "baseline": _RESUME,
    "manifest": "interrupted; run it again, it begins anew; a manifest that was written already is kept.",
    "augment": "interrupted; run it again, it begins anew; a manifest that was written already is kept.",
    "evaluate": "interrupted; run it again: results that were written are kept, the others are made anew.",
    "report": "interrupted before all of the report was written; run it again, it is made anew.",
    "score": "interrupted; lines in a --json-lines file are kept, and the same command goes on after them.",
    "export": "interrupted before the file was written, or just then; run it again, it is made anew.",
    "describe": "interrupted; it writes nothing, and nothing is lost.",
    "submit": "interrupted before the job was submitted, or just then: 'stgs jobs' says which.",
    "jobs": "interrupted; jobs go on by themselves.",
    "stop": "interrupted; the job may be stopping already: 'stgs jobs' says so.",
    "results": "interrupted before all was fetched; run it again.",
    "status": "interrupted; the run goes on by itself.",
    "doctor": "interrupted before every check was made.",
}

# Exceptions that mean wrong input. They are looked up where their modules are loaded already: importing those here
# would make `stgs --help` wait for torch and pyarrow.
_INPUT_ERRORS = (("stgs.config", "InputError"), ("data_prep.storage", "InputError"))
# Those that say all there is to say in a sentence: something outside is missing or full.
_OUTSIDE_ERRORS = (
    ("data_prep.storage", "UnreachableError"),
    ("data_prep.storage", "NoSpaceError"),
    ("data_prep.decoder", "DecoderStartError"),
    ("cluster.scoring_pool", "ProcessDiedError"),
)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a command ended: `payload` is what --json prints (JSON types only), `text` what is printed otherwise."""

    payload: dict[str, Any]
    text: str
    exit_code: int = COMPLETE


class _Parser(argparse.ArgumentParser):
    """Reports wrong use like every other error of `stgs`: one sentence."""

    def error(self, message: str) -> typing.NoReturn:
        raise UsageError(f"{message}; see '{self.prog} --help'.")


def main(argv: Sequence[str] | None = None) -> int:
    """The console command: `stgs COMMAND ...`. Returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        return _printed(_overview(), COMPLETE if arguments else WRONG_USE)
    name = arguments[0]
    if name not in COMMANDS:
        print(f"stgs: {name!r} is no command; choose from {', '.join(COMMANDS)}.", file=sys.stderr)
        return WRONG_USE
    try:
        module = importlib.import_module(f"jobs.{name}")
    except KeyboardInterrupt:  # libraries take seconds to load
        return _end(name, "interrupted before it began.", STOPPED, "--json" in arguments)
    return int(module.main(arguments[1:]))


def _overview() -> str:
    width = max(map(len, COMMANDS)) + 2
    lines = ["usage: stgs COMMAND ... (stgs COMMAND --help lists a command's options)", ""]
    return "\n".join(lines + [f"  {name:<{width}}{text}" for name, text in COMMANDS.items()])


def run_command(name: str, run: Callable[[Any], Outcome], argv: Sequence[str] | None = None) -> int:
    """Parse `argv` into the configuration that `run` takes, call it, print its outcome, and return the exit code.

    The configuration's class is the annotation of `run`'s parameter; the command's description is the docstring of
    run's module. Wrong input ends in one sentence on standard error; SIGTERM is taken like Ctrl-C.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    as_json = "--json" in arguments
    try:
        with _terminate_like_interrupt(), _standard_output_reserved(as_json):
            outcome = run(_configuration(name, run, arguments))
    except KeyboardInterrupt:
        return _end(name, _INTERRUPTED.get(name, _GO_ON), STOPPED, as_json)
    except Exception as error:
        if isinstance(error, (UsageError, *_loaded(_INPUT_ERRORS))):
            return _end(name, str(error), WRONG_USE, as_json)
        if isinstance(error, _loaded(_OUTSIDE_ERRORS)):
            return _end(name, str(error), FAILED, as_json)
        # The last resort of a command: shown in full, and the exit code says so.
        traceback.print_exc()
        return _end(name, f"failed: {type(error).__name__}: {error}", FAILED, as_json)
    return _printed(json.dumps(_finite(outcome.payload)) if as_json else outcome.text, outcome.exit_code)


def _printed(text: str, exit_code: int) -> int:
    """Print a command's result, if it has one. A reader that has seen enough, such as `head`, is no error."""
    try:
        print(text, end="\n" if text else "", flush=True)
    except BrokenPipeError:
        # What Python writes when it ends must not meet the broken pipe, either.
        with open(os.devnull, "w", encoding="utf-8") as nowhere:
            os.dup2(nowhere.fileno(), sys.stdout.fileno())
    return exit_code


def _end(name: str, sentence: str, exit_code: int, as_json: bool) -> int:
    print(f"stgs {name}: {sentence}", file=sys.stderr)
    if as_json:
        print(json.dumps({"error": sentence}))
    return exit_code


def _configuration(name: str, run: Callable[[Any], Outcome], arguments: list[str]) -> Any:
    config_class = next(iter(typing.get_type_hints(run).values()))
    options = options_of(config_class)
    parser = _Parser(
        prog=f"stgs {name}",
        description=run.__globals__["__doc__"],
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_arguments(parser, options)
    parser.add_argument("--config", metavar="FILE.yaml", help="read options from a file; flags override it")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    given = vars(parser.parse_args(arguments))
    given.pop("json")
    file = given.pop("config")
    # argparse reports a positional of any number that was not given as an empty list.
    given = {key: value for key, value in given.items() if value != []}
    from_file = {} if file is None else read_options(name, file, options)
    origins = {key: f"{key} in {file}" for key in from_file if key not in given}
    values = {**from_file, **given}
    # A configuration may name values, by that of its option `preset`, for the options that are not given.
    chosen = values.get("preset")
    preset = getattr(config_class, "PRESETS", {}).get(chosen, {}) if isinstance(chosen, str) else {}
    return build(config_class, {**preset, **values}, origins)


def read_options(name: str, path: str, options: Sequence[Option]) -> dict[str, Any]:
    """Option name -> value, from a `--config` file of the command `name`, which has these options.

    Raises UsageError if the file cannot be read, is no such mapping, or has another key.
    """
    found = _read_config(path)
    known = {item.name for item in options}
    for key in found:
        if key not in known:
            raise UsageError(f"the key {key!r} in {path} is no option of stgs {name}; see 'stgs {name} --help'.")
    return found


def _read_config(path: str) -> dict[str, Any]:
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"--config {path} cannot be read: {error.strerror}.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"--config {path} is not YAML: {' '.join(str(error).split())}.") from error
    if content is None:
        return {}
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise UsageError(f"--config {path} holds no mapping of option names to values.")
    return content


def _loaded(errors: Sequence[tuple[str, str]]) -> tuple[type[Exception], ...]:
    """Those of these exceptions whose modules are loaded."""
    return tuple(getattr(sys.modules[module], name) for module, name in errors if module in sys.modules)


@contextlib.contextmanager
def _terminate_like_interrupt() -> Iterator[None]:
    """SIGTERM raises KeyboardInterrupt meanwhile, so that every command is stopped in one way."""

    def interrupt(signum: int, frame: Any) -> typing.NoReturn:
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGTERM, interrupt)
    except ValueError:  # not the main thread, which alone receives signals: nothing to do
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _standard_output_reserved(reserved: bool) -> Iterator[None]:
    """Meanwhile, what is written to standard output goes to standard error, from child processes, too."""
    if not reserved:
        yield
        return
    sys.stdout.flush()
    saved = os.dup(1)
    os.dup2(2, 1)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(saved, 1)
        os.close(saved)


def _finite(value: Any) -> Any:
    """`value` with null for the floats that JSON does not have (nan, inf)."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


if __name__ == "__main__":
    sys.exit(main())
