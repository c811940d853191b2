"""Lists the clips of a data set: which there are, what is fake in them, who speaks, and which split they belong to.

SOURCE  ROOT
folder       a folder with RealVideo-RealAudio, RealVideo-FakeAudio, FakeVideo-RealAudio and FakeVideo-FakeAudio (or A,
             B, C, D), each with clips or with one folder per subject; or a csv file with the columns of a manifest,
             whose paths are relative to its own folder; or the folder of the released code, with label2.txt and
             source.txt
fakeavceleb  FakeAVCeleb, with or without its meta_data.csv
swan-df      SWAN-DF, whose real clips are those of SWAN: --swan
merge        manifests, any number of them: joins their clips, and splits them anew unless --keep-splits is given; of
             one manifest alone, this makes another split of the same clips, for which a corpus need not be made again

Clips that a split does not use stay in the manifest, without a split.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from data_prep.fakeavceleb import fakeavceleb_manifest
from data_prep.folders import folder_manifest
from data_prep.leaks import split_summary, summary_lines
from data_prep.manifest import Listing, Row, merge_manifests, targets_of, write_manifest
from data_prep.rejects import MOST_TIMEOUT_S
from data_prep.splits import SplitConfig, SplitResult, split_rows
from data_prep.storage import InputError
from data_prep.swan_df import swan_df_manifest
from jobs.cli import PARTLY, Outcome, group, option, run_command

_DATASETS = {"folder": "clips", "fakeavceleb": "FakeAVCeleb", "swan-df": "SWAN-DF"}
_MERGE = "merge"
_LISTED = 20


@dataclass(frozen=True, kw_only=True)
class ManifestJobConfig:
    """Options of `stgs manifest`."""

    source: str = option(
        help="what ROOT is, see above", choices=(*_DATASETS, _MERGE), positional=True, metavar="SOURCE"
    )
    roots: tuple[str, ...] = option(
        help="the data set's folder, or the manifests to merge; local or s3://", positional=True, metavar="ROOT"
    )
    out: str = option(help="directory for the manifest")
    dataset: str | None = option(
        None, help="name of the data set and of its root (default: clips, FakeAVCeleb or SWAN-DF)"
    )
    swan: str | None = option(None, help="SWAN's folder (SWAN-Idiap, IDIAP or session_01), for swan-df")
    split: SplitConfig = group(SplitConfig)
    keep_splits: bool = option(False, help="leave splits and folds as ROOT has them: merge, csv, released layout")
    audit: bool = option(False, help="read every file's facts, and say which of them give real and fake away")
    clip_timeout: float = option(60.0, help="seconds until the audit gives a file up")
    processes: int | None = option(None, help="processes of the audit (default: one per CPU)")


def run(config: ManifestJobConfig) -> Outcome:
    """List the clips, split them, write the manifest, and say what the splits hold and leak."""
    listing = _listing(config)
    result = _split(listing.rows, config)
    meta = write_manifest(config.out, result.rows, listing.roots, asdict(config))
    summary = split_summary(result.rows)
    payload: dict[str, Any] = {
        "out": config.out,
        "digest": meta.digest,
        **_totals(result.rows),
        "splits": {name: counts for name, counts in summary.items() if name != "leaks"},
        "leaks": summary["leaks"],
        "dropped": result.dropped,
        "split_notes": result.notes,
        "unfit": _reasons(listing.unfit),
        "notes": _reasons(listing.notes),
    }
    lines = [_totals_line(payload), "", *summary_lines(summary), *_dropped_lines(result), "", f"manifest: {config.out}"]
    lines += _file_lines("files left out", listing.unfit) + _file_lines("remarks on clips", listing.notes)
    if config.audit:
        # Brings the codec libraries and statistics, for this option alone.
        from jobs.audit import audit_manifest, audit_text

        processes = config.processes or os.cpu_count() or 1
        audit = audit_manifest(result.rows, listing.roots, clip_timeout=config.clip_timeout, processes=processes)
        payload["audit"] = audit
        refused = [(clip["clip_id"], f"{clip['reason']} ({clip['detail']})") for clip in audit["refused_clips"]]
        lines += ["", audit_text(audit), *_file_lines("clips that cannot be read", refused)]
    partly = listing.unfit or payload.get("audit", {}).get("refused_clips")
    return Outcome(payload, "\n".join(lines), PARTLY if partly else 0)


def _split(rows: list[Row], config: ManifestJobConfig) -> SplitResult:
    if config.keep_splits:
        return SplitResult(rows=rows, dropped={}, notes=[])
    result = split_rows(rows, config.split)
    if all(row["split"] is None and row["fold"] is None for row in rows):
        return result
    return replace(result, notes=[*result.notes, "ROOT's own splits are replaced; --keep-splits leaves them."])


def _listing(config: ManifestJobConfig) -> Listing:
    if not config.roots:
        raise InputError(f"ROOT is missing; give what {config.source} reads.")
    if (config.swan is not None) != (config.source == "swan-df"):
        raise InputError("SWAN-DF holds fakes alone: give --swan with the folder of SWAN for swan-df, and only there.")
    if config.keep_splits and config.source in ("fakeavceleb", "swan-df"):
        raise InputError(f"{config.source} has no splits of its own to keep; leave out --keep-splits.")
    if config.keep_splits and config.split != SplitConfig():
        raise InputError("--keep-splits leaves the splits as they are; leave it out, or --split and its options.")
    if config.processes is not None and config.processes < 1:
        raise InputError(f"processes is {config.processes}; give at least 1.")
    if not 0 < config.clip_timeout <= MOST_TIMEOUT_S:
        raise InputError(f"clip_timeout is {config.clip_timeout}; give seconds above 0, at most {MOST_TIMEOUT_S:,}.")
    if config.source == _MERGE:
        if config.dataset is not None:
            raise InputError(
                f"--dataset is {config.dataset!r}, but merged clips keep the names of their own; leave it."
            )
        return merge_manifests(config.roots)
    if len(config.roots) != 1:
        raise InputError(f"{config.source} reads one ROOT, not {len(config.roots)}; list them singly, then merge them.")
    (root,) = config.roots
    dataset = _DATASETS[config.source] if config.dataset is None else config.dataset
    if config.source == "fakeavceleb":
        return fakeavceleb_manifest(root, dataset=dataset)
    if config.source == "swan-df":
        return swan_df_manifest(root, str(config.swan), dataset=dataset)
    return folder_manifest(root, dataset=dataset)


def _totals(rows: Sequence[Row]) -> dict[str, Any]:
    """Counts of all splits together; equal names in two data sets are two people."""
    targets = {(row["dataset"], target) for row in rows for target in targets_of(row)}
    return {
        "clips": len(rows),
        "subjects": len({(row["dataset"], row["subject"]) for row in rows}),
        "targets": len(targets),
        "categories": dict(sorted(Counter(row["category"] for row in rows).items())),
    }


def _totals_line(totals: Mapping[str, Any]) -> str:
    categories = ", ".join(f"{name} {clips:,}" for name, clips in totals["categories"].items())
    return (
        f"{totals['clips']:,} clips of {totals['subjects']:,} subjects, imitating {totals['targets']:,} known targets: "
        f"{categories}"
    )


def _dropped_lines(result: SplitResult) -> list[str]:
    lines = [f"{clips:,} clips in no split: {reason}" for reason, clips in result.dropped.items()] + result.notes
    return ["", *lines] if lines else []


def _reasons(items: Sequence[tuple[str, str]]) -> list[dict[str, str]]:
    return [{"path": _printable(path), "reason": reason} for path, reason in items]


def _file_lines(title: str, items: Sequence[tuple[str, str]]) -> list[str]:
    if not items:
        return []
    lines = ["", f"{title}: {len(items)}"] + [f"  {_printable(path)}: {reason}" for path, reason in items[:_LISTED]]
    return lines + ([f"  ... and {len(items) - _LISTED} more (--json lists all)"] if len(items) > _LISTED else [])


def _printable(path: str) -> str:
    """`path` with what is no UTF-8 in it, as file names may have, written out."""
    return path.encode("utf-8", "backslashreplace").decode("utf-8")


def main(argv: Sequence[str] | None = None) -> int:
    """`stgs manifest`; returns the exit code."""
    return run_command("manifest", run, argv)


if __name__ == "__main__":
    sys.exit(main())
