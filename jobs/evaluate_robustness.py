"""The part of `stgs evaluate` that prepares the test clips again, damaged: its options, and what it prints."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from cluster.features import FeatureSource
from cluster.robustness import measure
from cluster.session import connect
from data_prep.damages import DAMAGES
from data_prep.storage import InputError
from jobs.evaluate_text import estimate_text
from jobs.options import SessionOptions, option


@dataclass(frozen=True, kw_only=True)
class RobustnessOptions:
    """How damaged clips are measured."""

    robustness: bool = option(False, help="also prepare the test clips again, damaged, and score the found network")
    robustness_clips: int | None = option(
        None, help="at most so many test clips of a data set, half of them real (default: all)"
    )
    robustness_damages: tuple[str, ...] = option((), help="damages to measure (default: all)", choices=tuple(DAMAGES))
    actors: int | None = option(None, help="processes that prepare damaged clips (default: one per CPU)")
    threads: int | None = option(None, help="of the backbones in each (default: as the features were made)")
    device: str = option(
        "auto", help="where damaged clips pass detector and backbones", choices=("auto", "cpu", "cuda")
    )

    def __post_init__(self) -> None:
        for name in ("robustness_clips", "robustness_damages"):
            if getattr(self, name) and not self.robustness:
                raise InputError(f"{name} is given, but no damaged clips are asked for; add --robustness.")

    def connection(self, session: SessionOptions, run: str) -> AbstractContextManager[object]:
        """Ray, where it is needed."""
        return connect(**session.connect_arguments(run)) if self.robustness else nullcontext()


def measured(run: str, source: FeatureSource, options: RobustnessOptions, resamples: int) -> dict[str, dict[str, Any]]:
    """Data set -> robustness.json of one run that was evaluated; needs the connection."""
    return measure(
        run,
        source,
        damages=options.robustness_damages or None,
        clips=options.robustness_clips,
        actors=options.actors,
        threads=options.threads,
        device=options.device,
        resamples=resamples,
    )


def robustness_text(result: Mapping[str, Any]) -> str:
    """AUC by damage and severity, and without a sense, in lines."""
    lines = [
        f"{result['dataset']}: {result['network']} on {result['clips']} damaged test clips of {result['subjects']} "
        "subjects, AUC:"
    ]
    for damage in result["damages"]:
        lines.append(f"  {damage['name']} ({damage['text']})")
        for row in damage["rows"]:
            refused = ", ".join(f"{count} {reason}" for reason, count in row["reasons"].items())
            told = f"; {row['scored']} clips scored, {row['refused']} refused ({refused})" if refused else ""
            lines.append(f"    {row['label']:>24}  {estimate_text(row['auc'])}{told}")
    for row in result["missing"]:
        lines.append(f"  without {row['sense']} ({row['behaviour']}): {estimate_text(row['auc'])}")
    return "\n".join(lines)
