"""Prepares every clip of a manifest: face crops and spectrograms of one window each, or the reason why there are none.

With --kind sequences it prepares whole clips, for the baselines: every frame's face crop, and filter banks. Beside the
corpus it writes audit.json: which facts of a clip give real and fake away without face or voice.

A stopped run goes on where it stopped when it is started again.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields

import pandas as pd

from cluster.audits import AUDIT_NAME, write_audit
from cluster.prepare import FACE_DEVICES, REJECTS, Config, prepare
from cluster.session import connect
from data_prep import boxes, storage
from data_prep.boxes import Meta
from data_prep.clip import PrepareConfig
from data_prep.contact_sheet import contact_sheet
from data_prep.sequence import SequenceConfig
from jobs.audit import audit_corpus, audit_text
from jobs.cli import PARTLY, Outcome, SessionOptions, UsageError, group, option, run_command

CONTACT_SHEET = "contact-sheet.jpg"
CLIPS, SEQUENCES = BOX_KINDS = ("clips", "sequences")
_LISTED = 20
_SEQUENCE_DEFAULTS = SequenceConfig()


@dataclass(frozen=True, kw_only=True)
class SequenceOptions:
    """Options of `stgs prepare --kind sequences` alone."""

    max_seconds: float | None = option(
        None, help=f"sequences: of a longer clip the first so many (default: {_SEQUENCE_DEFAULTS.max_seconds:g})"
    )
    min_face_share: float | None = option(
        None,
        help="sequences: a clip that shows the face in a smaller share of the searched frames is rejected: no_face "
        f"(default: {_SEQUENCE_DEFAULTS.min_face_share:g})",
    )


@dataclass(frozen=True, kw_only=True)
class PrepareJobConfig:
    """Options of `stgs prepare`."""

    manifest: str = option(help="directory of the manifest", positional=True, metavar="MANIFEST_DIR")
    out: str = option(help="directory for the corpus or the sequences, local or s3://")
    kind: str = option(
        CLIPS, help="clips: a window of each, to search with; sequences: whole clips, for baselines", choices=BOX_KINDS
    )
    contact_sheet: bool = option(False, help=f"also write {CONTACT_SHEET}: the faces and spectrograms of some clips")
    actors: int | None = option(None, help="processes, each with a CPU (default: one per CPU)")
    face_device: str = option(
        "auto", help="where faces are looked for; auto: on GPUs if every machine has one", choices=FACE_DEVICES
    )
    prepare: PrepareConfig = group(PrepareConfig)
    sequences: SequenceOptions = group(SequenceOptions)
    session: SessionOptions = group(SessionOptions)


def run(config: PrepareJobConfig) -> Outcome:
    """Prepare the clips; the exit code says whether some were refused."""
    start = time.monotonic()
    wanted = box_config(config)
    boxes.read_meta(config.manifest, boxes.MANIFEST)  # a wrong path is told before Ray starts
    with connect(**config.session.connect_arguments(config.out)):
        meta = prepare(config.manifest, config.out, wanted, actors=config.actors, face_device=config.face_device)
    seconds = time.monotonic() - start
    audit = audit_corpus(config.out, meta)
    write_audit(config.out, audit)
    rejects = read_rejects(config.out, meta)
    payload = {
        "out": config.out,
        "digest": meta.digest,
        "counts": meta.counts,
        "rejects": rejects.to_dict("records"),
        "audit": audit,
        "seconds": round(seconds, 1),
    }
    text = f"{_summary(config.out, meta, rejects, seconds)}\n\n{audit_text(audit)}"
    text += f"\naudit: {storage.join(config.out, AUDIT_NAME)}"
    if config.contact_sheet:
        sheet = storage.join(config.out, CONTACT_SHEET)
        shown = write_contact_sheet(config.out, meta, sheet)
        payload["contact_sheet"] = sheet
        text += f"\ncontact sheet of {shown} clips: {sheet}"
    return Outcome(payload, text, PARTLY if len(rejects) else 0)


def box_config(config: PrepareJobConfig) -> Config:
    """What is prepared how. Raises UsageError if an option of the other kind is given, InputError if one is wrong."""
    own = {name: value for name in _names(SequenceOptions) if (value := getattr(config.sequences, name)) is not None}
    if config.kind == CLIPS:
        if own:
            raise UsageError(f"{_flag(next(iter(own)))} is for --kind {SEQUENCES}; leave it out, or give that.")
        return config.prepare
    unlike = PrepareConfig()
    for name in _names(PrepareConfig):
        value = getattr(config.prepare, name)
        if name in _names(SequenceConfig):
            own[name] = value
        elif value != getattr(unlike, name):
            raise UsageError(f"{_flag(name)} is not for --kind {SEQUENCES}, which takes whole clips; leave it out.")
    return SequenceConfig(**own)


def _names(config_class: type) -> list[str]:
    return [field.name for field in fields(config_class)]


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def read_rejects(corpus: str, meta: Meta) -> pd.DataFrame:
    """All rejects of a corpus: columns clip_id, path, reason, detail, in order of clip_id."""
    parts = sorted(name for name in meta.files if name.startswith(f"{REJECTS}/"))
    return pd.concat([boxes.read_table(storage.join(corpus, part)).to_pandas() for part in parts], ignore_index=True)


def write_contact_sheet(corpus: str, meta: Meta, target: str) -> int:
    """Write a picture of some clips of `corpus`; returns their number."""
    parts = sorted(name for name in meta.files if "/" not in name)
    margin = meta.config["face_margin"] if meta.config["faces"] == "mtcnn" else None
    uris = [storage.join(corpus, part) for part in parts]
    data, shown = contact_sheet(uris, face_margin=margin, sequences=meta.kind == boxes.SEQUENCES)
    storage.write(target, data)
    return shown


def _summary(out: str, meta: Meta, rejects: pd.DataFrame, seconds: float) -> str:
    counts = meta.counts
    lines = [f"{counts['clips']} of {counts['rows']} clips prepared in {seconds:.1f} s, {counts['rejects']} refused"]
    lines += [f"  {name}: {counts[name]}" for name in sorted(counts) if name.startswith("category.")]
    lines += [f"  {name}: {counts[name]}" for name in sorted(counts) if name.startswith("reject.")]
    lines += [f"    {row.clip_id}: {row.reason} ({row.detail})" for row in rejects.head(_LISTED).itertuples()]
    if len(rejects) > _LISTED:
        lines.append(f"    ... and {len(rejects) - _LISTED} more, in {storage.join(out, REJECTS)}")
    return "\n".join([*lines, f"{meta.kind}: {out}"])


def main(argv: Sequence[str] | None = None) -> int:
    """`stgs prepare`; returns the exit code."""
    return run_command("prepare", run, argv)


if __name__ == "__main__":
    sys.exit(main())
