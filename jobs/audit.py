"""The audit of a data set: can fakes be told from real clips without looking at a face or listening to a voice?

Each fact of a clip that says nothing about forgery (how long it is silent, how large its file is, ...) is given to a
classifier that sees nothing else. One that is better than chance is a shortcut: a detector will take it, too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from queue import SimpleQueue
from statistics import NormalDist
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cluster.shards import progress_bar
from data_prep import boxes, storage
from data_prep.boxes import Meta
from data_prep.decoder import Decoder
from data_prep.file_facts import FileFacts
from data_prep.manifest import Row, resolve_path
from data_prep.rejects import RejectedError, RejectReason
from data_prep.storage import InputError
from jobs.audit_classifier import CHANCE, encoded, fact_auc

VERSION = 1
COMPARISONS = {"all": "BCD", "B": "B", "C": "C", "D": "D"}
"""Name of a comparison -> categories of its fakes; the real clips are always A."""
AUGMENTATION = "augmentation"
# Of the intervals of facts that say nothing, about this share lies above 0.5: the classifier learns from nearly all
# clips on which side of 0.5 it ends, so that it is right in both tails of a 95 % interval.
CHANCE_SHARE = 0.05
# With more sizes than these, which differ by single pixels, a picture's size is its area.
_MOST_SIZES = 30
_FEW_SUBJECTS = 20
# Of fewer subjects of a class neither the bootstrap nor the normal distribution says how sure a shortcut is.
_LEAST_SUBJECTS_FOR_SURE = 5
_TWO_SIDED = NormalDist().inv_cdf(0.975)
_READERS = 8
_MOST_DIGITS = 6  # to which `fact_auc` rounds
_REENCODE = "encode all clips alike, or augment their codecs and bit rates ('stgs augment')"
_TRIM = "prepare with --trim-silence"


@dataclass(frozen=True, slots=True)
class Fact:
    """A fact of a clip. name: for people. columns: of the corpus, that it is made of. advice: against a shortcut."""

    name: str
    columns: tuple[str, ...]
    advice: str


FACTS = {
    "leading_silence_s": Fact("leading silence", ("leading_silence_s",), _TRIM),
    "trailing_silence_s": Fact("trailing silence", ("trailing_silence_s",), _TRIM),
    "duration_s": Fact(
        "duration", ("duration_s",), "see that no clip is shorter than the window (--window-s): those are repeated"
    ),
    "loudness_dbfs": Fact(
        "loudness",
        ("loudness_dbfs",),
        "a network does not see it in spectrograms normalised clip by clip, the default; for others, augment the gain "
        "of real and fake clips ('stgs augment')",
    ),
    "bit_rate": Fact("bit rate", ("bit_rate",), _REENCODE),
    "file_bytes": Fact("file size", ("file_bytes",), _REENCODE),
    "fps": Fact("frame rate", ("fps",), "encode all clips at one frame rate, or augment it ('stgs augment')"),
    "resolution": Fact(
        "resolution", ("width", "height"), "encode all clips at one size, or augment the resolution ('stgs augment')"
    ),
    "sample_rate": Fact(
        "sample rate", ("sample_rate",), "resample all sound alike, or augment its band limits ('stgs augment')"
    ),
    "num_faces": Fact(
        "number of faces", ("num_faces",), "look at the contact sheet, and leave out clips that show several people"
    ),
    AUGMENTATION: Fact("augmentation's name", (AUGMENTATION,), "augment real and fake clips alike: no --balance paper"),
}
# Sequences are as long as their clips.
_SEQUENCE_FACTS = FACTS | {
    "duration_s": replace(FACTS["duration_s"], advice="take no more of a clip than the shortest has (--max-seconds)"),
    "loudness_dbfs": replace(FACTS["loudness_dbfs"], advice="a baseline does not see it, in normalised filter banks"),
}
_PROBED = ("duration_s", "bit_rate", "file_bytes", "fps", "resolution", "sample_rate")


def audit_corpus(corpus_uri: str, meta: Meta) -> dict[str, Any]:
    """Audit the clips of a corpus; only its plain columns are read.

    All facts are those of clips without augmentation, but for the augmentation's name. Returns the content of
    audit.json (docs/formats.md): version, digest (of the corpus), clips, subjects, facts, tests, shortcuts, skipped.
    Raises InputError if a part of the corpus is damaged.
    """
    parts = [storage.join(corpus_uri, name) for name in sorted(meta.files) if "/" not in name]
    with ThreadPoolExecutor(_READERS) as pool:
        tables = list(pool.map(_plain_columns, parts))
    table = pa.concat_tables(tables, promote_options="default") if tables else pa.table({})
    clips = table.to_pylist()
    facts: dict[str, list[Any]] = {}
    skipped = {}
    for key, fact in FACTS.items():
        absent = [column for column in fact.columns if clips and column not in table.column_names]
        if absent:
            skipped[key] = "an earlier version made this corpus, without it; prepare the clips again."
        else:
            facts[key] = [_corpus_fact(key, clip) for clip in clips]
    known = _SEQUENCE_FACTS if meta.kind == boxes.SEQUENCES else FACTS
    return {"version": VERSION, "digest": meta.digest, **_audit(clips, facts, skipped, known)}


def _plain_columns(uri: str) -> pa.Table:
    """The columns of a part of a corpus that an audit reads, as far as the part has them."""
    wanted = ["category", "dataset", "subject", *(column for fact in FACTS.values() for column in fact.columns)]
    with storage.reader(uri) as file:
        try:
            there = set(pq.read_schema(file).names)
        except (pa.ArrowInvalid, OSError) as error:
            raise InputError(f"{uri} is damaged ({error}); make its box again.") from None
    return boxes.read_plain_columns(uri, [column for column in wanted if column in there])


def _corpus_fact(key: str, clip: Mapping[str, Any]) -> Any:
    if key == "resolution":
        return _size(clip["width"], clip["height"])
    return clip[FACTS[key].columns[0]]


def _size(width: int | None, height: int | None) -> tuple[int, int] | None:
    return None if width is None or height is None else (width, height)


def audit_manifest(
    rows: Sequence[Row],
    roots: Mapping[str, str],
    *,
    clip_timeout: float = 60.0,
    processes: int = 1,
    progress: bool = True,
) -> dict[str, Any]:
    """Audit the files of a manifest by what their headers say; nothing is decoded.

    rows, roots: of the manifest; augmented clips, which share their parent's file, are audited by their augmentation's
    name alone. clip_timeout: seconds that a file may take. processes: that read files at the same time.

    Returns what `audit_corpus` does, without a digest, and with refused: reason -> files that cannot be read, and
    refused_clips: a list of {clip_id, reason, detail} of them.
    """
    if processes < 1:
        raise InputError(f"processes is {processes}, but at least 1 is needed.")
    originals = [row for row in rows if row["augmentation"] is None]
    found: list[FileFacts | RejectedError] = []
    with progress_bar("audit", len(originals), "file", progress) as bar:
        for answer in _probe_all(originals, roots, clip_timeout, processes):
            found.append(answer)
            bar.update(1)
    by_clip = {
        row["clip_id"]: answer
        for row, answer in zip(originals, found, strict=True)
        if not isinstance(answer, RejectedError)
    }
    clips = [
        row for row in rows if (row["clip_id"] if row["augmentation"] is None else row["parent_clip_id"]) in by_clip
    ]
    files = [by_clip.get(row["clip_id"]) for row in clips]
    facts = {key: [None if file is None else _file_fact(key, file) for file in files] for key in _PROBED}
    facts[AUGMENTATION] = [row["augmentation"] for row in clips]
    skipped = {
        key: "it is not in a file's header; 'stgs prepare' finds it, and audits it."
        for key in FACTS
        if key not in facts
    }
    refused = [
        {"clip_id": row["clip_id"], "reason": str(answer.reason), "detail": answer.detail}
        for row, answer in zip(originals, found, strict=True)
        if isinstance(answer, RejectedError)
    ]
    reasons = Counter(item["reason"] for item in refused)
    audit = _audit(clips, facts, skipped, FACTS)
    return {"version": VERSION, **audit, "refused": dict(sorted(reasons.items())), "refused_clips": refused}


def _file_fact(key: str, file: FileFacts) -> Any:
    return _size(file.width, file.height) if key == "resolution" else getattr(file, key)


def _probe_all(
    rows: Sequence[Row], roots: Mapping[str, str], clip_timeout: float, processes: int
) -> Iterator[FileFacts | RejectedError]:
    """What the header of each clip's file says, or why it cannot be read, in the order of `rows`."""
    idle: SimpleQueue[Decoder] = SimpleQueue()

    def probe(row: Row) -> FileFacts | RejectedError:
        try:
            video = resolve_path(roots, row["video_path"])
            sound = None if row["audio_path"] is None else resolve_path(roots, row["audio_path"])
        except InputError as error:  # a path that leaves its root since the manifest was written, by a symbolic link
            return RejectedError(RejectReason.UNREADABLE, str(error))
        decoder = idle.get()
        try:
            return decoder.probe(video, sound)
        except RejectedError as rejected:
            return rejected
        finally:
            idle.put(decoder)

    with ExitStack() as stack:
        for _ in range(processes):
            idle.put(stack.enter_context(Decoder(timeout_s=clip_timeout)))
        pool = stack.enter_context(ThreadPoolExecutor(processes))
        yield from pool.map(probe, rows)


def _audit(
    clips: Sequence[Mapping[str, Any]], facts: Mapping[str, list[Any]], skipped: dict[str, str], known: dict[str, Fact]
) -> dict[str, Any]:
    """The parts of an audit that corpora and manifests share; facts: key -> value of each clip, None if missing."""
    category = np.array([clip["category"] for clip in clips], dtype=str)
    # Equal names in two data sets are two people.
    subject = np.array([f"{clip['dataset']}/{clip['subject']}" for clip in clips], dtype=str)
    original = np.array([value is None for value in facts.get(AUGMENTATION, [None] * len(clips))], dtype=bool)
    results: dict[str, dict[str, Any]] = {}
    for key, values in facts.items():
        if key in _PROBED:
            # A header that does not declare a fact says 0.
            values = [value or None for value in values]
        numbers, categories = encoded(_sizes(values) if key == "resolution" else values)
        results[key] = {}
        for name, fakes in COMPARISONS.items():
            chosen = np.isin(category, ["A", *fakes])
            if key != AUGMENTATION:
                chosen &= original
            fake = category[chosen] != "A"
            results[key][name] = fact_auc(numbers[chosen], fake, subject[chosen].tolist(), categories=categories)
    # A fact that is the same everywhere cannot be above chance by chance.
    tests = sum(_is_measured(result) and _null_error(result) > 0 for row in results.values() for result in row.values())
    return {
        "clips": len(clips),
        "subjects": len(set(subject)),
        "facts": results,
        "tests": tests,
        "shortcuts": [_shortcut(known[key], results[key], sure) for key, sure in loud_facts(results, tests).items()],
        "skipped": skipped,
    }


def _sizes(sizes: Sequence[tuple[int, int] | None]) -> list[str | float | None]:
    """Sizes of pictures as names, or, if there are very many, as areas."""
    if len(set(sizes)) > _MOST_SIZES:
        return [None if size is None else float(size[0] * size[1]) for size in sizes]
    return [None if size is None else f"{size[0]} x {size[1]}" for size in sizes]


def _is_measured(result: Mapping[str, Any]) -> bool:
    return "auc" in result


def loud_facts(facts: Mapping[str, Mapping[str, Any]], tests: int) -> dict[str, bool]:
    """The facts of an audit of which an interval lies above 0.5, and whether one does for sure, not just by chance.

    Sure is what lies above by the normal distribution when the share of false alarms is divided by the number of tests
    (Bonferroni), by the greater of its two standard errors, and with enough subjects.
    """
    distance = NormalDist().inv_cdf(1 - CHANCE_SHARE / (2 * max(tests, 1)))
    loud = {}
    for key, row in facts.items():
        above = _above(row).values()
        if above:
            loud[key] = any(_is_sure(result, distance) for result in above)
    return loud


def _is_sure(result: Mapping[str, Any], distance: float) -> bool:
    """Whether an AUC is above 0.5 by `distance` standard errors, and both classes have enough subjects."""
    error = max((result["high"] - result["low"]) / (2 * _TWO_SIDED), _null_error(result))
    return bool(
        result.get("least_subjects", 0) >= _LEAST_SUBJECTS_FOR_SURE and result["auc"] - distance * error > CHANCE
    )


def _null_error(result: Mapping[str, Any]) -> float:
    """Of an AUC; audits of another version of this program may lack it."""
    return float(result.get("null_error", 0.0))


def _above(row: Mapping[str, Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    return {name: result for name, result in row.items() if is_above(result)}


def is_above(result: Mapping[str, Any]) -> bool:
    """Whether an interval of an audit lies above 0.5, and its AUC beyond those that a fact without meaning gives.

    The second matters for values that few clips have: where none of these is real, no resample of the bootstrap has a
    real one, and its interval is too narrow.
    """
    if not _is_measured(result):
        return False
    return bool(min(result["low"], result["auc"] - _TWO_SIDED * _null_error(result)) > CHANCE)


def _shortcut(fact: Fact, row: Mapping[str, Mapping[str, Any]], sure: bool) -> str:
    told = ", ".join(f"{comparison_name(name)} (AUC {interval_text(result)})" for name, result in _above(row).items())
    return f"{loud_word(sure)}: the {fact.name} alone tells {told} from real clips; {fact.advice}."


def loud_word(sure: bool) -> str:
    """How the sentence on a shortcut begins."""
    return "SHORTCUT" if sure else "SHORTCUT, perhaps by chance"


def comparison_name(name: str) -> str:
    """The fakes of a comparison, for people."""
    return "all fakes" if name == "all" else name


def fact_name(key: str) -> str:
    """A fact for people; the key itself of one that only another version of this program knows."""
    return FACTS[key].name if key in FACTS else key


def interval_text(result: Mapping[str, Any]) -> str:
    """An AUC with its interval, e.g. 0.993 [0.977, 1.000]; a dash where there is none.

    An interval that lies above 0.5 has as many digits as show it.
    """
    if not _is_measured(result):
        return "-"
    digits = 3
    while digits < _MOST_DIGITS and result["low"] > CHANCE and float(f"{result['low']:.{digits}f}") == CHANCE:
        digits += 1
    return f"{result['auc']:.{digits}f} [{result['low']:.{digits}f}, {result['high']:.{digits}f}]"


def conclusion(audit: Mapping[str, Any]) -> list[str]:
    """Sentences on an audit beside its shortcuts: what was looked at, and what to expect by chance."""
    measured = [key for key, row in audit["facts"].items() if any(map(_is_measured, row.values()))]
    tests, lines = audit["tests"], []
    if not measured:
        lines.append("Nothing could be measured, so nothing is known about shortcuts.")
    elif not audit["shortcuts"]:
        names = ", ".join(map(fact_name, measured))
        lines.append(f"No shortcut was found; looked at: {names}.")
    if tests:
        lines.append(
            f"Of {tests} intervals about {CHANCE_SHARE * tests:.1f} would lie above 0.5 if no fact said anything."
        )
    if measured and audit["subjects"] < _FEW_SUBJECTS:
        lines.append(f"There are only {audit['subjects']} subjects: intervals of so few are rough.")
    return lines


def what_is_missing(audit: Mapping[str, Any]) -> list[str]:
    """Lines on what was not measured or not looked at, and on files that cannot be read."""
    reasons: dict[str, list[str]] = {}
    for key, row in audit["facts"].items():
        missing = {name: result["sentence"] for name, result in row.items() if not _is_measured(result)}
        if len(missing) == len(row) and len(set(missing.values())) == 1:
            missing = {"": missing["all"]}
        for name, sentence in missing.items():
            words = f"{fact_name(key)} of {comparison_name(name)}" if name else fact_name(key)
            reasons.setdefault(f"not measured, because {sentence}", []).append(words)
    for key, reason in audit["skipped"].items():
        reasons.setdefault(f"not looked at, because {reason}", []).append(fact_name(key))
    lines = [f"{_listed(names)}: {reason}" for reason, names in reasons.items()]
    refused = audit.get("refused", {})
    if refused:
        counts = ", ".join(f"{count} {reason}" for reason, count in refused.items())
        lines.append(f"files that cannot be read: {counts}.")
    return lines


def _listed(names: Sequence[str], shown: int = 4) -> str:
    return ", ".join([*names[:shown], f"and {len(names) - shown} more"] if len(names) > shown else names)


def audit_text(audit: Mapping[str, Any]) -> str:
    """A table of an audit, then its shortcuts, each in a line of its own, and what else there is to say."""
    lines = [
        f"audit of {audit['clips']:,} clips of {audit['subjects']:,} subjects: AUC, against real clips, of a "
        "classifier that sees one fact alone (0.5 is chance)"
    ]
    table = [["", *map(comparison_name, COMPARISONS)]]
    for key, row in audit["facts"].items():
        table.append([fact_name(key), *(interval_text(row[name]) for name in COMPARISONS)])
    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    lines += [
        "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table
    ]
    lines += [f"  {line}" for line in what_is_missing(audit)]
    return "\n".join([*lines, *audit["shortcuts"], *conclusion(audit)])
