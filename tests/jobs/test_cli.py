"""The console command: help, configuration files, output, exit codes."""

import importlib
import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

import data_prep.storage
import stgs.config
from jobs.cli import COMMANDS, Outcome, main, option, run_command
from jobs.options import options_of

SUBPROCESS_S = 60


@dataclass(frozen=True, kw_only=True)
class ToyConfig:
    source: str = option(help="where from", positional=True, metavar="SOURCE")
    rate: float = option(0.1, help="how fast, in %")
    sizes: tuple[int, ...] = option((1, 2), help="some sizes")
    loud: bool = option(True, help="noise")


def run(config: ToyConfig) -> Outcome:
    payload = {"source": config.source, "rate": config.rate, "sizes": list(config.sizes), "loud": config.loud}
    return Outcome(payload, f"source {config.source}")


def run_json(capfd: pytest.CaptureFixture[str], *arguments: str) -> dict:
    assert run_command("toy", run, [*arguments, "--json"]) == 0
    return json.loads(capfd.readouterr().out)


def error_of(capfd: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert run_command("toy", run, list(arguments)) == 2
    captured = capfd.readouterr()
    assert captured.out == ""
    return captured.err


def test_overview_names_every_command_and_imports_nothing_heavy(repository: Path) -> None:
    script = (
        "import sys; from jobs.cli import main; main(['--help']);"
        "print(sorted({'torch', 'ray', 'pandas', 'pyarrow', 'numpy'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", script]
    result = subprocess.run(command, cwd=repository, capture_output=True, text=True, timeout=SUBPROCESS_S)
    lines = result.stdout.splitlines()
    assert lines[-1] == "[]", result.stderr
    assert [line.split()[0] for line in lines if line.startswith("  ")] == list(COMMANDS)


def test_no_command_and_unknown_command_are_wrong_use(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert main(["dance"]) == 2
    assert "'dance' is no command; choose from demo, " in capsys.readouterr().err


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_options_with_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    module = importlib.import_module(f"jobs.{name}")
    (config_class,) = [hint for key, hint in module.run.__annotations__.items() if key != "return"]
    if isinstance(config_class, str):
        config_class = getattr(module, config_class)
    with pytest.raises(SystemExit) as left:
        main([name, "--help"])
    assert left.value.code == 0
    shown = capsys.readouterr().out
    for item in options_of(config_class):
        assert item.flag in shown


def test_options_reach_the_configuration(capfd: pytest.CaptureFixture[str]) -> None:
    given = run_json(capfd, "here", "--rate", "2", "--sizes", "4", "5", "--no-loud")
    assert given == {"source": "here", "rate": 2.0, "sizes": [4, 5], "loud": False}


def test_text_is_printed_without_json(capfd: pytest.CaptureFixture[str]) -> None:
    assert run_command("toy", run, ["here"]) == 0
    assert capfd.readouterr().out == "source here\n"


def test_flags_override_the_configuration_file(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "toy.yaml"
    # YAML reads 1e-3 as text; it is a number here all the same.
    file.write_text("source: there\nrate: 1e-3\nsizes: [7]\n")
    assert run_json(capfd, "--config", str(file))["source"] == "there"
    given = run_json(capfd, "here", "--config", str(file), "--sizes", "8")
    assert given == {"source": "here", "rate": 0.001, "sizes": [8], "loud": True}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("sauce: x", "the key 'sauce' in {file} is no option of stgs toy"),
        ("rate: fast", "rate in {file} is 'fast', but it must be a finite number."),
        ("[1, 2]", "--config {file} holds no mapping of option names to values."),
        ("a: [", "--config {file} is not YAML"),
    ],
)
def test_wrong_configuration_file_is_refused_by_name(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, content: str, expected: str
) -> None:
    file = tmp_path / "toy.yaml"
    file.write_text(content)
    assert expected.format(file=file) in error_of(capfd, "here", "--config", str(file))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "SOURCE is missing"),
        (["here", "--rat", "2"], "unrecognized arguments: --rat 2"),
        (["here", "--rate", "x"], "--rate is 'x', but it must be a finite number."),
        (["here", "--config", "no/such.yaml"], "--config no/such.yaml cannot be read: No such file or directory."),
    ],
)
def test_wrong_use_is_one_sentence(capfd: pytest.CaptureFixture[str], arguments: list[str], expected: str) -> None:
    error = error_of(capfd, *arguments)
    assert error.startswith("stgs toy: ")
    assert expected in error
    assert error.count("\n") == 1


def test_json_is_alone_on_standard_output(capfd: pytest.CaptureFixture[str]) -> None:
    def noisy(config: ToyConfig) -> Outcome:
        print("printed")
        os.write(1, b"written\n")
        subprocess.run([sys.executable, "-c", "print('child')"], check=True, timeout=SUBPROCESS_S)
        return Outcome({"auc": float("nan"), "eer": [float("inf"), 0.5]}, "text", exit_code=4)

    assert run_command("toy", noisy, ["here", "--json"]) == 4
    captured = capfd.readouterr()
    assert json.loads(captured.out) == {"auc": None, "eer": [None, 0.5]}
    assert captured.out.count("\n") == 1
    assert sorted(captured.err.split()) == ["child", "printed", "written"]


@pytest.mark.parametrize("error", [data_prep.storage.InputError, stgs.config.InputError])
def test_wrong_input_is_one_sentence(capfd: pytest.CaptureFixture[str], error: type[Exception]) -> None:
    def refuse(config: ToyConfig) -> Outcome:
        raise error("the file x is empty; give another.")

    assert run_command("toy", refuse, ["here"]) == 2
    assert capfd.readouterr().err == "stgs toy: the file x is empty; give another.\n"
    assert run_command("toy", refuse, ["here", "--json"]) == 2
    assert json.loads(capfd.readouterr().out) == {"error": "the file x is empty; give another."}


def test_a_reader_that_has_seen_enough_is_no_error(repository: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "jobs.cli", "--help"], cwd=repository, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as overview:
        assert overview.stdout is not None
        assert overview.stderr is not None
        overview.stdout.close()
        assert overview.wait(SUBPROCESS_S) == 0
        assert overview.stderr.read() == b""


@pytest.mark.parametrize("error", [data_prep.storage.UnreachableError, data_prep.storage.NoSpaceError])
def test_what_lies_outside_is_one_sentence_and_a_failure(
    capfd: pytest.CaptureFixture[str], error: type[Exception]
) -> None:
    def cut_off(config: ToyConfig) -> Outcome:
        raise error("the disk of /work is full; free some.")

    assert run_command("toy", cut_off, ["here"]) == 1
    assert capfd.readouterr().err == "stgs toy: the disk of /work is full; free some.\n"


def test_other_errors_show_their_traceback(capfd: pytest.CaptureFixture[str]) -> None:
    def fail(config: ToyConfig) -> Outcome:
        raise KeyError("lost")

    assert run_command("toy", fail, ["here"]) == 1
    error = capfd.readouterr().err
    assert "Traceback" in error
    assert error.endswith("stgs toy: failed: KeyError: 'lost'\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_stop_a_command_as_resumable(capfd: pytest.CaptureFixture[str], number: int) -> None:
    def stopped(config: ToyConfig) -> Outcome:
        signal.raise_signal(number)
        raise AssertionError("the signal was ignored")

    before = signal.getsignal(number)
    assert run_command("toy", stopped, ["here"]) == 3
    assert signal.getsignal(number) is before
    assert "stopped" in capfd.readouterr().err


def test_an_interrupt_says_what_that_means_for_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    def stopped(config: ToyConfig) -> Outcome:
        raise KeyboardInterrupt

    said = {}
    for name in COMMANDS:
        assert run_command(name, stopped, ["here"]) == 3
        said[name] = capsys.readouterr().err
        assert said[name].startswith(f"stgs {name}: ")
    assert {name for name in COMMANDS if "--resume" in said[name]} == {"search", "grid", "baseline"}
    # They begin nothing that could go on.
    for name in ("submit", "jobs", "stop", "status", "doctor"):
        assert "run it again" not in said[name]
    # They begin anew, or keep what is complete.
    for name in ("manifest", "augment", "evaluate", "report", "score", "export", "describe"):
        assert "where it stopped" not in said[name]
    assert said["score"].endswith("lines in a --json-lines file are kept, and the same command goes on after them.\n")
    assert said["results"].endswith("interrupted before all was fetched; run it again.\n")
    assert said["prepare"].endswith("stopped; run it again to go on where it stopped.\n")
