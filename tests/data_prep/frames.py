"""What several tests of decoded frames share."""

import av


class Shown:
    """A sink that keeps what it gets, until it has `enough`."""

    def __init__(self, enough: int = 10_000) -> None:
        self.frames: list[av.VideoFrame] = []
        self.enough = enough

    @property
    def done(self) -> bool:
        return len(self.frames) >= self.enough

    def add(self, frame: av.VideoFrame) -> None:
        self.frames.append(frame)
