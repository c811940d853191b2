"""Prints P(fake) for new clips of any length with a trained network, and which sense spoke.

A clip is scored window by window, each as long as those of the network's training clips; its score is that of the mean
logit. Everything else is done as it was for the training clips: the settings of faces, sound and backbones stand in the
network's file. A window, or a clip, that training would have refused is refused here, with the reason. Where a part of
a clip cannot be read (it is damaged, or decoding crashes or takes too long), the score is that of the rest, and is
called incomplete. The exit code is 4 if a clip was refused, or its score is incomplete.

What was stopped goes on with the same --json-lines file: clips whose lines stand there are not scored again.

With the other sense silenced (its features at their means over the training clips), visual and audio are what each
sense alone adds to the logit of a clip without either (the baseline), and together is what only both give. The four add
up to the logit; the Shapley value of a sense is its own effect and half of together.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Generator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from typing import Any, Literal

from cluster.chosen import network_of
from cluster.network_files import StoredNetwork
from cluster.scoring import ClipScore, ScoreSettings, prepare_config_of, score_files
from cluster.shards import progress_bar
from data_prep import storage
from data_prep.contact_sheet import draw_rows
from data_prep.manifest import VIDEO_SUFFIXES
from data_prep.storage import InputError
from jobs.cli import PARTLY, Outcome, option, run_command
from jobs.score_lines import STANDARD_OUTPUT, line_of, opened_lines

# Rows of the picture with faces.
_MOST_PICTURES = 48
_EFFECTS = ("visual", "audio", "together")
# Columns of a row of the picture with faces, and the line above it.
_Shown = tuple[dict[str, Any], str]


@dataclass(frozen=True, kw_only=True)
class ScoreJobConfig:
    """Options of `stgs score`."""

    videos: tuple[str, ...] = option(
        help="clips to score, or folders with them, local or s3://", positional=True, metavar="VIDEO"
    )
    run: str | None = option(None, help="run whose found network (best on dev) is used")
    network: str | None = option(None, help="file of the network to use, in place of --run")
    window: Literal["all", "corpus"] = option("all", help="score the whole clip, or the one window that prepare takes")
    hop_s: float | None = option(
        None, help="seconds from the beginning of a window to that of the next (default: the length of a window)"
    )
    json_lines: str | None = option(
        None,
        help="file to write or go on with, one JSON object a line for each clip as it is scored; - for standard output",
    )
    faces: str | None = option(None, help="picture (.jpg) to write, with the faces that the network looked at")
    processes: int | None = option(None, help="processes that prepare clips (default: the cores)")
    threads: int = option(1, help="threads of the backbones in each process; the last bits depend on it")
    device: Literal["auto", "cpu", "cuda"] = option("auto", help="where the backbones run")


def run(config: ScoreJobConfig) -> Outcome:
    """Score the clips."""
    stored = network_of(config.run, config.network)
    prepare_config = prepare_config_of(stored)
    threshold = stored.facts["metrics"]["threshold"]
    names = _files(config.videos)
    settings = ScoreSettings(
        hop_s=_hop_s(config, prepare_config.window_s),
        processes=config.processes,
        threads=config.threads,
        device=config.device,
        pictures=_MOST_PICTURES if config.faces else 0,
    )
    making = {"network_sha256": hashlib.sha256(storage.read(stored.uri)).hexdigest(), "hop_s": settings.hop_s}
    shown: list[_Shown] = []
    with ExitStack() as stack:
        standing, lines = stack.enter_context(opened_lines(config.json_lines, making))
        clips = _in_place(names, standing)
        left = [index for index, clip in enumerate(clips) if clip is None]
        scores = stack.enter_context(closing(_scores(stored, [names[index] for index in left], settings)))
        for index, score in zip(left, scores, strict=True):
            clip = {**score.facts(threshold), "clip": names[index], **making}
            clips[index] = clip
            # Later clips take places from earlier ones.
            shown = [row for row in [*shown, *_pictures(names[index], score)] if row[0]]
            if lines is not None:
                print(line_of(clip), file=lines, flush=True)
    done = [clip for clip in clips if clip is not None]
    resumed = len(names) - len(left)
    payload: dict[str, Any] = {"network": stored.uri, "threshold": threshold, "resumed": resumed, "clips": done}
    text = _text(stored, done)
    if resumed:
        text += f"\n{resumed} of these clips stood in {config.json_lines} and were not scored again."
    if config.faces:
        facts, line = _faces(config.faces, shown, done, prepare_config.face_margin)
        payload |= facts
        text += f"\n{line}"
    exit_code = PARTLY if any("refused" in clip or clip["incomplete"] for clip in done) else 0
    return Outcome(payload, "" if config.json_lines == STANDARD_OUTPUT else text, exit_code)


def _in_place(names: Sequence[str], standing: Sequence[dict[str, Any]]) -> list[dict[str, Any] | None]:
    """For each clip what stands of it, or None; a clip that is given twice has to stand twice."""
    found: dict[str, list[dict[str, Any]]] = {}
    for clip in standing:
        found.setdefault(clip["clip"], []).append(clip)
    return [found[name].pop(0) if found.get(name) else None for name in names]


def _scores(stored: StoredNetwork, names: Sequence[str], settings: ScoreSettings) -> Generator[ClipScore, None, None]:
    if not names:
        return
    with progress_bar("score", 0, "window", True) as bar:

        def progress(done: int, found: int) -> None:
            bar.total = (bar.total or 0) + found
            bar.update(done)

        uris = [storage.absolute(name) for name in names]
        with closing(score_files(stored, uris, settings, progress=progress)) as scores:
            yield from scores


def _faces(
    target: str, shown: Sequence[_Shown], clips: Sequence[Mapping[str, Any]], face_margin: float
) -> tuple[dict[str, Any], str]:
    """Write the picture, if there is something to show; what --json and what the text say of it."""
    left_out = sum(len(_scored_windows(clip)) for clip in clips) - len(shown)
    if not shown:
        facts = {"faces": None, "faces_left_out": left_out}
        return facts, f"faces: {target} was not written, since no window was scored now."
    pictures, captions = zip(*shown, strict=True)
    storage.write(target, draw_rows(pictures, face_margin=face_margin, captions=captions))
    rest = f" ({left_out} more windows are not in it)" if left_out else ""
    return {"faces": target, "faces_left_out": left_out}, f"faces: {target}{rest}"


def _hop_s(config: ScoreJobConfig, window_s: float) -> float | None:
    if config.window == "all":
        return window_s if config.hop_s is None else config.hop_s
    if config.hop_s is not None:
        raise InputError("--hop-s is given, but --window corpus takes one window of a clip; leave one of them out.")
    return None


def _scored_windows(clip: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The windows of a clip's JSON object that were not refused."""
    return [window for window in clip["windows"] if "refused" not in window]


def _files(videos: Sequence[str]) -> list[str]:
    """The clips in the order of the arguments, those of a folder by name. Raises InputError for one without any."""
    if not videos:
        raise InputError("no clip is given; give video files, or folders with them.")
    found: list[str] = []
    for video in videos:
        if not _is_folder(video):
            found.append(video)
            continue
        names = [name for name in storage.list(storage.absolute(video)) if _is_video(name)]
        if not names:
            raise InputError(
                f"{video} is a folder without a video file; give one that holds some ({', '.join(VIDEO_SUFFIXES)})."
            )
        found += [storage.join(video, name) for name in names]
    return found


def _is_folder(video: str) -> bool:
    return not _is_video(video) if "://" in video else os.path.isdir(storage.absolute(video))


def _is_video(name: str) -> bool:
    # macOS leaves a hidden file with the same suffix beside every file.
    return name.lower().endswith(VIDEO_SUFFIXES) and not name.rpartition("/")[2].startswith(".")


def _pictures(name: str, score: ClipScore) -> list[_Shown]:
    """Rows of the picture with faces, and the line above each."""
    rows = []
    for window in score.scored:
        facts, picture = window.facts(), window.window.picture
        if not picture:
            continue
        span = f"{facts['start_s']:.1f} to {facts['end_s']:.1f} s"
        text = f"{_printable(name)}   {span}, P(fake) {facts['p_fake']:.3f}, mean face score {facts['face_score']:.2f}"
        rows.append((picture, text))
    return rows


def _text(stored: StoredNetwork, clips: Sequence[dict[str, Any]]) -> str:
    metrics = stored.facts["metrics"]
    lines = [
        f"network: {stored.uri} ({stored.facts['parameters']:,} parameters, AUC on dev {metrics['dev_auc']:.3f})",
        f"P(fake) of the mean logit of each clip's windows, called fake from {metrics['threshold']:.4f} on:",
    ]
    for clip in clips:
        name = _printable(clip["clip"])
        if "refused" in clip:
            lines.append(f"  refused  {name}: {clip['refused']} ({clip['detail']})")
            continue
        lines.append(f"  {clip['p_fake']:.4f}  {'fake' if clip['fake'] else 'real'}  {name}{_spread(clip)}")
        if clip["incomplete"]:
            lines.append(f"    incomplete: not scored are {clip['incomplete']}")
        if clip["senses"]:
            effects = [f"{name} {clip['senses'][name]:+.2f}" for name in _EFFECTS if name in clip["senses"]]
            lines.append(
                f"    logit {clip['logit']:+.2f} = {clip['senses']['baseline']:+.2f} with neither, {', '.join(effects)}"
            )
    if any("refused" not in clip and not clip["senses"] for clip in clips):
        lines.append(
            "Which sense spoke is left out: an earlier version wrote the network's file, without the means of its "
            "features; train it again."
        )
    return "\n".join(lines)


def _spread(clip: dict[str, Any]) -> str:
    windows, refused = _scored_windows(clip), [window for window in clip["windows"] if "refused" in window]
    if len(windows) + len(refused) < 2:
        return ""
    each = [window["p_fake"] for window in windows]
    text = f"  ({len(windows)} windows, {min(each):.4f} to {max(each):.4f}"
    if refused:
        reasons = ", ".join(sorted({window["refused"] for window in refused}))
        text += f"; refused: {len(refused)}, {reasons}"
    return text + ")"


def _printable(name: str) -> str:
    """A file's name need not be text."""
    return name.encode("utf-8", "replace").decode()


def main(argv: Sequence[str] | None = None) -> int:
    """`stgs score`; returns the exit code."""
    return run_command("score", run, argv)


if __name__ == "__main__":
    sys.exit(main())
