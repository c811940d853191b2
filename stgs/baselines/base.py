"""What a baseline is: a network on whole clips, its loss and its scores.

Shapes: B clips, T frames of the longest of them.
"""

from __future__ import annotations

import abc
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from stgs.baselines.batch import Labels
from stgs.config import require, require_at_least

# A width must divide into 12 attention heads and 16 groups of the position convolution.
WIDTH_UNIT = 48


@dataclass(frozen=True, kw_only=True, slots=True)
class BaselineConfig:
    """Size of a baseline and margins of its losses; the defaults are those of MRDF's paper (reference.md section 7).

    layers: transformer layers; 0 is what the released code has in effect. width: of the encoder, a multiple of 48; the
    feed-forward layers are 4 times as wide, the video network has width // 12 channels at first. dropout: in [0, 1).
    margin_contrast, margin_audio, margin_visual: cosine in [-1, 1] that a pair which should differ may keep for free.

    Raises:
        InputError: a value outside these ranges.
    """

    layers: int = 12
    width: int = 768
    dropout: float = 0.1
    margin_contrast: float = 0.0
    margin_audio: float = 0.0
    margin_visual: float = 0.0

    def __post_init__(self) -> None:
        require_at_least("layers", self.layers, 0)
        require(
            self.width > 0 and self.width % WIDTH_UNIT == 0,
            f"width is {self.width}, but it must be a multiple of {WIDTH_UNIT} above 0, as 768 is.",
        )
        require(0 <= self.dropout < 1, f"dropout is {self.dropout}, but it must lie in [0, 1).")
        for field in ("margin_contrast", "margin_audio", "margin_visual"):
            value = getattr(self, field)
            require(-1 <= value <= 1, f"{field} is {value}, but it must lie in [-1, 1], as a cosine does.")


@dataclass(frozen=True, slots=True)
class Published:
    """Figures of a publication, of data and a protocol of its own: they stand beside measured ones, never among them.

    source: where they are printed. data: what they were measured on. accuracy, auc: in [0, 1]. note: how they were
    measured in another way than here, empty where they were not.
    """

    source: str
    data: str
    accuracy: float
    auc: float
    note: str = ""


class Baseline(nn.Module, abc.ABC):
    """Base of the networks that a found network is compared with.

    Inputs are those of a `stgs.baselines.batch.SequenceBatch`. In evaluation mode the outputs of a clip depend neither
    on the padding behind its end nor on the other clips. Batch normalisation is torch's own, so that training on
    several workers can replace it.

    Args:
        config: its size, kept as `config`.
    """

    published: ClassVar[Published | None] = None
    """What its authors report, if anything is known."""

    def __init__(self, config: BaselineConfig) -> None:
        super().__init__()
        self.config = config

    @abc.abstractmethod
    def forward(self, video: Tensor, audio: Tensor, lengths: Tensor) -> dict[str, Tensor]:
        """Outputs of B clips, each [B, ...], by name.

        video: float [B, 3, T, 100, 100]. audio: float [B, 104, T]. Both are zero behind a clip's end. lengths: int64
        [B], frames of each clip, 1 to T; on any device, best on the CPU: a GPU would be waited for.
        """

    @abc.abstractmethod
    def loss(self, outputs: Mapping[str, Tensor], labels: Labels) -> dict[str, Tensor]:
        """`loss`, which is minimised, and its terms, where it is the sum or the mean of several; float32 scalars.

        outputs: of a whole batch, all workers' clips together, since losses of pairs need all pairs.
        """

    @abc.abstractmethod
    def scores(self, outputs: Mapping[str, Tensor]) -> Tensor:
        """P(fake) of each clip, float64 [B], in [0, 1]."""

    def recompute_activations(self) -> None:
        """From here on, keep less in memory between the forward and the backward pass, and compute it anew; the default
        is for those that cannot. What is learnt is the same.
        """

    def released_state(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The arrays of a checkpoint that the baseline's authors released, by the names of this module's own state.

        A name that this module does not have is kept as it is. The default is for those with no other names.
        """
        return dict(state)
