"""Lists the clips of a data set: which there are, what is fake in them, who speaks, and which split they belong to.

SOURCE `folder` reads a ROOT with the folders RealVideo-RealAudio, RealVideo-FakeAudio, FakeVideo-RealAudio and
FakeVideo-FakeAudio (or A, B, C, D), each with clips or with one folder per subject. No subject is in two splits.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import pandas as pd

from data_prep.manifest import SPLITS, FolderListing, Row, folder_manifest, write_manifest
from data_prep.splits import split_by_subject
from data_prep.storage import InputError
from jobs.cli import PARTLY, Outcome, option, run_command

_SOURCES = ("folder", "fakeavceleb", "swan-df")
_LISTED = 20


@dataclass(frozen=True, kw_only=True)
class ManifestJobConfig:
    """Options of `stgs manifest`."""

    source: str = option(help="layout of the data set", choices=_SOURCES, positional=True, metavar="SOURCE")
    root: str = option(help="the data set's folder, local or s3://", positional=True, metavar="ROOT")
    out: str = option(help="directory for the manifest")
    dataset: str = option("clips", help="name of the data set; the root's name in the manifest's paths")
    split: str = option("subject", help="what keeps the splits apart", choices=("subject", "none"))
    dev: float = option(0.2, help="share of the subjects for dev, or their number from 1 on")
    test: float = option(0.2, help="share of the subjects for test, or their number from 1 on")
    seed: int = option(0, help="seed of the split")


def run(config: ManifestJobConfig) -> Outcome:
    """List the clips, split them by subject, and write the manifest."""
    if config.source != "folder":
        raise InputError(
            f"the source {config.source!r} is not read yet; sort its clips into the four category folders, "
            "and use the source 'folder'."
        )
    listing = folder_manifest(config.root, dataset=config.dataset)
    rows = listing.rows
    if config.split == "subject":
        dev, test = _size("dev", config.dev), _size("test", config.test)
        rows = split_by_subject(rows, dev=dev, test=test, seed=config.seed)
    meta = write_manifest(config.out, rows, listing.roots, asdict(config))
    payload = {
        "out": config.out,
        "digest": meta.digest,
        "clips": len(rows),
        "categories": dict(sorted(Counter(row["category"] for row in rows).items())),
        "subjects": len({row["subject"] for row in rows}),
        "splits": dict(Counter(row["split"] or "none" for row in rows)),
        "unfit": [{"path": path, "reason": reason} for path, reason in listing.unfit],
    }
    return Outcome(payload, _summary(config.out, rows, listing), PARTLY if listing.unfit else 0)


def _size(name: str, value: float) -> int | float:
    if value < 1:
        return value
    if value != int(value):
        raise InputError(f"{name} is {value}; give a share below 1, or a whole number of subjects.")
    return int(value)


def _summary(out: str, rows: Sequence[Row], listing: FolderListing) -> str:
    frame = pd.DataFrame(list(rows))
    frame["split"] = frame["split"].fillna("none")
    order = [split for split in (*SPLITS, "none") if split in set(frame["split"])]
    table = frame.pivot_table(index="category", columns="split", values="clip_id", aggfunc="count", fill_value=0)[order]
    table["clips"] = table.sum(axis=1)
    table.loc["all"] = table.sum()
    table.loc["subjects"] = [frame[frame["split"] == split]["subject"].nunique() for split in order] + [
        frame["subject"].nunique()
    ]
    table.columns.name = table.index.name = None
    lines = [table.to_string(), "", f"manifest: {out}"]
    if listing.unfit:
        lines += ["", f"files left out: {len(listing.unfit)}"]
        lines += [f"  {path}: {reason}" for path, reason in listing.unfit[:_LISTED]]
        if len(listing.unfit) > _LISTED:
            lines.append(f"  ... and {len(listing.unfit) - _LISTED} more (--json lists all)")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """`stgs manifest`; returns the exit code."""
    return run_command("manifest", run, argv)


if __name__ == "__main__":
    sys.exit(main())
