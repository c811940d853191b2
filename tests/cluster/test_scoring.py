"""Scoring of files: the corpus window repeats the evaluation, and a clip of any length is the mean of its windows."""

from __future__ import annotations

import copy
import multiprocessing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cluster import scoring, scoring_pool
from cluster.evaluation import score_clips
from cluster.features import Split
from cluster.network_files import StoredNetwork, read_network
from cluster.scoring import ClipScore, ScoreSettings, score_files
from cluster.scoring_pool import ProcessDiedError
from cluster.scoring_windows import WindowMaker, WindowTask
from data_prep.clip import ClipPreparer, PrepareConfig
from data_prep.rejects import RejectedError, RejectReason
from data_prep.storage import InputError
from stgs.backbones import FeatureExtractor
from tests.cluster.clip_files import CONFIG, write_clip
from tests.scored_network import BACKBONES, THRESHOLD, write_scored_network


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Three clips: of 1.2 s, of 4.3 s without sound after 2.5 s, and of 0.6 s."""
    folder = tmp_path_factory.mktemp("clips")
    write_clip(folder / "b.mp4", 0)
    write_clip(folder / "a.mp4", 1, seconds=4.3, silent_after=2.5)
    write_clip(folder / "c.mp4", 2, seconds=0.6)
    return [str(folder / f"{name}.mp4") for name in "bac"]


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> StoredNetwork:
    return read_network(write_scored_network(tmp_path_factory.mktemp("network") / "both.safetensors"))


def scored(stored: StoredNetwork, files: list[str], **changes: Any) -> list[ClipScore]:
    settings = ScoreSettings(**{"hop_s": 1.0, "processes": 1, "device": "cpu", **changes})
    return list(score_files(stored, files, settings))


def test_the_corpus_window_has_the_bits_of_the_evaluation(stored: StoredNetwork, files: list[str]) -> None:
    columns: dict[str, list[np.ndarray]] = {name: [] for name in BACKBONES.features}
    extractor = FeatureExtractor(BACKBONES)
    labels = dict.fromkeys(("label", "category", "dataset", "subject", "target", "method", "augmentation"))
    with ClipPreparer(CONFIG) as preparer:
        for file in files:
            path = {"clip_id": file, "video_path": f"root/{Path(file).name}", "audio_path": None}
            row = preparer(path | labels, {"root": str(Path(file).parent)})
            assert isinstance(row, dict)
            for name, value in extractor(*(_tensor(row[key]) for key in ("frames", "spectrogram"))).items():
                columns[name].append(value[0].numpy())
    split = Split({name: np.stack(values) for name, values in columns.items()}, np.zeros(3, np.int8), {})
    expected = score_clips(stored, split)
    facts = [clip.facts(THRESHOLD) for clip in scored(stored, files, hop_s=None)]
    assert [clip["p_fake"] for clip in facts] == expected.tolist()
    assert [window["start_s"] for window in facts[1]["windows"]] == pytest.approx([1.65], abs=0.05)


def _tensor(array: np.ndarray) -> Any:
    return torch.from_numpy(array[None])


def test_a_clip_is_the_mean_logit_of_its_windows_and_silent_ones_are_refused(
    stored: StoredNetwork, files: list[str]
) -> None:
    first, clip, short = (each.facts(THRESHOLD) for each in scored(stored, files))
    assert [window["start_s"] for window in clip["windows"]] == pytest.approx([0, 1, 2, 3, 3.3], abs=0.06)
    assert [window.get("refused") for window in clip["windows"]] == [None, None, None, "silent", "silent"]
    heard = clip["windows"][:3]
    assert clip["logit"] == pytest.approx(np.mean([window["logit"] for window in heard]), abs=1e-15)
    assert clip["p_fake"] == pytest.approx(1 / (1 + np.exp(-clip["logit"])), abs=1e-15)
    assert clip["fake"] == (clip["p_fake"] >= THRESHOLD)
    for facts in (clip, *heard):
        parts = sum(facts["senses"][name] for name in ("baseline", "visual", "audio", "together"))
        assert parts == pytest.approx(facts["logit"], abs=1e-6)
    assert len(first["windows"]) == 2
    assert [window["end_s"] for window in short["windows"]] == pytest.approx([0.6], abs=0.06)
    assert clip["seconds"] > 0


def test_what_cannot_be_scored_is_refused_with_its_reason(
    stored: StoredNetwork, files: list[str], tmp_path: Path
) -> None:
    write_clip(tmp_path / "mute.mp4", 3, sound=False)
    write_clip(tmp_path / "silent.mp4", 4, seconds=3.0, silent_after=0.0)
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(Path(files[0]).read_bytes()[:2000])
    names = [str(tmp_path / name) for name in ("mute.mp4", "none.mp4", "broken.mp4", "silent.mp4")]
    facts = [clip.facts(THRESHOLD) for clip in scored(stored, [*names, files[0]])]
    assert [clip.get("refused") for clip in facts] == ["no_audio", "missing", "unreadable", "silent", None]
    assert [len(clip["windows"]) for clip in facts] == [0, 0, 0, 3, 2]
    assert facts[3]["detail"].startswith("none of its 3 windows can be used (silent 3); the first: the level is")
    assert facts[1]["detail"] == "the file does not exist"


@pytest.mark.timeout(60)
def test_processes_change_neither_order_nor_bits(
    stored: StoredNetwork, files: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "_WINDOWS_PER_PART", 2)
    told: list[tuple[int, int]] = []
    settings = ScoreSettings(hop_s=0.5, processes=2, device="cpu", pictures=4)
    shared = list(
        score_files(stored, [files[1], "none.mp4", *files], settings, progress=lambda *news: told.append(news))
    )
    alone = scored(stored, [files[1], "none.mp4", *files], hop_s=0.5)
    assert [clip.uri for clip in shared] == [files[1], "none.mp4", *files]
    assert [_told(clip) for clip in shared] == [_told(clip) for clip in alone]
    assert sum(done for done, _ in told) == sum(len(clip.windows) for clip in shared)
    assert sum(found for _, found in told) == sum(len(clip.windows) for clip in shared)
    pictures = [sum(bool(window.window.picture) for window in clip.windows) for clip in shared]
    # Five clips, of which one has no file.
    assert pictures == [1, 0, 1, 1, 1]


class HalfRead:
    """Stands for `ClipPreparer.windows`: from the window `lost_from` on, nothing can be read."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, lost_from: int) -> None:
        real, alone = ClipPreparer.windows, scoring.windows_of

        def windows(self: ClipPreparer, uri: str, *, first: int, **rest: Any) -> Any:
            if first >= lost_from:
                raise RejectedError(RejectReason.TIMEOUT, "decoding took over 60 s")
            return real(self, uri, first=first, **rest)

        monkeypatch.setattr(scoring, "_WINDOWS_PER_PART", 2)
        monkeypatch.setattr(ClipPreparer, "windows", windows)
        monkeypatch.setattr(scoring, "windows_of", lambda tasks, making, processes: alone(tasks, making, 1))


def test_a_part_that_cannot_be_read_is_not_left_out_silently(
    stored: StoredNetwork, files: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (whole,) = scored(stored, [files[1]])
    HalfRead(monkeypatch, lost_from=1)
    told: list[tuple[int, int]] = []
    settings = ScoreSettings(hop_s=1.0, processes=2, device="cpu")
    (clip,) = score_files(stored, [files[1]], settings, progress=lambda *news: told.append(news))
    facts = clip.facts(THRESHOLD)
    # Five windows are two parts, of two windows and of three.
    assert facts["windows"][:2] == whole.facts(THRESHOLD)["windows"][:2]
    lost = facts["windows"][2]
    assert (lost["start_s"], lost["end_s"], lost["refused"]) == (2.0, pytest.approx(4.3, abs=0.06), "timeout")
    assert facts["incomplete"] == f"2.0 to {lost['end_s']:.1f} s: timeout (decoding took over 60 s)"
    assert facts["logit"] == pytest.approx(np.mean([window["logit"] for window in facts["windows"][:2]]), abs=1e-15)
    assert whole.facts(THRESHOLD)["incomplete"] is None
    assert [sum(column) for column in zip(*told, strict=True)] == [3, 3]


def test_a_clip_of_which_no_part_can_be_read_is_refused_for_that(
    stored: StoredNetwork, files: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    HalfRead(monkeypatch, lost_from=0)
    (clip,) = (each.facts(THRESHOLD) for each in scored(stored, [files[1]], processes=2))
    assert (clip["refused"], clip["detail"]) == ("timeout", "decoding took over 60 s")
    assert [window["start_s"] for window in clip["windows"]] == [0.0, 2.0]


def test_windows_that_no_one_could_foresee_are_announced_as_they_come(stored: StoredNetwork, files: list[str]) -> None:
    corpus = stored.facts["provenance"]["corpus"] | {"trim_silence": True}
    made = stored.facts | {"provenance": stored.facts["provenance"] | {"corpus": corpus}}
    trimming = StoredNetwork(stored.uri, stored.network, made, stored.neutral)
    done = found = 0

    def progress(newly_done: int, newly_found: int) -> None:
        nonlocal done, found
        done, found = done + newly_done, found + newly_found
        assert done <= found

    settings = ScoreSettings(hop_s=0.5, processes=1, device="cpu")
    (clip,) = score_files(trimming, [files[1]], settings, progress=progress)
    assert done == found == len(clip.windows) > 1


def test_a_network_without_a_finite_score_is_refused(stored: StoredNetwork, files: list[str]) -> None:
    network = copy.deepcopy(stored.network)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.fill_(float("nan"))
    broken = StoredNetwork(stored.uri, network, stored.facts, stored.neutral)
    with pytest.raises(InputError, match=r"safetensors gives no finite score for .*c\.mp4; train it again"):
        scored(broken, files[2:])


class Stubborn:
    """A process that outlives SIGTERM."""

    exitcode: int | None = None
    closed = False

    def terminate(self) -> None:
        pass

    def join(self, timeout: float | None = None) -> None:
        assert timeout is not None or self.exitcode is not None

    def kill(self) -> None:
        self.exitcode = -9

    def close(self) -> None:
        if self.exitcode is None:
            raise ValueError("still running")
        self.closed = True


def test_a_process_that_outlives_its_end_is_killed() -> None:
    worker = scoring_pool._Worker.__new__(scoring_pool._Worker)
    process = Stubborn()
    ours, theirs = multiprocessing.Pipe()
    worker.process, worker.connection = process, ours  # type: ignore[assignment]
    theirs.close()
    worker.end()
    assert process.closed
    assert ours.closed


def _told(clip: ClipScore) -> dict[str, Any]:
    return {name: value for name, value in clip.facts(THRESHOLD).items() if name != "seconds"}


def test_a_process_that_dies_is_told_in_a_sentence(
    stored: StoredNetwork, files: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def dying(connection: Any, settings: Any) -> None:
        raise SystemExit(7)

    context = scoring_pool.multiprocessing.get_context("fork")
    monkeypatch.setattr(scoring_pool.multiprocessing, "get_context", lambda method: context)
    monkeypatch.setattr(scoring_pool, "_work", dying)
    with pytest.raises(ProcessDiedError, match="ended with exit code 7; if the machine ran out of memory"):
        scored(stored, files, processes=2)


def test_settings_that_fit_no_clip_are_refused(stored: StoredNetwork, files: list[str]) -> None:
    with pytest.raises(InputError, match=r"hop_s is 0\.1; give at least 0\.125"):
        scored(stored, files, hop_s=0.1)
    with pytest.raises(InputError, match="processes is 0, but at least 1"):
        scored(stored, files, processes=0)
    random = stored.facts["provenance"] | {"corpus": {"window": "random"}}
    drawn = StoredNetwork(stored.uri, stored.network, stored.facts | {"provenance": random}, stored.neutral)
    with pytest.raises(InputError, match="windows at random places"):
        scored(drawn, files, hop_s=None)
    newer = stored.facts["provenance"] | {"corpus": {"colour": "red"}}
    drawn = StoredNetwork(stored.uri, stored.network, stored.facts | {"provenance": newer}, stored.neutral)
    with pytest.raises(InputError, match="has colour in its PrepareConfig, which this program does not know"):
        scored(drawn, files)


def test_windows_are_made_as_prepare_makes_clips(files: list[str]) -> None:
    """A window without its extraction is the row that a clip of that window would be."""
    settings = scoring.WindowSettings(prepare=CONFIG, backbones=BACKBONES, hop_s=1.0, features=False, threads=1)
    maker = WindowMaker(settings)
    made = list(maker(WindowTask(clip=0, uri=files[0])))
    maker.close()
    assert [window.inputs["frames"].shape for window in made] == [(1, 8, 3, 32, 32)] * 2
    with ClipPreparer(PrepareConfig(**{**_fields(CONFIG), "window_s": 1.0})) as preparer:
        rows = list(preparer.windows(files[0], hop_s=1.0))
    for window, row in zip(made, rows, strict=True):
        assert isinstance(row, dict)
        np.testing.assert_array_equal(window.inputs["spectrogram"][0], row["spectrogram"])
        assert (window.start_s, window.end_s) == (row["window_start_s"], row["window_end_s"])


def _fields(config: PrepareConfig) -> dict[str, Any]:
    from dataclasses import asdict

    return asdict(config)
