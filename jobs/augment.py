"""Adds augmented clips of train and dev to a manifest, or shows what each augmentation does to one clip.

MANIFEST_DIR is read and a new manifest written: all its rows, and children of those in train and dev, never of test.
`stgs prepare` makes corpus rows of them like of any other. --gallery CLIP writes pictures and sounds instead.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import pandas as pd

from data_prep import storage
from data_prep.augmentations import AUGMENTATIONS, DEFAULT_NAMES
from data_prep.augmented_manifest import PAPER_CLIPS, augment_rows, shortfall
from data_prep.manifest import SPLITS, Row, check_rows, read_manifest, write_manifest
from data_prep.storage import InputError
from jobs.cli import Outcome, option, run_command

_ALL = "all"


@dataclass(frozen=True, kw_only=True)
class AugmentJobConfig:
    """Options of `stgs augment`."""

    manifest: str | None = option(
        None, help="directory of a manifest with splits", positional=True, metavar="MANIFEST_DIR"
    )
    out: str | None = option(None, help="directory for the new manifest, or for the gallery")
    per_clip: int = option(1, help="children of each clip in train and dev (with --balance paper: as many as it needs)")
    names: tuple[str, ...] | None = option(
        None,
        help=f"augmentations to draw from; {_ALL}: with those that may imitate voice conversion (default: the others)",
    )
    balance: Literal["none", "paper"] = option(
        "none",
        help="none: all clips alike, the loss weighs the classes; paper: only real clips, up to the number of fakes",
    )
    seed: int = option(0, help="seed of the draw which clip gets which augmentations")
    dry_run: bool = option(False, help="only print how many clips there would be")
    gallery: str | None = option(None, metavar="CLIP", help="show every augmentation of this clip instead")


def run(config: AugmentJobConfig) -> Outcome:
    """Write the manifest, or the gallery."""
    if (config.manifest is None) == (config.gallery is None):
        raise InputError("give either MANIFEST_DIR, to augment its clips, or --gallery CLIP, to look at one.")
    if config.gallery is not None:
        _refuse_options_of_manifests(config)
        return _show(config.gallery, _required_out(config))
    assert config.manifest is not None
    manifest = read_manifest(config.manifest)
    names = _names(config.names)
    rows = augment_rows(manifest.rows, per_clip=config.per_clip, names=names, balance=config.balance, seed=config.seed)
    counts = _counts(rows)
    payload: dict[str, Any] = {"clips": len(rows), "splits": counts, "paper": PAPER_CLIPS}
    payload["notes"] = notes = _notes(config, names, rows)
    lines = [_table(counts), "", *notes]
    if config.dry_run:
        check_rows(rows, manifest.roots)
        return Outcome(payload, "\n".join([*lines, "nothing was written (--dry-run)"]))
    out = _required_out(config)
    made = {
        "augment": {"per_clip": config.per_clip, "names": list(names), "balance": config.balance, "seed": config.seed},
        "parent": manifest.meta.digest,
    }
    meta = write_manifest(out, rows, manifest.roots, made)
    return Outcome(payload | {"out": out, "digest": meta.digest}, "\n".join([*lines, f"manifest: {out}"]))


def _refuse_options_of_manifests(config: AugmentJobConfig) -> None:
    for field in fields(config):
        if field.name not in ("manifest", "out", "gallery") and getattr(config, field.name) != field.default:
            name = field.name.replace("_", "-")
            raise InputError(
                f"--{name} is for a manifest, and --gallery shows one clip with every augmentation; leave it."
            )


def _required_out(config: AugmentJobConfig) -> str:
    if config.out is None:
        raise InputError("--out is missing; give the directory to write to.")
    return config.out


def _names(given: tuple[str, ...] | None) -> tuple[str, ...]:
    if given is None:
        return DEFAULT_NAMES
    return tuple(AUGMENTATIONS) if given == (_ALL,) else given


def _show(clip: str, out: str) -> Outcome:
    # They bring torch and the face detector, which a manifest does not need.
    from data_prep.augment_gallery import INDEX_NAME, SHEET_NAME, write_gallery
    from data_prep.clip import PrepareConfig
    from data_prep.rejects import RejectedError

    try:
        files = write_gallery(storage.absolute(clip), out, PrepareConfig())
    except RejectedError as error:
        raise InputError(f"{clip} cannot be shown: {error.reason} ({error.detail}); give another clip.") from error
    index, sheet = storage.join(out, INDEX_NAME), storage.join(out, SHEET_NAME)
    text = f"{len(AUGMENTATIONS)} augmentations: {sheet}; to listen: {index}"
    return Outcome({"out": out, "files": files, "names": list(AUGMENTATIONS)}, text)


def _counts(rows: Sequence[Row]) -> dict[str, dict[str, int]]:
    """Split -> {real, fake, augmented_real, augmented_fake, clips}."""
    counts: dict[str, dict[str, int]] = {}
    for row in rows:
        split = counts.setdefault(
            row["split"] or "none", dict.fromkeys(("real", "fake", "augmented_real", "augmented_fake", "clips"), 0)
        )
        split[("augmented_" if row["augmentation"] else "") + ("fake" if row["label"] else "real")] += 1
        split["clips"] += 1
    return {split: counts[split] for split in (*SPLITS, "none") if split in counts}


def _table(counts: dict[str, dict[str, int]]) -> str:
    frame = pd.DataFrame.from_dict(counts, orient="index")
    frame["paper"] = [f"{PAPER_CLIPS[split]:,}" if split in PAPER_CLIPS else "" for split in frame.index]
    return frame.rename(columns=lambda name: name.replace("_", " ")).to_string()


def _notes(config: AugmentJobConfig, names: Sequence[str], rows: Sequence[Row]) -> list[str]:
    notes = [f"{name}: {AUGMENTATIONS[name].note}." for name in names if AUGMENTATIONS[name].note]
    if config.balance != "paper":
        return notes
    notes.append(
        "With --balance paper every augmented clip is real: an augmentation's name, and any trace it leaves, tells the "
        "label; the audit prints the AUC of the name alone."
    )
    for split, lacking in shortfall(rows).items():
        if lacking:
            notes.append(
                f"In {split} the real clips stay {lacking:,} fewer than the fakes: none gets more than one child of "
                f"each of the {len(names)} augmentations."
            )
    return notes


def main(argv: Sequence[str] | None = None) -> int:
    """`stgs augment`; returns the exit code."""
    return run_command("augment", run, argv)


if __name__ == "__main__":
    sys.exit(main())
