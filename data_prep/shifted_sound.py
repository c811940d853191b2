"""The sound of a window that is taken earlier or later than its picture: what a file out of step gives."""

import numpy as np

from data_prep.audio import SoundCollector, copy_samples


class ShiftedSound(SoundCollector):
    """A SoundCollector whose window is that of the sound played `offset_s` late (early, if negative).

    The clip is taken round again beyond its ends, as a clip that is shorter than its window is; start_s, duration_s,
    window_start_s, window_s: as of `SoundCollector`. What it measures of the whole clip is what that one measures.
    """

    def __init__(
        self, *, start_s: float, duration_s: float, window_start_s: float, window_s: float, offset_s: float
    ) -> None:
        first_s = (window_start_s - offset_s) % duration_s
        super().__init__(start_s=start_s, duration_s=duration_s, window_start_s=first_s, window_s=window_s)

    def window(self) -> tuple[np.ndarray, int]:
        """As of `SoundCollector`."""
        self.require(min(self._window_start_s + self._window_s, self._duration_s))
        return self._window, self._rate

    def _keep(self, first: int, samples: np.ndarray) -> None:
        super()._keep(first, samples)
        # The same samples, one round later.
        copy_samples(self._window, round(self._window_start_s * self._rate), samples, first + self._num_samples())
