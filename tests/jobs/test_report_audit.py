"""The report's audit: its figures, its warnings, and names from files as text."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster.audits import write_audit
from cluster.features import open_features
from cluster.settings import GridConfig
from jobs.audit import COMPARISONS, FACTS
from jobs.report import report_page
from jobs.report_facts import RunFacts, read_run
from tests.jobs.reports import SETTINGS, Page, read_page, search
from tests.planted import make_features

QUIET = {"auc": 0.48, "low": 0.41, "high": 0.55}
LOUD = {"auc": 0.91, "low": 0.87, "high": 0.95, "null_error": 0.03, "least_subjects": 56}
AUDIT: dict[str, Any] = {
    "version": 1,
    "digest": "0" * 64,
    "clips": 1234,
    "subjects": 56,
    "facts": {key: dict.fromkeys(COMPARISONS, QUIET) for key in FACTS},
    "tests": 44,
    "shortcuts": [],
    "skipped": {},
    "leaks": [],
}


@pytest.fixture(scope="module")
def facts(tmp_path_factory: pytest.TempPathFactory) -> RunFacts:
    source = open_features(*make_features(tmp_path_factory.mktemp("planted")))
    run = tmp_path_factory.mktemp("runs") / "one"
    search(str(run), GridConfig(temperatures=(10.0,), num_samples=(1,), pack=1, settings=SETTINGS), source)
    return read_run(str(run))


def page_of(facts: RunFacts, audit: dict[str, Any]) -> Page:
    return Page(report_page(replace(facts, audit=audit)))


def test_a_run_without_an_audit_says_so(facts: RunFacts) -> None:
    page = page_of(facts, {})
    assert "There is no audit of these clips." in page.section("shortcuts").text
    assert "Shortcuts and leaks" not in page.text
    assert "leak" not in page_of(facts, {}).section("shortcuts").text
    assert "No leak was found" in page_of(facts, {"leaks": []}).section("shortcuts").text


def test_a_quiet_audit(facts: RunFacts) -> None:
    page = page_of(facts, AUDIT)
    words = page.section("shortcuts").text
    assert "Shortcuts and leaks" not in page.text
    assert "1,234 clips of 56 subjects" in words
    assert "No shortcut was found; looked at: leading silence, " in words
    assert "Of 44 intervals about 2.2" in words
    assert words.count("0.480 [0.410, 0.550]") == len(FACTS) * (len(COMPARISONS) + len("BCD")), (
        "in the table, and in hints of the dots"
    )
    assert page.section("shortcuts").count("g", "s1") == 0


def test_what_is_loud_stands_in_the_section_and_on_top(facts: RunFacts) -> None:
    audit = copy.deepcopy(AUDIT)
    audit["facts"]["bit_rate"]["D"] = LOUD
    audit["facts"]["fps"] = {name: {"sentence": "there are fake clips of 1 subject."} for name in COMPARISONS}
    audit["facts"]["num_faces"]["B"] = {"sentence": "no clip has one."}
    audit["skipped"] = {"loudness_dbfs": "an earlier version made this corpus."}
    del audit["facts"]["loudness_dbfs"]
    audit["shortcuts"] = ["SHORTCUT: the bit rate alone tells D from real clips."]
    audit["leaks"] = [{"kind": "a", "clips": 3, "sentence": f"{n} clips leak."} for n in ("Three", "Four", "Five")]
    audit["facts"]["file_bytes"]["all"] = {"auc": 0.56, "low": 0.501, "high": 0.619}
    audit["leaks"].append({"kind": "test_target_unknown", "clips": 1, "sentence": "Some targets are unknown."})
    perhaps = {"kind": "method_perhaps_seen_in_training", "clips": 1, "sentence": "Some methods are unnamed."}
    audit["leaks"].append(perhaps)
    page = page_of(facts, audit)
    top, words = page.section("summary").text, page.section("shortcuts").text
    assert "SHORTCUT: fakes can be told from real clips without looking or listening, by bit rate." in top
    assert "SHORTCUT, perhaps by chance: fakes can be told from real clips without looking or listening, by file" in top
    assert "LEAK: Three clips leak. 2 more leaks of the splits." in top
    assert "unknown" not in top
    assert "unnamed" not in top
    assert "LEAK, perhaps: Some targets are unknown." in words
    assert "LEAK, perhaps: Some methods are unnamed." in words
    for line in (*audit["shortcuts"], "LEAK: Three clips leak.", "LEAK: Four clips leak.", "LEAK: Five clips leak."):
        assert line in words
    assert "No shortcut" not in words
    of_another_version = copy.deepcopy(audit)
    del of_another_version["facts"]["bit_rate"]["D"]["null_error"]
    del of_another_version["facts"]["bit_rate"]["D"]["least_subjects"]
    assert "by chance: fakes can be told from real clips without looking or listening, by bit rate, file size" in (
        page_of(facts, of_another_version).section("summary").text
    )
    assert "frame rate: not measured, because there are fake clips of 1 subject." in words
    assert "number of faces of B: not measured, because no clip has one." in words
    assert "loudness: not looked at, because an earlier version made this corpus." in words
    bold = page.section("shortcuts").source.count("<b>")
    assert bold == 2
    assert "<b>0.910 [0.870, 0.950]</b>" in page.source
    chart = next(label for label in page.section("shortcuts").charts if label.startswith("AUC of the fact alone"))
    assert "bit rate" in chart
    assert "frame rate" not in chart
    assert page.section("shortcuts").count("g", "s1") == 2 * 3, "the dots of B, C and D of the loud facts"


def test_names_from_an_audit_are_text(facts: RunFacts, tmp_path: Path) -> None:
    evil = "<script>alert('x')</script>\"><img src=x onerror=alert(1)>"
    audit = copy.deepcopy(AUDIT)
    audit["facts"][evil] = {**dict.fromkeys(COMPARISONS, LOUD), "B": {"sentence": evil}}
    audit["shortcuts"], audit["skipped"] = [evil], {evil: evil}
    audit["leaks"] = [{"kind": evil, "clips": 1, "sentence": evil}]
    write_audit(str(tmp_path), audit)
    write_audit(facts.uri, audit)
    page = read_page(Path(facts.uri))
    assert "img" not in {name for name, _ in page.tags}
    assert page.count_tags("script") == 1
    assert not any(key.startswith("on") for _, given in page.tags for key in given)
    assert page.text.count(evil) > 5
