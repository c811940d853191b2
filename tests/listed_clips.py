"""Manifest rows for the tests of splits: of FakeAVCeleb's real listing, of a drawn crowd, and hand-made ones."""

import functools
import gzip
import random
import re
from pathlib import Path
from typing import Any

from data_prep.manifest import MANIFEST_COLUMNS

Row = dict[str, Any]

_CATEGORIES = {
    ("RealVideo", "RealAudio"): "A",
    ("RealVideo", "FakeAudio"): "B",
    ("FakeVideo", "RealAudio"): "C",
    ("FakeVideo", "FakeAudio"): "D",
}


def made_row(subject: str, category: str, target: str | None = None, **changes: Any) -> Row:
    """One row; its clip_id tells what it is made of, unless `changes` give it another one."""
    parts = [changes.get("dataset", "set"), subject, category, target or "none", changes.get("method") or "any"]
    name = changes.get("clip_id", "/".join(parts))
    row: Row = dict.fromkeys(MANIFEST_COLUMNS)
    row |= {"clip_id": name, "video_path": name, "label": int(category != "A"), "category": category}
    row |= {"dataset": "set", "subject": subject, "target": target} | changes
    return row


def made_child(parent: Row, name: str = "blur", **changes: Any) -> Row:
    """An augmentation of `parent`."""
    clip_id = parent["clip_id"]
    return parent | {"clip_id": f"{clip_id}#{name}", "augmentation": name, "parent_clip_id": clip_id} | changes


@functools.cache
def real_listing(shared: Path) -> tuple[Row, ...]:
    """FakeAVCeleb v1.2, read by its folders and the identities in its file names alone. Rows are not to be changed."""
    text = gzip.decompress((shared / "data/fakeavceleb_v1.2_paths.txt.gz").read_bytes()).decode()
    rows = []
    for path in text.splitlines():
        kind, race, gender, subject, name = path.split("/")
        video, audio = kind.split("-")
        targets = re.findall(r"id\d{5}", name)
        row = made_row(subject, _CATEGORIES[video, audio], "+".join(targets) or None, race=race, gender=gender)
        method = "rtvc" if audio == "FakeAudio" and video == "RealVideo" else "real" if video == "RealVideo" else None
        if video == "FakeVideo" and targets:
            parts = ["faceswap"] if "faceswap" in name else ["fsgan"] if len(targets) > 1 or "wav" not in name else []
            method = "-".join([*parts, *(["wav2lip"] if name.endswith("wavtolip.mp4") else [])])
        rows.append(row | {"clip_id": path, "video_path": f"root/{path}", "dataset": "FakeAVCeleb", "method": method})
    return tuple(rows)


def crowd(seed: int, num_subjects: int = 40) -> list[Row]:
    """Clips of two data sets in which everything varies: categories, targets, known or not, methods, race."""
    drawn = random.Random(seed)
    rows = []
    for index in range(num_subjects):
        dataset = drawn.choice(["first", "second"])
        traits = {"race": drawn.choice(["r1", "r2", None]), "gender": drawn.choice(["men", "women"])}
        for category in drawn.choice(["ABCD", "ABCD", "ACD", "BD"]):
            for number in range(1 if category == "A" else drawn.randint(1, 5)):
                targets = [f"id{drawn.randrange(num_subjects + 5)}" for _ in range(drawn.randint(0, 2))]
                method = "real" if category == "A" else drawn.choice(["m1", "m2", "m1-m2", "m3", None])
                row = made_row(f"id{index}", category, None if category == "A" else "+".join(targets) or None, **traits)
                name = f"{dataset}/{index}/{category}/{number}"
                rows.append(row | {"clip_id": name, "video_path": name, "dataset": dataset, "method": method})
    return rows
