"""What the commands for searches say of a baseline's run, and of its network: one sentence."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest
import safetensors.torch
import torch

from cluster import devices
from cluster.runs import open_run
from data_prep.storage import InputError
from jobs import evaluate, export, grid, score, search, train
from jobs.cli import WRONG_USE
from tests.cluster.planted_baselines import plant_baseline
from tests.cluster.undriven import drive_without_ray
from tests.planted import make_features

COMMANDS = {
    command.__name__.removeprefix("jobs."): command for command in (evaluate, export, grid, score, search, train)
}
READING = {
    "train": ["BASELINE"],
    "evaluate": ["BASELINE"],
    "score": ["clip.mp4", "--run", "BASELINE"],
    "export": ["--run", "BASELINE", "--onnx", "file.onnx"],
}
NETWORKS = {
    "evaluate": ["--network", "NETWORK", "--features", "features", "--manifest", "manifest"],
    "score": ["clip.mp4", "--network", "NETWORK"],
    "export": ["--network", "NETWORK", "--onnx", "file.onnx"],
}


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    return make_features(tmp_path_factory.mktemp("planted"))


def told(capsys: pytest.CaptureFixture[str], command: str, arguments: list[str]) -> str:
    """What a command says that refuses its arguments."""
    assert COMMANDS[command].main(arguments) == WRONG_USE
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error.removeprefix(f"stgs {command}: ").removesuffix("\n")


@pytest.mark.parametrize("command", READING)
@pytest.mark.parametrize("parts", [(), ("fold-0", "fold-1")])
def test_a_baseline_has_no_networks_of_a_search(
    command: str, parts: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = plant_baseline(str(tmp_path / "baseline"), parts=parts)
    arguments = [run if word == "BASELINE" else word for word in READING[command]]
    assert told(capsys, command, arguments) == (
        f"{run} is the run of a baseline, which 'stgs baseline' trains and tests; give the run of a search, or see "
        "'stgs report'."
    )


@pytest.mark.parametrize("command", NETWORKS)
def test_the_network_of_a_baseline_is_called_so(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "network.safetensors"
    facts = {"version": 1, "kind": "baseline", "model": "mrdf_ce", "part": "all", "config": {"layers": 0}}
    file.write_bytes(safetensors.torch.save({"weight": torch.zeros(2)}, {"stgs": json.dumps(facts)}))
    arguments = [str(file) if word == "NETWORK" else word for word in NETWORKS[command]]
    assert told(capsys, command, arguments) == (
        f"{file} is the network of a baseline, which only 'stgs baseline' uses; give one that 'stgs train' wrote."
    )


@pytest.mark.parametrize("command", ["grid", "search"])
@pytest.mark.parametrize("options", [[], ["--resume"], ["--resume", "--protocol", "folds"]])
def test_no_search_is_begun_in_the_place_of_a_baseline(
    command: str,
    options: list[str],
    features: tuple[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    drive_without_ray(monkeypatch)
    monkeypatch.setattr(COMMANDS[command], "connect", lambda **_: contextlib.nullcontext())
    monkeypatch.setattr(devices, "_most", lambda resource, size: 2)
    run = plant_baseline(str(tmp_path / "baseline"), parts=("fold-0",) if "--protocol" in options else ())
    arguments = [features[0], "--manifest", features[1], "--out", run, "--device", "cpu", *options]
    expected = f"{run} is the run of a baseline, which 'stgs baseline' trains and tests; give another --out."
    assert told(capsys, command, arguments) == expected


def test_no_baseline_is_begun_in_the_place_of_a_search(tmp_path: Path) -> None:
    run = open_run(str(tmp_path / "search"), {"settings": {}}, resume=False, hints={})
    with pytest.raises(InputError, match=r"search is no run of a baseline; give another --name\."):
        open_run(run, {"kind": "baseline"}, resume=True, hints={}, place="--name")


def test_what_is_no_run_is_told_with_the_commands_that_make_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert told(capsys, "train", [str(tmp_path)]).endswith("; give the --out of 'stgs grid'.")
