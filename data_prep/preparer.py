"""What those that prepare clips hold while they do: a face detector and a decoder."""

from typing import Protocol, Self

from data_prep.decoder import Decoder
from data_prep.faces import FaceDetector, MtcnnDetector


class FaceSettings(Protocol):
    """What a preparer's configuration says of faces and decoding; see `clip.PrepareConfig`."""

    @property
    def faces(self) -> str: ...
    @property
    def detect_max_side(self) -> int: ...
    @property
    def min_face_size(self) -> int: ...
    @property
    def clip_timeout(self) -> float: ...


class Preparer:
    """Base of those that make rows of clips. Construction is slow (it loads the detector); one per process is enough.

    detector: finds faces; by default the one that `settings.faces` names. decoder: decodes; by default an own one,
    whose process ends with `close`, with this object, or with the program.
    """

    def __init__(self, settings: FaceSettings, detector: FaceDetector | None, decoder: Decoder | None) -> None:
        if detector is None and settings.faces == "mtcnn":
            detector = MtcnnDetector(max_side=settings.detect_max_side, min_face_size=settings.min_face_size)
        self._detector = detector
        self._own_decoder = Decoder(timeout_s=settings.clip_timeout)
        self._decoder = self._own_decoder if decoder is None else decoder

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the decoder's process, if the decoder is this object's own."""
        self._own_decoder.close()
