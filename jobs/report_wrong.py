"""Section of the report with the clips that the found network gets most wrong: their frames and spectrograms."""

from __future__ import annotations

from jobs.report_facts import Reading, RunFacts
from jobs.report_html import Html, fraction, picture, section, tag
from jobs.report_tables import Column, DataTable

_LABELS = {0: "real", 1: "fake"}


WRONG_COLUMNS = (
    Column(key="evaluated_on", text=True),
    Column(key="clip_id", head="clip", text=True),
    Column(key="label", head="is", show=lambda label: _LABELS.get(label, label), text=True),
    Column(key="category", head="category", text=True),
    Column(key="method", head="method", text=True),
    Column(key="subject", head="subject", text=True),
    Column(key="dataset", head="data set", text=True),
    Column(key="score", head="P(fake)", show=fraction),
)
"""Of a table of clips as metrics.json lists the most wrong ones; evaluated_on: the data set of the reading."""


def wrong_table(facts: RunFacts) -> DataTable:
    """The most wrong clips of the found network, once a data set."""
    rows = [{"evaluated_on": reading.dataset, **row} for reading in facts.tested for row in _wrong(reading)]
    return DataTable("wrong_clips", WRONG_COLUMNS, rows)


def _wrong(reading: Reading) -> list[dict[str, object]]:
    return list(reading.content.get("wrong") or ())


def wrong_section(facts: RunFacts) -> Html:
    """The clips as a table, and with pictures where a corpus gives them."""
    parts: list[object] = []
    for reading in facts.tested:
        if len(facts.tested) > 1:
            parts.append(tag("h3", f"Data set {reading.dataset}"))
        rows = _wrong(reading)
        if not rows:
            parts.append(tag("p", "The found network is on the right side of its dev threshold for every test clip."))
            continue
        threshold = reading.networks[reading.found].get("threshold")
        words = (
            "The test clips that lie farthest on the wrong side of the found network's threshold "
            f"({fraction(threshold)}): real ones called fake, and fakes called real, at most 6 of each."
        )
        parts += [tag("p", words), wrong_table(facts).where(evaluated_on=reading.dataset).html()]
        parts += [_pictured(facts, row) for row in rows]
    if facts.no_pictures and facts.tested:
        parts.append(tag("p", facts.no_pictures))
    if not facts.tested:
        parts.append(tag("p", "There are none: the test clips have not been read yet."))
    return section("wrong", "Most wrong clips", parts)


def _pictured(facts: RunFacts, row: dict[str, object]) -> Html | None:
    pictures = facts.pictures.get(str(row["clip_id"]))
    if pictures is None:
        return None
    frames, spectrogram = pictures
    is_fake = row["label"] == 1
    words = (
        f"{_LABELS[int(is_fake)]} ({row['category']}), called {_LABELS[int(not is_fake)]}: P(fake) "
        f"{fraction(row['score'])}"  # type: ignore[arg-type]
    )
    caption = [tag("b", words), f"; {row['clip_id']}, subject {row['subject']}, method {row['method']}"]
    shown = [
        picture(frames, f"faces of {row['clip_id']}, in order of time"),
        picture(spectrogram, f"spectrogram of {row['clip_id']}: time to the right, pitch upwards"),
    ]
    return tag("figure", tag("figcaption", caption), tag("div", shown, class_="beside"))
