"""The words of a command as `stgs submit` gives them to another machine: paths, the configuration file, refusals."""

import importlib
import os
import re
import shlex
import typing
from pathlib import Path

import pytest
import yaml

from cluster.runs import open_run
from data_prep.storage import InputError
from jobs.cli import COMMANDS, UsageError
from jobs.options import Option, options_of
from jobs.submit import NOT_SUBMITTED
from jobs.submitted_words import PATHS, SubmittedWords, path_options, read_words

SUBMITTED = [name for name in COMMANDS if name not in NOT_SUBMITTED]
# Options that hold a text which is no path.
NO_PATHS = {
    "address",
    "alternate",
    "audio",
    "dataset",
    "deadline",
    "device",
    "estimators",
    "feature_names",
    "name",
    "names",
    "operations",
}
NO_PATHS |= {"precision", "preset", "sense", "tail", "taps", "temperature_schedule", "test_datasets", "test_methods"}
NO_PATHS |= {"train_datasets", "visual", "workers"}


def words_of(line: str) -> SubmittedWords:
    """What is submitted of a command line."""
    command, *words = shlex.split(line)
    return read_words(command, words)


@pytest.mark.parametrize("command", SUBMITTED)
def test_of_every_text_option_it_is_known_whether_it_is_a_path(command: str) -> None:
    options = all_options(command)
    texts = {item.name for item in options if item.kind is str and item.choices is None}
    assert texts <= {*PATHS, *NO_PATHS}
    assert path_options(options) == texts & set(PATHS)
    assert not path_options(options) & {item.name for item in options if item.choices is not None}


def all_options(command: str) -> list[Option]:
    module = importlib.import_module(f"jobs.{command}")
    return options_of(next(iter(typing.get_type_hints(module.run).values())))


def test_a_word_of_a_list_is_no_path_whatever_its_option_is_called() -> None:
    ready = words_of("prepare s3://b/m --out s3://b/c/ --faces none")
    assert list(ready.words) == ["s3://b/m", "--out", "s3://b/c", "--faces", "none"]
    assert ready.local_paths == ()
    # The same name, where it does hold a path.
    assert words_of("score s3://b/clip.mp4 --faces faces.jpg").words[-1] == os.path.abspath("faces.jpg")


@pytest.mark.parametrize("out", ["s3://b/my run", "s3://b/runs/" + 65 * "r", "runs/größe", "/"])
@pytest.mark.parametrize("command", ["grid", "search"])
def test_a_name_that_no_run_may_have_is_told_before_it_is_submitted(command: str, out: str) -> None:
    with pytest.raises(UsageError, match="a run's name has 1 to 64 letters"):
        read_words(command, ["s3://b/f", "--manifest", "s3://b/m", "--out", out])
    with pytest.raises(InputError, match="a run's name has 1 to 64 letters"):
        open_run(out, {}, resume=False, hints={})


def test_a_run_is_the_same_with_a_slash_at_its_end() -> None:
    ready = words_of("grid s3://b/f/ --manifest s3://b/m --out s3://b/runs/r/")
    assert (ready.run, ready.name) == ("s3://b/runs/r", "r")
    assert list(ready.words) == ["s3://b/f", "--manifest", "s3://b/m", "--out", "s3://b/runs/r"]


def test_a_wrong_key_of_the_configuration_names_its_file(tmp_path: Path) -> None:
    file = tmp_path / "grid.yaml"
    words = ["s3://b/f", "--manifest", "s3://b/m", "--out", "s3://b/r", "--config", str(file)]
    file.write_text("sede: 3\n")
    with pytest.raises(UsageError, match=re.escape(f"the key 'sede' in {file} is no option of stgs grid")):
        read_words("grid", words)
    file.write_text("epochs: many\n")
    with pytest.raises(UsageError, match=re.escape(f"epochs in {file} is 'many'")):
        read_words("grid", words)


def test_the_doctor_can_be_a_job() -> None:
    ready = words_of("doctor --storage s3://b/runs")
    assert (list(ready.words), ready.run, ready.name) == (["--storage", "s3://b/runs"], None, "doctor")
    with pytest.raises(UsageError, match="give --address before it"):
        words_of("doctor --address auto")


def test_local_paths_become_absolute_and_the_configuration_goes_along(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = {"manifest": "m", "learning_rate_max": "1e-3", "dropout": [0.1, 0.2], "feature_names": ["visual.*"]}
    Path("my grid.yaml").write_text(yaml.safe_dump(settings))
    ready = words_of("grid --resume ./f/features --config 'my grid.yaml' --out '../my runs/a'")
    runs = tmp_path.parent / "my runs"
    expected = [str(tmp_path / "f/features"), "--out", str(runs / "a"), "--resume", "--config", "config/my grid.yaml"]
    assert list(ready.words) == expected
    assert ready.config is not None
    assert ready.config[0] == "my grid.yaml"
    assert yaml.safe_load(ready.config[1]) == {**settings, "manifest": str(tmp_path / "m")}
    assert (ready.run, ready.name) == (str(runs / "a"), "a")
    assert set(ready.local_paths) == {str(tmp_path / "f/features"), str(tmp_path / "m"), str(runs / "a")}
    # What is no run may have any name, but not so a job.
    assert words_of("prepare s3://b/m --out 's3://b/a b'").name == "a-b"


def test_words_that_are_no_paths_stay() -> None:
    words = (
        "s3://b/corpus --out s3://b/features --visual-weights random:3 --audio-weights imagenet --taps layer2 pooled"
    )
    ready = words_of(f"extract {words}")
    assert sorted(ready.words) == sorted(words.split())
    assert ready.local_paths == ()
    again = words_of("grid s3://b/f --manifest s3://b/m --out s3://b/r --dropout 0.1 0.2 --no-earlier-cells")
    assert " ".join(again.words).endswith("--out s3://b/r --no-earlier-cells --dropout 0.1 0.2")
    assert (again.run, again.name) == ("s3://b/r", "r")
    assert words_of("train s3://b/r/").name == "r"
    assert words_of("describe s3://b/g.json").run is None


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("grid F --manifest M", "--out is missing"),
        ("grid F --manifest M --out R --sede 3", "unrecognized arguments: --sede 3; see 'stgs grid --help'"),
        ("grid F --manifest M --out R --pack many", "--pack is 'many'"),
        ("grid F --manifest M --out R --config no.yaml", "--config no.yaml cannot be read"),
        ("grid F --manifest M --out R --address x", "give --address before it"),
        ("baseline S --manifest M --model avdf", "out is missing; give --manifest and --out, or the --run"),
        ("grid F --manifest M --out", "expected one argument; see 'stgs grid --help'"),
    ],
)
def test_wrong_use_of_the_command_is_told_before_it_is_submitted(words: str, sentence: str) -> None:
    with pytest.raises(UsageError, match=re.escape(sentence)):
        words_of(words)


def test_takeover_is_passed_to_commands_that_have_it() -> None:
    grid = words_of("grid s3://b/f --manifest s3://b/m --out s3://b/r")
    assert grid.with_takeover().words == (*grid.words, "--takeover")
    assert grid.with_takeover().with_takeover().words == grid.with_takeover().words
    with pytest.raises(UsageError, match="--takeover is for baseline, grid and search"):
        words_of("train s3://b/r").with_takeover()


def test_a_baseline_on_the_splits_of_a_run_has_a_run_of_its_own() -> None:
    ready = words_of("baseline s3://b/s --run s3://b/r/ --model avdf --initial-weights s3://b/w.pt")
    assert (ready.run, ready.name, ready.takes_over) == ("s3://b/r/baselines/avdf", "avdf", True)
    assert words_of("baseline s3://b/s --run s3://b/r --model avdf --name small").run == "s3://b/r/baselines/small"
    assert words_of("baseline s3://b/s --manifest s3://b/m --model avdf --out s3://b/o").run == "s3://b/o"


def test_a_dry_run_minds_no_other_driver() -> None:
    assert not words_of("grid s3://b/f --manifest s3://b/m --out s3://b/r --dry-run").takes_over
