"""Stands in for `data_prep.decoder_child`: a file that begins with `hang` hangs it, one with `dead` crashes it."""

import os
import signal
from typing import Any

from data_prep import decoder_child
from data_prep.window import ClipWindow


def main(connection_number: int, memory_bytes: int) -> None:
    """What the genuine child does, but for those files."""
    read_window = decoder_child.window.read_window

    def hostile(video: int, sound: int | None, **settings: Any) -> ClipWindow:
        beginning = os.pread(video, 4, 0)
        if beginning == b"hang":
            signal.pause()
        if beginning == b"dead":
            os.abort()
        return read_window(video, sound, **settings)

    vars(decoder_child.window).update(read_window=hostile)
    decoder_child.main(connection_number, memory_bytes)
