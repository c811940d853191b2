"""What a look at a run needs of its config.yaml; loads neither torch nor Ray, as `cluster.watching` does not."""

from __future__ import annotations

import yaml

from data_prep import storage
from data_prep.storage import InputError


def watched_settings(run: str) -> tuple[int | None, tuple[str, ...]]:
    """What the run's configuration says: the epochs that each search is allowed, None where it does not say so, and the
    names of the parts of its protocol.

    Raises InputError where there is no run.
    """
    try:
        content = yaml.safe_load(storage.read(storage.join(run, "config.yaml")))
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{run} is no run: it has no config.yaml; give the --out of 'stgs grid'.") from None
    except yaml.YAMLError as error:
        raise InputError(f"{run}/config.yaml is damaged ({' '.join(str(error).split())}).") from None
    except UnicodeDecodeError:
        raise InputError(f"{run}/config.yaml is damaged (it is no text).") from None
    epochs = _below(content, "config", "settings", "search", "epochs")
    parts = _below(content, "config", "protocol", "parts")
    return epochs if isinstance(epochs, int) else None, tuple(parts) if isinstance(parts, dict) else ()


def _below(content: object, *keys: str) -> object:
    for key in keys:
        content = content.get(key) if isinstance(content, dict) else None
    return content
