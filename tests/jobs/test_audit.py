"""The audit: what it finds in facts whose relation to the labels is known, and what it says of it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from cluster.audits import corpus_audit, keep_audit, read_audit, write_audit
from cluster.extract import extract
from cluster.features import open_features
from data_prep import boxes, storage
from data_prep.boxes import Meta
from data_prep.storage import InputError
from jobs.audit import (
    CHANCE_SHARE,
    FACTS,
    audit_corpus,
    audit_manifest,
    audit_text,
    interval_text,
    is_above,
    loud_facts,
)
from jobs.audit_classifier import FOLDS, encoded, fact_auc
from stgs.backbones import BackboneConfig
from tests.data_prep.conftest import manifest_row, tone, write_clip
from tests.planted import make_features

SUBJECTS = 60
QUIET = {
    "leading_silence_s": 0.0,
    "trailing_silence_s": 0.0,
    "loudness_dbfs": -25.0,
    "duration_s": 5.0,
    "fps": 25.0,
    "width": 224,
    "height": 224,
    "sample_rate": 16_000,
    "bit_rate": 4e5,
    "file_bytes": 250_000,
    "num_faces": 1,
    "augmentation": None,
}


def people(random: np.random.Generator, subjects: int = SUBJECTS) -> tuple[np.ndarray, list[str]]:
    """Labels and subjects of clips: each subject has 1 to 3 real clips and 0 to 9 fakes, so that folds differ."""
    labels, names = [], []
    for number in range(subjects):
        own = [False] * int(random.integers(1, 4)) + [True] * int(random.integers(0, 10))
        labels += own
        names += [f"subject-{number}"] * len(own)
    return np.array(labels), names


def unbalanced(subjects: int = 3 * SUBJECTS) -> tuple[np.ndarray, list[str]]:
    """Labels and subjects of clips, 1 real one and 40 fakes of each subject."""
    return np.tile(np.arange(41) > 0, subjects), [f"subject-{number // 41}" for number in range(41 * subjects)]


def noise(kind: str, random: np.random.Generator, names: list[str]) -> np.ndarray:
    if kind == "number":
        return random.standard_normal(len(names))
    if kind == "category":
        return random.integers(0, 4, len(names)).astype(float)
    if kind == "rare":
        return (random.random(len(names)) < 0.002).astype(float)
    if kind == "often missing":
        return np.where(random.random(len(names)) < 0.5, np.nan, random.standard_normal(len(names)))
    by_subject = {name: random.standard_normal() for name in names}
    return np.array([by_subject[name] for name in names])


def interval(result: dict[str, Any]) -> tuple[float, float, float]:
    return result["auc"], result["low"], result["high"]


@pytest.mark.parametrize("kind", ["number", "category", "often missing", "of the subject", "rare"])
def test_a_fact_that_says_nothing_is_expected_at_chance(kind: str) -> None:
    seeds = 80
    aucs, alarms = [], 0
    for seed in range(seeds):
        random = np.random.default_rng(seed)
        fake, names = unbalanced() if kind == "rare" else people(random)
        result = fact_auc(noise(kind, random, names), fake, names, seed=seed, resamples=200)
        aucs.append(result["auc"])
        alarms += is_above(result)
    # Three standard errors, of the mean and of a share of CHANCE_SHARE.
    assert abs(np.mean(aucs) - 0.5) < 3 * np.std(aucs, ddof=1) / math.sqrt(seeds)
    assert alarms / seeds < CHANCE_SHARE + 3 * math.sqrt(CHANCE_SHARE * (1 - CHANCE_SHARE) / seeds)


def test_a_fact_that_is_the_label_is_found_whole() -> None:
    random = np.random.default_rng(0)
    fake, names = people(random)
    perfect = (1.0, 1.0, 1.0)
    for given in (fake.astype(float), (~fake).astype(float), ["f" if label else "r" for label in fake]):
        values, categories = encoded(list(given))
        assert interval(fact_auc(values, fake, names, categories=categories)) == perfect
    infinite, _ = encoded([-math.inf if label else float(i) for i, label in enumerate(fake)])
    assert interval(fact_auc(infinite, fake, names)) == perfect
    missing, _ = encoded([None if label else float(i) for i, label in enumerate(fake)])
    assert interval(fact_auc(missing, fake, names)) == perfect, "only fakes lack it"
    apart = fact_auc(np.where(fake, 1.0, 0.0) + 0.1 * random.random(len(fake)), fake, names)
    assert apart["auc"] > 0.99, "many values, which a threshold separates"


def test_relations_that_are_no_slope_are_found() -> None:
    random = np.random.default_rng(1)
    fake, names = people(random, 200)
    wide, narrow = random.uniform(-3, 3, len(fake)), random.uniform(-1, 1, len(fake))
    middle = fact_auc(np.where(fake, narrow, wide), fake, names)
    # A third of the real clips lies among the fakes, and is as likely above as below them: 2/3 + 1/3 * 1/2.
    reals = int((~fake).sum())
    assert abs(middle["auc"] - 5 / 6) < 4 * 0.5 * math.sqrt(2 / 9 / reals)
    assert middle["low"] < middle["auc"] < middle["high"]
    frame_rate = fact_auc(np.where(fake, 25.0, random.uniform(20, 30, len(fake))), fake, names)
    assert frame_rate["low"] > 0.95, "fakes have one value in the middle of the others"
    few = np.arange(32) % 2 == 0
    spike = np.where(few, 25.0, random.uniform(20, 30, len(few)))
    found = fact_auc(spike, few, [f"subject-{number // 2}" for number in range(len(few))])
    assert found["auc"] > 0.95, "it stands alone, however few bins there are"


def test_interval_is_as_wide_as_the_scatter_of_subjects() -> None:
    """Clips that are all alike within a subject count as one: ten of them narrow nothing."""
    random = np.random.default_rng(2)
    fake = np.array([number % 2 == 0 for number in range(SUBJECTS)])
    values = random.standard_normal(SUBJECTS) + fake
    names = [f"subject-{number}" for number in range(SUBJECTS)]
    alone = fact_auc(values, fake, names)
    often = fact_auc(np.repeat(values, 10), np.repeat(fake, 10), list(np.repeat(names, 10)))
    assert often["high"] - often["low"] > 0.5 * (alone["high"] - alone["low"])


@pytest.mark.parametrize(
    ("fake", "subjects", "sentence"),
    [
        ([], [], "fake clips of 0 subjects"),
        ([True] * 4, "abcd", "real clips of 0 subjects"),
        ([False] * 4, "abcd", "fake clips of 0 subjects"),
        ([True, False, True, False], "aaaa", "fake clips of 1 subject, but 2"),
        ([True, True, True, False], "abcd", "real clips of 1 subject, but 2"),
    ],
)
def test_too_little_is_said_in_a_sentence(fake: list[bool], subjects: str, sentence: str) -> None:
    result = fact_auc(np.arange(len(fake), dtype=float), np.array(fake, bool), list(subjects))
    assert sentence in result["sentence"]


def test_least_that_can_be_measured() -> None:
    fake = np.array([True, False, True, False])
    for subjects in ("aabb", "abcd", "abca"):
        result = fact_auc(np.array([3.0, 1.0, 2.0, 0.0]), fake, list(subjects))
        assert "sentence" in result or 0 <= result["low"] <= result["auc"] <= result["high"] <= 1
    constant = {"auc": 0.5, "low": 0.5, "high": 0.5, "null_error": 0.0, "least_subjects": 2}
    assert fact_auc(np.full(4, 7.0), fake, list("aabb")) == constant
    assert fact_auc(np.full(4, np.nan), fake, list("aabb")) == {"sentence": "no clip has one."}
    assert encoded([])[0].shape == (0,)


def test_every_fold_teaches_and_is_judged() -> None:
    """Subjects that have one class only: a fold without the other class would not be compared."""
    names = [f"r{number}" for number in range(FOLDS)] + [f"f{number}" for number in range(3 * FOLDS)]
    fake = np.array([name.startswith("f") for name in names])
    assert fact_auc(fake.astype(float), fake, names, resamples=50)["auc"] == 1.0


def clips(subjects: int = 30, **facts: Any) -> list[dict[str, Any]]:
    """A clip of each category of every subject; facts: column -> value, or category -> value."""
    rows = []
    for number in range(subjects):
        for category in "ABCD":
            own = {name: value[category] if isinstance(value, dict) else value for name, value in facts.items()}
            labels = {"category": category, "dataset": "drawn", "subject": f"s{number}", **QUIET}
            rows.append({**labels, **own})
    return rows


def write_corpus(folder: Path, rows: list[dict[str, Any]], without: tuple[str, ...] = ()) -> tuple[str, Meta]:
    """A corpus of two parts with the columns that an audit reads, and a tensor that it must not."""
    files, half = {}, len(rows) // 2
    schema = pa.schema([(name, pa.string()) for name in ("category", "dataset", "subject", "augmentation")])
    for name, value in QUIET.items():
        if name != "augmentation" and name not in without:
            schema = schema.append(pa.field(name, pa.float64() if isinstance(value, float) else pa.int64()))
    for part, own in enumerate((rows[:half], rows[half:]) if rows else ()):
        table = pa.Table.from_pylist(own, schema=schema)
        table = table.append_column("frames", boxes.tensor_array(np.zeros((len(own), 2), np.uint8)))
        name = boxes.shard_name(part)
        files[name] = storage.write(str(folder / name), boxes.table_bytes(table))
    meta = Meta(kind=boxes.CORPUS, config={}, counts={"clips": len(rows)}, versions={}, parent=None, files=files)
    boxes.write_meta(str(folder), meta)
    return str(folder), meta


def shortcuts(audit: dict[str, Any]) -> list[str]:
    return [line for line in audit_text(audit).splitlines() if line.startswith("SHORTCUT")]


def test_a_corpus_without_a_shortcut(tmp_path: Path) -> None:
    uri, meta = write_corpus(tmp_path, clips())
    audit = audit_corpus(uri, meta)
    assert (audit["version"], audit["digest"], audit["clips"], audit["subjects"]) == (1, meta.digest, 120, 30)
    assert list(audit["facts"]) == list(FACTS)
    assert (audit["shortcuts"], audit["skipped"], audit["tests"]) == ([], {}, 0)
    assert json.loads(json.dumps(audit, allow_nan=False)) == audit
    text = audit_text(audit)
    assert shortcuts(audit) == []
    assert "No shortcut was found; looked at: leading silence, trailing silence, duration" in text
    assert "augmentation's name: not measured, because no clip has one." in text


def test_a_shortcut_is_loud_and_names_the_fakes_that_have_it(tmp_path: Path) -> None:
    silence = {"A": 0.0, "B": 0.3, "C": 0.0, "D": 0.0}
    uri, meta = write_corpus(tmp_path, clips(leading_silence_s=silence, width={"A": 640, "B": 640, "C": 480, "D": 480}))
    audit = audit_corpus(uri, meta)
    found = audit["facts"]["leading_silence_s"]
    assert interval(found["B"]) == (1.0, 1.0, 1.0)
    assert interval(found["C"]) == interval(found["D"]) == (0.5, 0.5, 0.5)
    # A third of the fakes are told for sure, the others are ties.
    assert found["all"]["auc"] == pytest.approx(1 / 3 + 2 / 3 * 0.5)
    leading, resolution = shortcuts(audit)
    assert leading.startswith("SHORTCUT: the leading silence alone tells all fakes (AUC 0.667 [")
    assert "B (AUC 1.000 [1.000, 1.000])" in leading
    assert "C (AUC" not in leading
    assert audit["tests"] == 5, "silence of all and of B, size of all, C and D; the others are the same everywhere"
    assert "--trim-silence" in leading
    assert "C (AUC 1.000" in resolution
    assert "B (AUC" not in resolution
    assert "No shortcut" not in audit_text(audit)


@pytest.mark.parametrize(
    ("effect", "beginning"), [(0.32, "SHORTCUT, perhaps by chance: the loudness"), (0.8, "SHORTCUT: the loudness")]
)
def test_weak_shortcuts_say_that_they_may_be_chance(effect: float, beginning: str, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    rows = clips(100)
    for row in rows:
        row["loudness_dbfs"] = random.standard_normal() + effect * (row["category"] != "A")
    uri, meta = write_corpus(tmp_path, rows)
    audit = audit_corpus(uri, meta)
    (line,) = shortcuts(audit)
    assert line.startswith(beginning)
    assert f"Of 4 intervals about {4 * CHANCE_SHARE:.1f} would lie above 0.5" in audit_text(audit)


def test_few_subjects_make_no_shortcut_sure() -> None:
    for least, sure in ((4, False), (5, True)):
        perfect = {"auc": 1.0, "low": 1.0, "high": 1.0, "null_error": 0.01, "least_subjects": least}
        assert loud_facts({"fps": {"all": perfect}}, 1) == {"fps": sure}


def test_an_interval_above_chance_does_not_read_as_chance() -> None:
    assert interval_text({"auc": 0.500244, "low": 0.500098, "high": 0.5004}) == "0.5002 [0.5001, 0.5004]"
    assert interval_text({"auc": 0.500002, "low": 0.500001, "high": 0.500003}) == "0.500002 [0.500001, 0.500003]"
    assert interval_text({"auc": 0.52, "low": 0.4999, "high": 0.54}) == "0.520 [0.500, 0.540]"
    assert interval_text({"auc": 0.9931, "low": 0.977, "high": 1.0}) == "0.993 [0.977, 1.000]"


def test_the_error_under_chance_is_that_of_shuffled_labels() -> None:
    random = np.random.default_rng(3)
    fake = np.arange(400) % 4 > 0
    names = [f"subject-{number}" for number in range(400)]
    for share in (0.02, 0.5):
        values = (random.random(400) < share).astype(float)
        result = fact_auc(values, fake, names, resamples=50)
        spread = 0.5 * math.sqrt(values.mean() * (1 - values.mean()) * (1 / 100 + 1 / 300))
        # Folds of 80 clips have other shares of the value than the whole, and n - 1 instead of n.
        assert result["null_error"] == pytest.approx(spread, rel=0.1)


def test_augmented_clips_are_audited_by_the_name_alone(tmp_path: Path) -> None:
    """As with `--balance paper`: only real clips are augmented, into files that nobody reads as originals."""
    rows = clips()
    children = [{**row, "augmentation": "blur", "fps": 50.0} for row in rows if row["category"] == "A"]
    uri, meta = write_corpus(tmp_path, rows + children)
    audit = audit_corpus(uri, meta)
    (line,) = shortcuts(audit)
    assert "augmentation's name" in line
    assert "--balance paper" in line
    # Half of the real clips carry a name that no fake has; the others are ties.
    assert audit["facts"]["augmentation"]["C"]["auc"] == pytest.approx(0.5 + 0.5 * 0.5)
    assert audit["facts"]["fps"]["all"]["auc"] == 0.5
    both = rows + [{**row, "augmentation": "blur"} for row in rows]
    assert audit_corpus(*write_corpus(tmp_path / "both", both))["facts"]["augmentation"]["all"]["auc"] == 0.5


def test_columns_that_are_missing_are_named(tmp_path: Path) -> None:
    uri, meta = write_corpus(tmp_path, clips(), without=("trailing_silence_s", "height"))
    audit = audit_corpus(uri, meta)
    assert set(audit["skipped"]) == {"trailing_silence_s", "resolution"}
    assert "trailing silence, resolution: not looked at, because an earlier version" in audit_text(audit)
    (tmp_path / boxes.shard_name(0)).write_bytes(b"no parquet")
    with pytest.raises(InputError, match="part-00000"):
        audit_corpus(uri, meta)


def test_missing_values_and_few_clips(tmp_path: Path) -> None:
    for number, subjects in enumerate((0, 1, 2)):
        uri, meta = write_corpus(tmp_path / str(number), clips(subjects, bit_rate=None, fps=math.nan))
        audit = audit_corpus(uri, meta)
        assert "sentence" in audit["facts"]["fps"]["all"]
        assert shortcuts(audit) == []
        assert ("Nothing could be measured" in audit_text(audit)) == (subjects < 2)
    assert "only 2 subjects: intervals of so few are rough" in audit_text(audit)
    gone = clips(bit_rate={"A": 0.0, "B": None, "C": 4e5, "D": 5e5})
    rate = audit_corpus(*write_corpus(tmp_path / "gone", gone))["facts"]["bit_rate"]
    assert (rate["B"], rate["C"]["auc"]) == ({"sentence": "no clip has one."}, 1.0), "0 is none"


def test_many_sizes_are_compared_by_area(tmp_path: Path) -> None:
    rows = clips(40)
    for number, row in enumerate(rows):
        row["width"], row["height"] = (400 if row["category"] == "D" else 200) + number % 37, 224
    found = audit_corpus(*write_corpus(tmp_path, rows))["facts"]["resolution"]
    assert found["D"]["auc"] == 1.0
    assert found["B"]["low"] < 0.5


def test_files_of_a_manifest(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    rows = []
    for number in range(5):
        for category in "AC":
            name = f"{number}-{category}.mp4"
            times = np.arange(20 if category == "A" else 40) / 25
            write_clip(tmp_path / name, frame_times=times, sound=tone(440, len(times) / 25, 16_000))
            rows.append(manifest_row(name, category=category, label=int(category != "A"), subject=f"s{number}"))
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    rows += [manifest_row(name, subject="s0") for name in ("broken.mp4", "gone.mp4")]
    rows.append(manifest_row("child", **{key: rows[1][key] for key in ("video_path", "category", "label", "subject")}))
    rows[-1] |= {"augmentation": "blur", "parent_clip_id": rows[1]["clip_id"]}
    orphan = {**rows[-1], "clip_id": "orphan", "video_path": "clips/broken.mp4", "parent_clip_id": "broken.mp4"}
    rows.append(orphan)
    audit = audit_manifest(rows, {"clips": str(tmp_path)}, clip_timeout=30, processes=2, progress=False)
    assert audit["refused"] == {"missing": 1, "unreadable": 1}
    refused = [(clip["clip_id"], clip["reason"]) for clip in audit["refused_clips"]]
    assert refused == [("broken.mp4", "unreadable"), ("gone.mp4", "missing")]
    assert all(clip["detail"] for clip in audit["refused_clips"])
    # A child of a file that cannot be read does not count, as it can be no clip either.
    assert (audit["clips"], audit["subjects"]) == (11, 5)
    assert interval(audit["facts"]["duration_s"]["all"]) == (1.0, 1.0, 1.0)
    for same in ("fps", "resolution", "sample_rate"):
        assert interval(audit["facts"][same]["C"]) == (0.5, 0.5, 0.5)
    assert "sentence" in audit["facts"]["duration_s"]["B"]
    assert set(audit["skipped"]) == {"leading_silence_s", "trailing_silence_s", "loudness_dbfs", "num_faces"}
    text = audit_text(audit)
    assert "files that cannot be read: 1 missing, 1 unreadable." in text
    assert any("duration" in line for line in shortcuts(audit))
    assert capfd.readouterr().err == ""
    assert json.loads(json.dumps(audit, allow_nan=False)) == audit
    with pytest.raises(InputError, match="processes is 0"):
        audit_manifest(rows, {"clips": str(tmp_path)}, processes=0)


def test_a_damaged_audit_is_told_before_features_are_extracted(tmp_path: Path) -> None:
    uri, _ = write_corpus(tmp_path / "corpus", clips(2))
    (tmp_path / "corpus" / "audit.json").write_text("{")
    with pytest.raises(InputError, match=r"audit\.json is damaged"):
        extract(uri, str(tmp_path / "features"), BackboneConfig())
    assert not (tmp_path / "features").exists()


def test_audit_goes_from_the_corpus_to_the_run(tmp_path: Path) -> None:
    uri, meta = write_corpus(tmp_path / "corpus", clips(2))
    assert corpus_audit(uri, meta) is None
    audit = audit_corpus(uri, meta)
    write_audit(uri, audit)
    assert corpus_audit(uri, meta) == audit
    assert write_corpus(tmp_path / "other", clips(3))[1].digest != meta.digest
    assert corpus_audit(uri, write_corpus(tmp_path / "other", clips(3))[1]) is None, "other clips"

    features, manifest = make_features(tmp_path / "planted")
    source = open_features(features, manifest)
    keep_audit(str(tmp_path / "run"), source)
    kept = read_audit(str(tmp_path / "run")) or {}
    assert list(kept) == ["leaks"], "these features were made of no audited corpus"
    assert "subject_in_two_splits" not in {leak["kind"] for leak in kept["leaks"]}
    source.meta.extra["audit"] = audit
    for row in source.manifest.rows:
        row["subject"] = "the same"
    keep_audit(str(tmp_path / "run"), source)
    kept = read_audit(str(tmp_path / "run")) or {}
    assert {name: kept[name] for name in audit} == audit
    assert "subject_in_two_splits" in {leak["kind"] for leak in kept["leaks"]}
    for damage in ("[1]", "{"):
        (tmp_path / "run" / "audit.json").write_text(damage)
        with pytest.raises(InputError, match="is damaged"):
            read_audit(str(tmp_path / "run"))
