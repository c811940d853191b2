"""Prints how large a genotype is, and draws it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from data_prep import storage
from data_prep.storage import InputError
from jobs.cli import Outcome, option, run_command
from stgs.genotype import Genotype, count_classifier, count_macs, count_parameters, genotype_from_json


@dataclass(frozen=True, kw_only=True)
class DescribeConfig:
    """Options of `stgs describe`."""

    genotype: str = option(help="file with a genotype in JSON, local or s3://", positional=True, metavar="GENOTYPE")


def run(config: DescribeConfig) -> Outcome:
    """Count and draw."""
    try:
        text = storage.read(config.genotype).decode()
    except (FileNotFoundError, IsADirectoryError):
        raise InputError(f"{config.genotype} is no file; give the genotype.json of a point.") from None
    except UnicodeDecodeError:
        raise InputError(f"{config.genotype} is not text; give the genotype.json of a point.") from None
    genotype = genotype_from_json(text, config.genotype)
    payload = {
        "parameters": count_parameters(genotype),
        "parameters_with_classifier": count_parameters(genotype) + count_classifier(genotype),
        "macs": count_macs(genotype),
        "drawing": drawing(genotype),
    }
    lines = [f"{name}: {payload[name]:,}" for name in ("parameters", "parameters_with_classifier", "macs")]
    return Outcome(payload, "\n".join([*lines, *drawing(genotype)]))


def drawing(genotype: Genotype) -> list[str]:
    """The genotype as lines of text, a cell a paragraph."""
    lines = []
    for number, cell in enumerate(genotype.cells, start=1):
        lines.append(f"cell{number}: in1 = {cell.inputs[0]}, in2 = {cell.inputs[1]}")
        for index, step in enumerate(cell.steps, start=1):
            lines.append(f"  step{index} = {step.operation}({step.inputs[0]}, {step.inputs[1]})")
        steps = ", ".join(f"step{index}" for index in range(1, len(cell.steps) + 1))
        lines.append(f"  cell{number} = LayerNorm(reduce({steps}) + in1)")
    return [*lines, f"output = classifier({', '.join(f'cell{n}' for n in range(1, len(genotype.cells) + 1))})"]


def main(argv: Sequence[str] | None = None) -> int:
    """`stgs describe`; returns the exit code."""
    return run_command("describe", run, argv)


if __name__ == "__main__":
    sys.exit(main())
