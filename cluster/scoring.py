"""Scoring of clips with a stored network, whose file says how its features were made.

A clip of any length is scored window by window; its logit is the mean of theirs. Decoding, faces and (on a CPU) the
backbones run in several processes, the network here.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, fields
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from cluster.network_files import StoredNetwork
from cluster.network_scores import Floats, NetworkScorer, p_fake
from cluster.scoring_pictures import KeptPictures
from cluster.scoring_pool import Step, windows_of
from cluster.scoring_windows import PreparedWindow, WindowSettings, WindowTask, extracted
from cluster.trained_backbones import is_end_to_end, local_weights
from data_prep.clip import PrepareConfig
from data_prep.decoder import Decoder
from data_prep.rejects import RejectedError, RejectReason
from data_prep.storage import InputError
from data_prep.window_stream import window_count
from stgs.backbones import BackboneConfig, FeatureExtractor, fetch_weights, weights_digest

DEVICES = ("auto", "cpu", "cuda")
# Each of several processes that share a clip decodes the sound of all that lies before its part: parts are long.
_WINDOWS_PER_PART = 20
# On a GPU; on a CPU windows pass the backbones one by one, so that their bits do not depend on their company.
_WINDOWS_PER_BATCH = 16
# Of what a window may lack. Every other reason means that a part of the clip could not be read.
_OF_CONTENT = (RejectReason.SILENT, RejectReason.NO_FACE)
Progress = Callable[[int, int], object]


def backbones_of(stored: StoredNetwork) -> BackboneConfig:
    """The backbones that made a network's features.

    Raises InputError if the file of weights is another one now, or was written by a newer version of this program.
    """
    made = stored.facts["provenance"]
    own = local_weights(stored) if is_end_to_end(stored) else {}
    config: BackboneConfig = _from_facts(BackboneConfig, {**made["backbones"], **own}, stored.uri)
    for sense in ("visual", "audio"):
        weights = getattr(config, f"{sense}_weights")
        if weights_digest(weights) != made["weights"][sense]:
            raise InputError(f"{weights} is another file than the {sense} weights that {stored.uri} was trained with.")
    return config


def prepare_config_of(stored: StoredNetwork) -> PrepareConfig:
    """How the corpus of a network was prepared. Raises InputError if a newer version of this program did it."""
    config: PrepareConfig = _from_facts(PrepareConfig, stored.facts["provenance"]["corpus"], stored.uri)
    return config


def _from_facts(config_class: Any, facts: dict[str, Any], uri: str) -> Any:
    """A setting that the file does not name is newer than it, and its default is how things were."""
    unknown = sorted(set(facts) - {field.name for field in fields(config_class)})
    if unknown:
        raise InputError(
            f"{uri} has {', '.join(unknown)} in its {config_class.__name__}, which this program does not know; use the "
            "version that trained it."
        )
    return config_class(**{name: tuple(value) if isinstance(value, list) else value for name, value in facts.items()})


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoreSettings:
    """How clips are scored.

    hop_s: from the beginning of a window to that of the next; None: the one window that a corpus has of the clip.
    processes: how many prepare windows; None: as many as there are cores. threads: of the backbones in each. device:
    `cpu`, `cuda`, or `auto`. pictures: of so many windows, in all, the faces are kept; a clip that was scored already
    may lose some to a later one. Raises InputError.
    """

    hop_s: float | None
    processes: int | None = None
    threads: int = 1
    device: str = "auto"
    pictures: int = 0

    def __post_init__(self) -> None:
        if self.device not in DEVICES:
            raise InputError(f"device is {self.device!r}; choose from {', '.join(DEVICES)}.")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise InputError("device is 'cuda', but torch finds no CUDA here; give --device cpu.")
        for name in ("processes", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"{name} is {value}, but at least 1 is needed.")


@dataclass(frozen=True, slots=True)
class WindowScore:
    """What was said of one window: its logit, or why it was refused. senses: of `NetworkScorer.sense_effects`."""

    window: PreparedWindow
    logit: float | None
    senses: dict[str, float] = field(default_factory=dict)

    def facts(self) -> dict[str, Any]:
        """JSON types only."""
        made = self.window
        span = {"start_s": made.start_s, "end_s": made.end_s}
        if self.logit is None:
            return span | {"refused": str(made.reason), "detail": made.detail}
        return span | {"p_fake": _p_fake(self.logit), "logit": self.logit, "senses": self.senses or None} | made.face


@dataclass(frozen=True, slots=True)
class ClipScore:
    """What was said of one clip. windows: in order."""

    uri: str
    windows: list[WindowScore]

    @property
    def scored(self) -> list[WindowScore]:
        """The windows that were not refused."""
        return [window for window in self.windows if window.logit is not None]

    def facts(self, threshold: float) -> dict[str, Any]:
        """JSON types only. p_fake, logit, fake, senses: of the mean logit; or refused and detail.

        incomplete: None, or which parts of the clip could not be read, and why. windows: of a clip that cannot be read
        there may be none. seconds: that were spent on it, over all processes.
        """
        windows = [window.facts() for window in self.windows if np.isfinite(window.window.start_s)]
        rest = {"windows": windows, "seconds": sum(window.window.seconds for window in self.windows)}
        logits = [window.logit for window in self.windows if window.logit is not None]
        if not logits:
            return {"clip": self.uri, "refused": str(self._reasons()[0]), "detail": self._detail()} | rest
        logit = float(np.mean(logits))
        senses = {name: float(np.mean([each.senses[name] for each in self.scored])) for name in self.scored[0].senses}
        score = {"p_fake": _p_fake(logit), "logit": logit, "fake": _p_fake(logit) >= threshold, "threshold": threshold}
        return {"clip": self.uri} | score | {"incomplete": self._incomplete(), "senses": senses or None} | rest

    def _incomplete(self) -> str | None:
        unread = [
            f"{made.start_s:.1f} to {made.end_s:.1f} s: {made.reason} ({made.detail})"
            for made in (each.window for each in self.windows)
            if made.reason is not None and made.reason not in _OF_CONTENT
        ]
        return "; ".join(unread) or None

    def _reasons(self) -> list[RejectReason]:
        return [each.window.reason for each in self.windows if each.window.reason is not None]

    def _detail(self) -> str:
        first = self.windows[0].window.detail
        reasons = self._reasons()
        if len(reasons) == 1 or not any(reason in _OF_CONTENT for reason in reasons):
            return first
        counts = ", ".join(f"{reason} {count}" for reason, count in Counter(reasons).items())
        return f"none of its {len(self.windows)} windows can be used ({counts}); the first: {first}"


def _p_fake(logit: float) -> float:
    return float(p_fake(np.array([logit]))[0])


def score_files(
    stored: StoredNetwork, uris: Sequence[str], settings: ScoreSettings, *, progress: Progress | None = None
) -> Generator[ClipScore, None, None]:
    """Score clips, local paths or s3:// URIs, in their order; each comes as soon as it and those before it are done.

    progress: called with the numbers of windows that were done, and that were found to be there (fewer than was said,
    if negative), since the last call.

    Raises InputError, see `backbones_of` and `prepare_config_of`; where the network's corpus was made otherwise than by
    this program's `stgs prepare`; for a hop that leaves too many windows open; for a corpus window that was drawn; for
    a network that gives no finite logit.
    """
    prepare, backbones = prepare_config_of(stored), backbones_of(stored)
    _check_hop(settings.hop_s, prepare)
    device = "cuda" if settings.device != "cpu" and torch.cuda.is_available() else "cpu"
    fetch_weights(backbones)
    making = WindowSettings(
        prepare=prepare,
        backbones=backbones,
        hop_s=settings.hop_s,
        features=device == "cpu",
        threads=settings.threads,
        pictures=settings.pictures > 0,
    )
    told: Progress = progress or (lambda done, found: None)
    processes = settings.processes or len(os.sched_getaffinity(0))
    with ExitStack() as stack:
        decoder = stack.enter_context(Decoder(timeout_s=prepare.clip_timeout))
        tasks = _tasks(uris, making, decoder, processes, told)
        if len(uris) < processes:
            listed = list(tasks)
            processes, tasks = min(processes, len(listed)), iter(listed)
        steps = windows_of(tasks, making, processes)
        if device == "cuda":
            steps = _extracted_together(steps, FeatureExtractor(backbones).to(device))
        yield from _in_order(steps, uris, stored, KeptPictures(settings.pictures), told)


def _check_hop(hop_s: float | None, prepare: PrepareConfig) -> None:
    if hop_s is None:
        if prepare.window != "centre":
            raise InputError(
                "the network's corpus has windows at random places, drawn from the clip_id, which a file does not "
                "tell; give --window all."
            )
        return
    least = prepare.window_s / prepare.num_frames
    if not least <= hop_s < float("inf"):
        raise InputError(f"hop_s is {hop_s:g}; give at least {least:g}, the time between two frames of a window.")


def _tasks(
    uris: Sequence[str], making: WindowSettings, decoder: Decoder, processes: int, told: Progress
) -> Iterator[WindowTask]:
    for clip, uri in enumerate(uris):
        duration_s, count = _duration_s(uri, making, decoder), 1
        if duration_s is not None and making.hop_s is not None:
            count = window_count(duration_s, making.prepare.window_s, making.hop_s)
        told(0, count)
        parts = max(1, min(processes, count // _WINDOWS_PER_PART))
        bounds = [part * count // parts for part in range(parts + 1)]
        for part, (first, end) in enumerate(pairwise(bounds)):
            yield WindowTask(
                clip=clip,
                uri=uri,
                part=part,
                parts=parts,
                first=first,
                count=end - first if part + 1 < parts else None,
                announced=end - first,
                duration_s=duration_s,
            )


def _duration_s(uri: str, making: WindowSettings, decoder: Decoder) -> float | None:
    """If it is needed and can be told at once; who makes the windows tells what is wrong with the clip."""
    if making.hop_s is None or making.prepare.trim_silence or "://" in uri:
        return None
    try:
        return decoder.probe(uri, None).duration_s
    except RejectedError:
        return None


def _extracted_together(steps: Iterator[Step], extractor: FeatureExtractor) -> Iterator[Step]:
    """The same, with features in the place of frames and spectrograms, made of several windows at once."""
    held: list[Step] = []

    def flushed() -> Iterator[Step]:
        windows = [window for _, window in held if window is not None and window.inputs]
        names = ("frames", "spectrogram")
        if windows:
            batch = {name: np.concatenate([window.inputs[name] for window in windows]) for name in names}
            features = extracted(extractor, batch)
            for position, window in enumerate(windows):
                window.inputs.clear()
                window.inputs.update({name: values[position : position + 1] for name, values in features.items()})
        yield from held
        held.clear()

    for step in steps:
        held.append(step)
        if sum(window is not None for _, window in held) >= _WINDOWS_PER_BATCH:
            yield from flushed()
    yield from flushed()


def _in_order(
    steps: Iterator[Step], uris: Sequence[str], stored: StoredNetwork, pictures: KeptPictures, told: Progress
) -> Iterator[ClipScore]:
    """The clips, each once all its parts are done, in their order."""
    scorer = NetworkScorer(stored)
    windows: dict[tuple[int, int], list[WindowScore]] = {}
    missing: dict[int, int] = {}
    following = 0
    for task, window in steps:
        own = windows.setdefault((task.clip, task.part), [])
        missing.setdefault(task.clip, task.parts)
        if window is not None:
            own.append(_scored(window, scorer, f"{stored.uri} gives no finite score for {task.uri}; train it again."))
            if window.picture is not None:
                pictures.add(task.clip, window.start_s, window.picture)
            told(1, int(len(own) > task.announced))
            continue
        told(0, min(0, len(own) - task.announced))
        missing[task.clip] -= 1
        while missing.get(following) == 0:
            parts = sorted(key for key in windows if key[0] == following)
            yield ClipScore(uris[following], [score for key in parts for score in windows.pop(key)])
            following += 1


def _scored(window: PreparedWindow, scorer: NetworkScorer, no_number: str) -> WindowScore:
    """no_number: the sentence of the InputError for a logit that is none."""
    if window.reason is not None:
        return WindowScore(window, None)
    logit = float(scorer.logits(window.inputs)[0])
    effects: Mapping[str, Floats] = scorer.sense_effects(window.inputs) if scorer.tells_senses else {}
    window.inputs.clear()
    senses = {name: float(values[0]) for name, values in effects.items()}
    if not np.isfinite([logit, *senses.values()]).all():
        raise InputError(no_number)
    return WindowScore(window, logit, senses)
