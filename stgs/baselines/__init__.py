"""Baselines: detectors of other publications, trained and measured on the same clips as found networks.

A further one is a file with a subclass of `Baseline`, and a line in `BASELINES`.
"""

from stgs.baselines.avdf import Avdf
from stgs.baselines.avdf_ensemble import AvdfEnsemble
from stgs.baselines.avdf_multiclass import AvdfMulticlass
from stgs.baselines.avdf_multilabel import AvdfMultilabel
from stgs.baselines.base import Baseline, BaselineConfig, Published
from stgs.baselines.mrdf_ce import MrdfCe
from stgs.baselines.mrdf_margin import MrdfMargin
from stgs.config import InputError

__all__ = ["BASELINES", "Baseline", "BaselineConfig", "Published", "make_baseline"]

BASELINES: dict[str, type[Baseline]] = {
    "mrdf_ce": MrdfCe,
    "mrdf_margin": MrdfMargin,
    "avdf": Avdf,
    "avdf_ensemble": AvdfEnsemble,
    "avdf_multilabel": AvdfMultilabel,
    "avdf_multiclass": AvdfMulticlass,
}


def make_baseline(name: str, config: BaselineConfig) -> Baseline:
    """A baseline with random weights, drawn from torch's generator.

    Raises:
        InputError: a name that is none of `BASELINES`.
    """
    if name not in BASELINES:
        raise InputError(f"there is no baseline {name!r}; choose one of {', '.join(BASELINES)}.")
    return BASELINES[name](config)
