"""What a look at a run needs of its config.yaml; loads neither torch nor Ray, as `cluster.watching` does not."""

from __future__ import annotations

from dataclasses import dataclass

import yaml

from cluster.baseline_names import KIND
from data_prep import storage
from data_prep.storage import InputError


@dataclass(frozen=True, slots=True)
class WatchedSettings:
    """epochs: that each training is allowed, None where the file does not say so. parts: of the run's protocol.
    is_baseline: whether it is a run of a baseline; shuffles: of that one, trainings with shuffled labels.
    """

    epochs: int | None
    parts: tuple[str, ...]
    is_baseline: bool = False
    shuffles: int = 0


def watched_settings(run: str) -> WatchedSettings:
    """What the run's configuration says. Raises InputError where there is no run."""
    try:
        content = yaml.safe_load(storage.read(storage.join(run, "config.yaml")))
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{run} is no run: it has no config.yaml; give the --out of 'stgs grid'.") from None
    except yaml.YAMLError as error:
        raise InputError(f"{run}/config.yaml is damaged ({' '.join(str(error).split())}).") from None
    except UnicodeDecodeError:
        raise InputError(f"{run}/config.yaml is damaged (it is no text).") from None
    is_baseline = _below(content, "config", "kind") == KIND
    keys = ("training", "epochs") if is_baseline else ("settings", "search", "epochs")
    epochs, shuffles = _below(content, "config", *keys), _below(content, "config", "shuffles")
    parts = _below(content, "config", "protocol", "parts")
    return WatchedSettings(
        epochs if isinstance(epochs, int) else None,
        tuple(parts) if isinstance(parts, dict) else (),
        is_baseline,
        shuffles if is_baseline and isinstance(shuffles, int) else 0,
    )


def _below(content: object, *keys: str) -> object:
    for key in keys:
        content = content.get(key) if isinstance(content, dict) else None
    return content
