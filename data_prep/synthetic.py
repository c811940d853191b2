"""The demo corpus: small talking-face clips, real and forged, drawn and synthesised from a seed.

Each subject has a drawn face (synthetic_faces.py) and a synthesised voice (synthetic_voices.py) and gives one clip of
each category, each another take with its own words and head movement (synthetic_takes.py):

    A  its face, its mouth in step with its voice
    B  the same, but the sound is another subject's voice saying the same words in step, through a vocoder: only heard
    C  its voice, but the inner face, mouth included, was remade at a low resolution and blended in: from another take
       of its own (reenactment) or from another subject (face-swap), out of step with the sound in both: only seen
    D  both

So a detector with one sense alone ranks at best 5/6 of the pairs of a fake and a real clip correctly (the category it
cannot tell from A counts half), and one with both can rank all. Both forgeries leave what real ones leave (`forge`,
`vocode`), not a mark, and most leave it plainly: features of untrained networks and a few hundred clips must do. One
in twelve is made so well that it hardly shows, so that nobody is always right.

Nothing else tells the categories apart: every clip goes through the same gate, limiter and encoders. Codecs themselves
leak; synthetic_encoding.py says what is done about that. tests/bench/probe_synthetic.py measures all this.

The same seed gives the same bytes, subject by subject (with the same PyAV and the same kind of processor).
"""

import json
import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass

import numpy as np
from PIL import Image

from data_prep import storage, synthetic_encoding, synthetic_faces, synthetic_takes, synthetic_voices
from data_prep.manifest import CATEGORY_FOLDERS, Row, label_of
from data_prep.storage import InputError

DATASET = "demo"
CLIPS_FOLDER = "clips"
CONFIG_NAME = "corpus.json"

# What a random stream is for: every stream is numpy's default_rng([seed, subject, purpose, take]).
_FACE, _VOICE, _GRAIN, _TAKE, _FORGERY, _SOUND = range(6)
_SPLIT = 10**6  # in the subject's place: the streams that concern the corpus as a whole


@dataclass(frozen=True, kw_only=True, slots=True)
class SyntheticConfig:
    """What the corpus is made of. Two corpora of one config are equal byte by byte."""

    num_subjects: int = 104
    test_subjects: int = 24
    dev_subjects: int = 24
    seed: int = 0
    duration_s: float = 3.0
    fps: int = 25
    visual_strength: float = 0.6
    """How strongly forged faces give themselves away, 0 to 2; at 0 only by being out of step with the sound."""
    audio_strength: float = 1.0
    """How strongly the vocoder does, 0 to 1; at 0 a fake sound is another subject's natural voice."""
    video_bit_rate: int = 300_000
    """Mean over clips, bits per second; each clip has its own, within 4 %."""
    audio_bit_rate: int = 32_000
    """Likewise."""

    def __post_init__(self) -> None:
        train = self.num_subjects - self.test_subjects - self.dev_subjects
        for name, count in (("train", train), ("dev", self.dev_subjects), ("test", self.test_subjects)):
            if count < 2 and not (count == 0 and name != "train"):
                raise InputError(
                    f"num_subjects {self.num_subjects} leaves {count} {name} subjects; a split needs two or more,"
                    " because a fake borrows from another subject of its split."
                )
        if self.num_subjects > _SPLIT:
            raise InputError(f"num_subjects is {self.num_subjects}; {_SPLIT} is the most.")
        if not 1.0 <= self.duration_s <= 60.0:
            raise InputError(f"duration_s is {self.duration_s}; choose 1 to 60 seconds.")
        if not 0.0 <= self.audio_strength <= 1.0:
            raise InputError(f"audio_strength is {self.audio_strength}; choose 0 to 1.")
        if not 0.0 <= self.visual_strength <= 2.0:
            raise InputError(f"visual_strength is {self.visual_strength}; choose 0 to 2.")
        if self.seed < 0:
            raise InputError(f"seed is {self.seed}; choose 0 or more.")


@dataclass(frozen=True, slots=True)
class _Plan:
    """One subject's part in the corpus."""

    subject: int
    target: int
    split: str
    swaps: str
    """In which of the categories C and D the face is the target's ("C" or "D"); in the other it is its own."""


def make_corpus(
    root: str,
    config: SyntheticConfig,
    *,
    num_processes: int = 2,
    progress: Callable[[int, int], None] | None = None,
) -> list[Row]:
    """Writes the corpus below `root` (a local folder or s3:// URI) and returns its manifest's rows, by clip_id.

    The clips are `<root>/clips/<category folder>/<subject>/<take>.mp4`; the rows' paths begin with the root name
    "demo", see `roots`. Files of an earlier, unfinished run with the same config are kept. `progress` is called with
    (clips that stand, clips in all). More than one process: they are spawned, so a script that calls this needs
    the usual `if __name__ == "__main__"`.

    Raises InputError if `root` holds a corpus of another config.
    """
    _claim(root, config)
    plans = _plans(config)
    done, total = 0, len(plans) * len(CATEGORY_FOLDERS)
    for made in _make_all(root, config, plans, num_processes):
        done += made
        if progress:
            progress(done, total)
    return sorted((row for plan in plans for row in _rows(plan)), key=lambda row: str(row["clip_id"]))


def roots(root: str) -> dict[str, str]:
    """Where the paths of the manifest's rows begin, for a corpus made at `root`."""
    return {DATASET: storage.join(storage.absolute(root), CLIPS_FOLDER)}


def _claim(root: str, config: SyntheticConfig) -> None:
    """Says in `root` which corpus it holds."""
    uri = storage.join(root, CONFIG_NAME)
    wanted = asdict(config)
    if not storage.exists(uri):
        storage.write(uri, (json.dumps(wanted, indent=1) + "\n").encode())
        return
    standing = json.loads(storage.read(uri))
    if standing != wanted:
        names = sorted(name for name in {*standing, *wanted} if standing.get(name) != wanted.get(name))
        raise InputError(
            f"{root} holds a demo corpus with {_settings(standing, names)}, not {_settings(wanted, names)};"
            " choose another folder."
        )


def _settings(config: dict[str, object], names: list[str]) -> str:
    return ", ".join(f"{name} {config.get(name)}" for name in names)


def _plans(config: SyntheticConfig) -> list[_Plan]:
    """Each subject's split and its target, who is of the same split."""
    rng = np.random.default_rng([config.seed, _SPLIT])
    order = [int(subject) for subject in rng.permutation(config.num_subjects)]
    tested, tuned = config.test_subjects, config.test_subjects + config.dev_subjects
    plans = []
    for split, group in (("test", order[:tested]), ("dev", order[tested:tuned]), ("train", order[tuned:])):
        for position, subject in enumerate(group):
            # Each is the target of one other; half of a split has its face swapped in C, the other half in D.
            target = group[(position + 1) % len(group)]
            plans.append(_Plan(subject, target, split, "CD"[position % 2]))
    return sorted(plans, key=lambda plan: plan.subject)


def _make_all(root: str, config: SyntheticConfig, plans: list[_Plan], num_processes: int) -> Iterator[int]:
    """Makes the clips, subject by subject; yields how many more stand."""
    if num_processes == 1:
        yield from (_make_subject(root, config, plan) for plan in plans)
        return
    # Spawned, not forked: the caller may run threads (torch, Ray) that a fork would not survive.
    with ProcessPoolExecutor(num_processes, mp_context=multiprocessing.get_context("spawn")) as pool:
        count = len(plans)
        yield from pool.map(_make_subject, [root] * count, [config] * count, plans)


def _clip_name(plan: _Plan, folder: str) -> str:
    """clip_id, and the clip's path without its suffix: each category is another take."""
    take = list(CATEGORY_FOLDERS).index(folder)
    return f"{folder}/{_name(plan.subject)}/take-{take}"


def _name(subject: int) -> str:
    return f"subject-{subject:03d}"


def _rows(plan: _Plan) -> Iterator[Row]:
    for folder, category in CATEGORY_FOLDERS.items():
        clip = _clip_name(plan, folder)
        methods = []
        if category in "CD":
            methods.append("face-swap" if category == plan.swaps else "reenactment")
        if category in "BD":
            methods.append("vocoder")
        borrows = category in "BD" or category == plan.swaps
        yield {
            "clip_id": clip,
            "video_path": f"{DATASET}/{clip}.mp4",
            "audio_path": None,
            "label": label_of(category),
            "category": category,
            "dataset": DATASET,
            "subject": _name(plan.subject),
            "target": _name(plan.target) if borrows else None,
            "method": "-".join(methods) or "real",
            "race": None,
            "gender": None,
            "split": plan.split,
            "fold": None,
            "augmentation": None,
            "parent_clip_id": None,
        }


def _make_subject(root: str, config: SyntheticConfig, plan: _Plan) -> int:
    """Makes those of a subject's clips that do not stand; returns how many it has."""
    paths = {
        category: storage.join(root, CLIPS_FOLDER, f"{_clip_name(plan, folder)}.mp4")
        for folder, category in CATEGORY_FOLDERS.items()
    }
    missing = [category for category, path in paths.items() if not storage.exists(path)]
    if missing:
        studio = _Studio(config, plan)
        for category in missing:
            storage.write(paths[category], studio.clip(category))
    return len(paths)


def _carelessness(rng: np.random.Generator) -> float:
    """How strongly one forgery gives itself away, at most 1: one in twelve is made so well that it hardly does."""
    return rng.uniform(0.0, 0.2) if rng.random() < 1 / 12 else rng.uniform(0.8, 1.0)


class _Studio:
    """A subject, drawn and ready to give takes."""

    def __init__(self, config: SyntheticConfig, plan: _Plan) -> None:
        self._config, self._plan = config, plan
        self._layers = self._draw_face(plan.subject)
        self._target_layers = self._draw_face(plan.target)
        self._voice = synthetic_voices.draw_voice(self._rng(plan.subject, _VOICE))
        self._target_voice = synthetic_voices.draw_voice(self._rng(plan.target, _VOICE))
        self._grain = synthetic_takes.draw_grain(self._rng(plan.subject, _GRAIN))

    def _rng(self, subject: int, purpose: int, take: int = 0) -> np.random.Generator:
        return np.random.default_rng([self._config.seed, subject, purpose, take])

    def _draw_face(self, subject: int) -> synthetic_faces.Layers:
        return synthetic_faces.draw_layers(synthetic_faces.draw_traits(self._rng(subject, _FACE)))

    def clip(self, category: str) -> bytes:
        """The mp4 file of a category's take."""
        take = "ABCD".index(category)
        rng = self._rng(self._plan.subject, _TAKE, take)
        words = synthetic_voices.draw_utterance(rng, self._config.duration_s)
        frames = self._film(category, take, words, rng)
        levels = self._draw_levels(rng)
        sound = self._record(category, words, self._rng(self._plan.subject, _SOUND, take))
        return synthetic_encoding.encode(frames, sound, levels, fps=self._config.fps)

    def _draw_levels(self, rng: np.random.Generator) -> synthetic_encoding.Levels:
        """A narrow range of each, the same for all categories: wide enough to hide what a codec cannot hit exactly."""
        return synthetic_encoding.Levels(
            rms=10 ** (rng.uniform(-26.5, -25.5) / 20),
            crest=rng.uniform(3.4, 4.6),
            audio_bit_rate=self._config.audio_bit_rate * rng.uniform(0.96, 1.04),
            video_bit_rate=self._config.video_bit_rate * rng.uniform(0.96, 1.04),
        )

    def _film(
        self, category: str, take: int, words: synthetic_voices.Utterance, rng: np.random.Generator
    ) -> list[Image.Image]:
        num_frames = round(self._config.duration_s * self._config.fps)
        motion = synthetic_takes.draw_motion(rng, num_frames, self._config.fps)
        played = self._play(self._layers, words, rng)
        if category in "CD":
            forgery = self._rng(self._plan.subject, _FORGERY, take)
            other_words = synthetic_voices.draw_utterance(forgery, self._config.duration_s)
            donor = self._play(
                self._target_layers if category == self._plan.swaps else self._layers, other_words, forgery
            )
            strength = self._config.visual_strength * _carelessness(forgery)
            faces = synthetic_takes.forge(played, donor, forgery, strength=strength)
        else:
            faces = played.distinct[played.shown]
        return synthetic_takes.render(self._layers, motion, faces, self._grain, rng)

    def _play(
        self, layers: synthetic_faces.Layers, words: synthetic_voices.Utterance, rng: np.random.Generator
    ) -> synthetic_takes.InnerFaces:
        """A face that says these words and blinks now and then."""
        num_frames = round(self._config.duration_s * self._config.fps)
        times = np.arange(num_frames) / self._config.fps
        lids = synthetic_takes.draw_lids(rng, num_frames, self._config.fps)
        return synthetic_takes.inner_faces(layers, words.openness(times), words.spread(times), lids)

    def _record(self, category: str, words: synthetic_voices.Utterance, rng: np.random.Generator) -> np.ndarray:
        """The take's sound, in its room, before levels are set: float64 [samples]."""
        if category in "BD":
            wave = synthetic_voices.speak(self._target_voice, words, rng)
            strength = self._config.audio_strength
            wave = synthetic_voices.vocode(wave, rng, strength=strength * _carelessness(rng))
        else:
            wave = synthetic_voices.speak(self._voice, words, rng)
        return synthetic_voices.gate(wave, self._voice, words, rng)
