"""Settings of searches: what all points of a run have in common, and the axes along which they differ."""

from __future__ import annotations

import fnmatch
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, Literal, TypeVar

from cluster.attempts import Point
from cluster.features import FeatureSource
from data_prep.storage import InputError
from stgs.config import SearchConfig, WeightSchedule
from stgs.cost import require_fitting
from stgs.estimators import SAMPLERS, UNIFORM
from stgs.search_space import SearchSpace, search_space
from stgs.supernet import Member

SENSES = ("both", "visual", "audio")
DEVICES = ("auto", "cpu", "cuda")
AUTO: Literal["auto"] = "auto"
# The kind of a run that was begun from genotypes, as its config.yaml says.
GENOTYPES = "genotypes"
# Seeds of members are int64, and those of NumPy are not negative.
_LARGEST_SEED = 2**63 - 1
# How a search is run, not what is searched: the same for all points of a run.
_NO_AXES = ("device", "threads", "checkpoint_epochs", "checkpoint_minutes", "candidates")
# Random genotypes that a command's search has its supernet score, and size of the random arm: with fewer of them, no
# rank correlation is told.
CANDIDATES = 16

Settings = TypeVar("Settings")
Options = tuple[tuple[str, Any], ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class SearchSettings:
    """What a search is made of beside its point.

    preset: `default`, or `released` for the released code's space. sense: features of `both` senses, or of one.
    feature_names: features to search, patterns such as visual.* among them (default: all of the box). operations:
    candidates of a step (default: the preset's). earlier_cells: whether a cell may read earlier ones (default: as the
    preset). tail: how a supernet's cell joins its steps, `concat` or `weighted_sum` (default: the preset's). num_cells,
    num_steps, channels: size of the space. length: positions of a sequence feature, a divisor of the box's, to which
    neighbouring ones are max-pooled (default: the box's). device: `auto`, `cpu` or `cuda`. threads: of a CPU process;
    the bits depend on it. checkpoint_epochs: epochs between two saved states. checkpoint_minutes: a
    state is also saved inside an epoch after so long, above 0 (default: only after epochs); a search of backbones that
    goes on from there reads the epoch's clips from the first one on, but trains on those that come next alone.
    """

    preset: str = "default"
    sense: str = "both"
    feature_names: tuple[str, ...] | None = None
    operations: tuple[str, ...] | None = None
    earlier_cells: bool | None = None
    tail: str | None = None
    num_cells: int = 2
    num_steps: int = 2
    channels: int = 128
    length: int | None = None
    device: str = "auto"
    threads: int = 1
    checkpoint_epochs: int = 1
    checkpoint_minutes: float | None = None
    search: SearchConfig = field(default_factory=SearchConfig)

    def __post_init__(self) -> None:
        _require_at_least(self, threads=1, checkpoint_epochs=1)
        if self.checkpoint_minutes is not None and not self.checkpoint_minutes > 0:
            raise InputError(f"checkpoint_minutes is {self.checkpoint_minutes:g}, but it must be above 0.")
        for name, allowed in (("sense", SENSES), ("device", DEVICES)):
            if getattr(self, name) not in allowed:
                raise InputError(f"{name} is {getattr(self, name)!r}; choose from {', '.join(allowed)}.")

    def space(self, source: FeatureSource) -> SearchSpace:
        """The search space over the features of a box.

        Raises:
            InputError: a value that no space has, a feature that the box lacks, or a limit on the parameters that the
                smallest network exceeds.
        """
        given = {name: getattr(self, name) for name in ("operations", "earlier_cells", "tail")}
        space = search_space(
            self.preset,
            chosen_features(source, self.feature_names),
            length=_length(source, self.length),
            num_cells=self.num_cells,
            num_steps=self.num_steps,
            channels=self.channels,
            **{name: value for name, value in given.items() if value is not None},
        )
        space = space if self.sense == "both" else space.restricted(self.sense)
        require_fitting(space, self.search.max_parameters)
        return space


def chosen_features(source: FeatureSource, patterns: Sequence[str] | None) -> dict[str, int]:
    """The box's features, name -> channels in its order, that some pattern matches; None: all of them.

    Raises InputError for a pattern that matches none.
    """
    for pattern in patterns or ():
        if not fnmatch.filter(source.features, pattern):
            raise InputError(f"feature_names has {pattern!r}, but {source.uri} holds {', '.join(source.features)}.")
    return {
        name: size
        for name, size in source.features.items()
        if patterns is None or any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
    }


def _length(source: FeatureSource, length: int | None) -> int:
    if length is None:
        return source.length
    if source.finetune is not None and length != source.length:
        raise InputError(
            f"length is {length}, but backbones that are trained give {source.length} positions, one a frame; leave "
            "length out, or prepare a corpus with as many frames."
        )
    if length < 1 or source.length % length:
        raise InputError(
            f"length is {length}, but the features of {source.uri} have {source.length} positions; give a divisor."
        )
    return length


def _require_at_least(config: object, **lowest: int) -> None:
    for name, value in lowest.items():
        if getattr(config, name) < value:
            raise InputError(f"{name} is {getattr(config, name)}, but it must be at least {value}.")


def named_settings(config: Any) -> Iterator[tuple[str, Any]]:
    """Name and value of the settings in a configuration and in those that it holds."""
    for item in fields(config):
        value = getattr(config, item.name)
        if is_dataclass(value):
            yield from named_settings(value)
        else:
            yield item.name, value


AXES = tuple(name for name, _ in named_settings(SearchSettings()) if name not in _NO_AXES)


def settings_of(settings: Settings, options: Options) -> Settings:
    """`settings` with a point's options in their places, which may lie in the configurations that it holds."""
    values = dict(options)
    changes = {}
    for item in fields(settings):  # type: ignore[arg-type]
        value = getattr(settings, item.name)
        if is_dataclass(value):
            changes[item.name] = settings_of(value, options)
        elif item.name in values:
            changes[item.name] = values[item.name]
    return replace(settings, **changes)  # type: ignore[type-var]


@dataclass(frozen=True, kw_only=True, slots=True)
class GridConfig:
    """What a grid searches: every combination of the axes is a point.

    temperatures: of the Gumbel-softmax (lambda), above 0. num_samples: numbers of Gumbel samples (M), at least 1.
    estimators: gradient estimators (`stgs.estimators.ESTIMATORS`), or `uniform`: no gradient, but architectures drawn
    by chance, and the best on dev of the candidates. seeds: of initial weights, noise and dropout. axes: further ones,
    each a setting's name (`AXES`) with its values; `settings` holds the first of each. shuffles: 0, or the number of
    points with shuffled labels that stand in the place of each point (a control). pack: points that are searched as one
    population, `auto` for as many as a device's memory holds, but no more than ceil(points / devices). devices: GPUs
    or, without any, CPU processes that packs are planned for (default: those of the cluster, with what its autoscaler
    may still start).
    """

    temperatures: tuple[float, ...] = (5.0, 10.0, 15.0, 20.0)
    num_samples: tuple[int, ...] = (5, 10, 15, 20)
    estimators: tuple[str, ...] = ("stgs",)
    seeds: tuple[int, ...] = (0,)
    axes: Mapping[str, tuple[Any, ...]] = field(default_factory=dict, metadata={"axes": AXES})
    shuffles: int = 0
    pack: int | Literal["auto"] = AUTO
    devices: int | None = None
    settings: SearchSettings = field(default_factory=SearchSettings)

    def __post_init__(self) -> None:
        for name in ("temperatures", "num_samples", "estimators", "seeds"):
            _require_values(name, getattr(self, name))
        _require_at_least(self, shuffles=0)
        _require_at_least(self, **{name: 1 for name in ("pack", "devices") if getattr(self, name) not in (AUTO, None)})
        for estimator in self.estimators:
            if estimator not in SAMPLERS:
                raise InputError(f"estimators names {estimator!r}; choose from {', '.join(SAMPLERS)}.")
        if UNIFORM in self.estimators and not self.settings.search.candidates:
            raise InputError(f"candidates is 0, but the estimator {UNIFORM!r} chooses among them; give at least 1.")
        for temperature, samples in itertools.product(self.temperatures, self.num_samples):
            Member(temperature, samples, 0)  # refuses values out of range
        for seed in self.seeds:
            if not 0 <= seed <= _LARGEST_SEED:
                raise InputError(f"seeds has {seed}, but a seed must lie in [0, {_LARGEST_SEED}].")
        self._settle_axes()
        ids = [point.id for point in self.points()]
        if len(set(ids)) < len(ids):
            twice = next(name for name in ids if ids.count(name) > 1)
            raise InputError(f"two points would be called {twice}; give values that differ more.")

    def _settle_axes(self) -> None:
        """Check the axes, order them as the settings are ordered, and put the first values into the settings."""
        for name, values in self.axes.items():
            if name not in AXES:
                raise InputError(f"axes names {name!r}; choose from {', '.join(AXES)}.")
            _require_values(name, values)
            if len(values) > 1 and None in values:
                raise InputError(f"{name} is {list(values)}; name each value of an axis, the preset's, too.")
        ordered = {name: tuple(self.axes[name]) for name in AXES if name in self.axes}
        # JSON gives lists for the values that are tuples.
        ordered = {name: tuple(_tuple(value) for value in values) for name, values in ordered.items()}
        object.__setattr__(self, "axes", {name: values for name, values in ordered.items() if len(values) > 1})
        firsts = tuple((name, values[0]) for name, values in ordered.items())
        object.__setattr__(self, "settings", settings_of(self.settings, firsts))
        for options in self.options():
            settings_of(self.settings, options)  # refuses values out of range

    def options(self) -> list[Options]:
        """Every combination of the values of `axes`: what a population has in common, beside its estimator."""
        named = [[(name, value) for value in values] for name, values in self.axes.items()]
        return list(itertools.product(*named))

    def points(self) -> list[Point]:
        """All points, in the order of the options, temperature, num_samples, estimator, seed, shuffle."""
        shuffles: Sequence[int | None] = range(self.shuffles) if self.shuffles else [None]
        axes = (self.temperatures, self.num_samples, self.estimators, self.seeds, shuffles)
        return [Point(*values, options=options) for options in self.options() for values in itertools.product(*axes)]


def _require_values(name: str, values: Sequence[Any]) -> None:
    if not values or len({repr(value) for value in values}) != len(values):
        raise InputError(f"{name} is {list(values)}; give at least one value, each once.")


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def config_from_dict(content: Mapping[str, Any]) -> GridConfig:
    """The grid's settings from a run's config.yaml (`asdict` of a GridConfig, beside the digests).

    A setting that the file does not name, since it is newer than the run, has its default; so have all settings of a
    search where there was none (`cluster.genotype_runs`). Raises InputError for one that this program does not know.
    """
    if content.get("kind") == GENOTYPES:
        return GridConfig(seeds=tuple(content["seeds"]), settings=SearchSettings(device=content["settings"]["device"]))
    settings = {name: _tuple(value) for name, value in content["settings"].items()}
    search = dict(settings.pop("search"))
    search["weights"] = _known(WeightSchedule, search["weights"])
    axes = {name: tuple(content[name]) for name in ("temperatures", "num_samples", "estimators", "seeds")}
    return GridConfig(
        **axes,
        axes=content.get("axes", {}),
        shuffles=content["shuffles"],
        # Files of earlier versions have 0 for `auto`.
        pack=content["pack"] or AUTO,
        devices=content.get("devices"),
        settings=_known(SearchSettings, {**settings, "search": _known(SearchConfig, search)}),
    )


def _known(config_class: type[Settings], values: Mapping[str, Any]) -> Settings:
    """The configuration of these values. Raises InputError for a name that it has not."""
    unknown = sorted(set(values) - {item.name for item in fields(config_class)})  # type: ignore[arg-type]
    if unknown:
        raise InputError(
            f"the run's settings have {', '.join(unknown)}, which this program does not know; use the version that "
            "searched it."
        )
    return config_class(**values)
