"""The genotype: a decoded architecture, its JSON form, and what it costs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from stgs.config import InputError, require, require_at_least
from stgs.search_space import OPERATIONS

VERSION = 1


@dataclass(frozen=True, slots=True)
class StepGene:
    """One inner step: `operation` applied to two of the cell's states (`in1`, `in2`, `step1`, ...)."""

    operation: str
    inputs: tuple[str, str]


@dataclass(frozen=True, slots=True)
class CellGene:
    """One cell: its two inputs (features, or `cell1`, ... for earlier cells) and its steps in order."""

    inputs: tuple[str, str]
    steps: tuple[StepGene, ...]


@dataclass(frozen=True, slots=True)
class Genotype:
    """A decoded architecture (design.md section 3).

    features: name -> channels of all features that the search could choose from. channels, length: C and L.
    """

    features: Mapping[str, int]
    channels: int
    length: int
    cells: tuple[CellGene, ...]

    def __post_init__(self) -> None:
        for name, size in self.features.items():
            require_at_least(f"genotype.features[{name!r}]", size, 1)
            require(not name.startswith("cell"), f"feature {name!r} begins with 'cell', which names earlier cells.")
        for field in ("channels", "length"):
            require_at_least(f"genotype.{field}", getattr(self, field), 1)
        require(bool(self.cells), "genotype.cells is empty, but at least one cell is needed.")
        for number, cell in enumerate(self.cells):
            known = {*self.features, *(f"cell{index + 1}" for index in range(number))}
            _check_inputs(f"genotype.cells[{number}].inputs", cell.inputs, known)
            require(bool(cell.steps), f"genotype.cells[{number}].steps is empty, but at least one step is needed.")
            for index, step in enumerate(cell.steps):
                where = f"genotype.cells[{number}].steps[{index}]"
                states = {"in1", "in2", *(f"step{earlier + 1}" for earlier in range(index))}
                _check_inputs(f"{where}.inputs", step.inputs, states)
                require(
                    step.operation in OPERATIONS,
                    f"{where}.operation is {step.operation!r}; choose from {', '.join(OPERATIONS)}.",
                )

    @property
    def used_features(self) -> tuple[str, ...]:
        """The features that some cell reads, in index order; each has one reshape layer, shared by its readers."""
        read = {name for cell in self.cells for name in cell.inputs}
        return tuple(name for name in self.features if name in read)

    def to_dict(self) -> dict[str, Any]:
        """The JSON object of design.md section 3."""
        cells = [
            {
                "inputs": list(cell.inputs),
                "steps": [{"operation": step.operation, "inputs": list(step.inputs)} for step in cell.steps],
            }
            for cell in self.cells
        ]
        return {
            "version": VERSION,
            "features": dict(self.features),
            "channels": self.channels,
            "length": self.length,
            "cells": cells,
        }

    def to_json(self) -> str:
        """One line of JSON, the same for equal genotypes."""
        return json.dumps(self.to_dict())


def _check_inputs(where: str, inputs: tuple[str, str], known: set[str]) -> None:
    require(len(inputs) == 2, f"{where} is {list(inputs)}, but exactly 2 inputs are needed.")
    for name in inputs:
        require(name in known, f"{where} names {name!r}; it may name {', '.join(sorted(known))}.")


def genotype_from_dict(value: Any, source: str = "genotype") -> Genotype:
    """Read the JSON object of a genotype.

    Raises:
        InputError: `source` (the file's name, say) with the field that is missing or wrong.
    """
    try:
        require(value["version"] == VERSION, f"version is {value['version']!r}; this program reads version {VERSION}.")
        cells = tuple(
            CellGene(
                inputs=tuple(cell["inputs"]),
                steps=tuple(
                    StepGene(operation=step["operation"], inputs=tuple(step["inputs"])) for step in cell["steps"]
                ),
            )
            for cell in value["cells"]
        )
        features = {name: _whole(f"features[{name!r}]", size) for name, size in value["features"].items()}
        channels, length = (_whole(field, value[field]) for field in ("channels", "length"))
        return Genotype(features=features, channels=channels, length=length, cells=cells)
    except InputError as error:
        raise InputError(f"{source}: {error}") from None
    except KeyError as error:
        raise InputError(f"{source}: field {error} is missing; a genotype is written by 'stgs grid'.") from None
    except (TypeError, AttributeError, ValueError) as error:
        raise InputError(f"{source}: not a genotype ({error}); a genotype is written by 'stgs grid'.") from None


def _whole(field: str, value: Any) -> int:
    require(type(value) is int, f"genotype.{field} is {value!r}, but a whole number is needed.")
    return int(value)


def genotype_from_json(text: str, source: str = "genotype") -> Genotype:
    """Read a genotype from JSON text; raises `InputError` naming `source`."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{source}: not JSON ({error}); a genotype is written by 'stgs grid'.") from None
    return genotype_from_dict(value, source)


def reshape_parameters(size: int, channels: int) -> int:
    """Parameters of the reshape layer of a feature of `size` channels: Conv(size -> C), batch norm."""
    return size * channels + channels + 2 * channels


def operation_costs(channels: int, length: int) -> dict[str, tuple[int, int]]:
    """Operation -> (parameters, multiply-accumulates a clip) of one step."""
    plane = channels * length
    return {
        "zero": (0, 0),
        "sum": (0, 0),
        "attention": (2 * plane, 2 * length * plane),
        "linear_glu": (4 * channels * channels + 2 * channels + 4 * channels, 4 * channels * plane),
        "concat_fc": (2 * channels * channels + channels + 2 * channels, 2 * channels * plane),
    }


def tail_parameters(num_steps: int, channels: int, length: int) -> int:
    """Parameters of a found cell's tail: Conv(steps * C -> C), batch norm, layer norm."""
    return num_steps * channels * channels + channels + 2 * channels + 2 * channels * length


def head_parameters(num_cells: int, channels: int, length: int) -> int:
    """Parameters of the layer norm before the classifier."""
    return 2 * num_cells * channels * length


def _layers(genotype: Genotype) -> Iterator[tuple[str, int, int]]:
    """(part, parameters, multiply-accumulates a clip) of every layer but the classifier."""
    width, length = genotype.channels, genotype.length
    for name in genotype.used_features:
        size = genotype.features[name]
        positions = 1 if name.endswith(".pooled") else length
        yield f"reshape {name}", reshape_parameters(size, width), size * width * positions
    operations = operation_costs(width, length)
    for number, cell in enumerate(genotype.cells, start=1):
        for index, step in enumerate(cell.steps, start=1):
            yield (f"cell{number} step{index} {step.operation}", *operations[step.operation])
        steps = len(cell.steps)
        yield f"cell{number} tail", tail_parameters(steps, width, length), steps * width * width * length
    yield "head", head_parameters(len(genotype.cells), width, length), 0


def count_parameters(genotype: Genotype) -> int:
    """Parameters of the found network without its classifier: the count that the paper's Table 3 prints."""
    return sum(parameters for _, parameters, _ in _layers(genotype))


def count_classifier(genotype: Genotype) -> int:
    """Parameters of the classifier: Linear(cells * C * L -> 1)."""
    return len(genotype.cells) * genotype.channels * genotype.length + 1


def count_macs(genotype: Genotype) -> int:
    """Multiply-accumulates of one clip's pass through reshape layers, cells and classifier (backbones apart).

    Features whose name ends in `.pooled` are taken as one vector a clip, all others as sequences of length L.
    """
    return sum(macs for _, _, macs in _layers(genotype)) + count_classifier(genotype) - 1
