"""The paper's Tables 2, 3 and 4 (STGS-BMNAS, arXiv 2406.13384), printed figures beside what this run measured."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean
from typing import Any

from cluster.controls import AUDIO, CONCAT_LINEAR, GRID, SOFTMAX, VISUAL
from cluster.evaluation import MIXED
from jobs.report_facts import Reading, Row, RunFacts
from jobs.report_html import Html, count, section, tag
from jobs.report_rows import ARM_NAMES, DAY_S
from jobs.report_tables import Column, DataTable, value_of

# Table 2: method -> AUC and accuracy in percent, parameters in millions, GPU days.
PAPER_TABLE_2: dict[str, tuple[float, float | None, float | None, float | None]] = {
    "STGS-BMNAS": (94.4, 95.5, 0.26, 2.0),
    "BM-NAS": (92.26, 91.4, 0.62, 4.0),
    "POI-AV": (93.9, 90.9, None, None),
    "AV anomaly detection": (93.0, None, 41.0, None),
    "MultimodalTrace": (84.0, 91.26, 15.0, None),
    "Ensemble-learning": (84.0, 86.0, 12.0, None),
    "Voice-face": (82.0, 86.0, 174.0, None),
    "Not-made-for-each-other": (81.0, 84.56, 122.0, None),
    "ID-Reveal": (78.0, 80.1, 7.3, None),
}
# Table 3: (lambda, M) -> AUC in percent as printed, parameters.
PAPER_TABLE_3 = {
    (5, 5): ("86.7", 651776), (5, 10): ("87.3", 683776), (5, 15): ("89.2", 534400), (5, 20): ("91.4", 404096),
    (10, 5): ("92", 356096), (10, 10): ("94", 257920), (10, 15): ("92", 255872), (10, 20): ("90", 223187),
    (15, 5): ("94.5", 2165674), (15, 10): ("95.1", 201964), (15, 15): ("95.6", 196186), (15, 20): ("96.3", 185726),
    (20, 5): ("96.25", 183264), (20, 10): ("96.4", 177624), (20, 15): ("97.1", 170125), (20, 20): ("97.5", 162517),
}  # fmt: skip
# Table 4: (searched and trained on, tested on) -> AUC and accuracy in percent.
PAPER_TABLE_4 = {
    ("FakeAVCeleb", "FakeAVCeleb"): (92.7, 91.8),
    ("FakeAVCeleb", "SWAN-DF"): (85.6, 84.7),
    ("SWAN-DF", "FakeAVCeleb"): (84.8, 83.2),
    ("SWAN-DF", "SWAN-DF"): (93.1, 92.8),
}
PAPER_DATASETS = {"FakeAVCeleb", "SWAN-DF"}
_OURS = {GRID: "found network", VISUAL: "visual only", AUDIO: "audio only", SOFTMAX: "", CONCAT_LINEAR: ""}
_PAPER, _RUN = "paper", "this run"


def other_data(datasets: set[str]) -> bool:
    """Whether clips are not those that the paper's are drawn from."""
    return not datasets or datasets - {MIXED} != PAPER_DATASETS


def mark(datasets: set[str]) -> str:
    """What stands in a heading over the paper's figures and ours."""
    return "on other data" if other_data(datasets) else "on the same data sets, other splits"


def datasets_of(facts: RunFacts) -> set[str]:
    return {str(reading.dataset) for reading in facts.tested}


def table_2(facts: RunFacts) -> DataTable:
    """Our found network, single senses and baselines with the paper's rows. AUC and accuracy in percent."""
    columns = (
        Column(key="source", head="source", text=True),
        Column(key="method", head="method", text=True),
        Column(key="dataset", head="clips", text=True),
        Column(key="auc", head="AUC, %", show=_percent),
        Column(key="auc_low", head="low", show=_percent),
        Column(key="auc_high", head="high", show=_percent),
        Column(key="accuracy", head="accuracy, %", show=_percent),
        Column(key="parameters", head="parameters", show=count),
        Column(key="gpu_days", head="search, GPU days", show=lambda value: f"{value:.2g}"),
        Column(key="device_days", head="search, device days", show=lambda value: f"{value:.2g}"),
    )
    rows = [_our_row(facts, reading, arm) for reading in facts.tested for arm in _OURS]
    for method, (auc, accuracy, millions, days) in PAPER_TABLE_2.items():
        parameters = None if millions is None else round(millions * 1e6)
        row = {"auc": auc, "accuracy": accuracy, "parameters": parameters, "gpu_days": days}
        rows.append({"source": _PAPER, "method": method, "dataset": "FakeAVCeleb + SWAN-DF", **row})
    return DataTable("table2", columns, [row for row in rows if row is not None])


def _our_row(facts: RunFacts, reading: Reading, arm: str) -> Row | None:
    name = reading.found if arm == GRID else reading.best_of(arm)
    if name is None:
        return None
    network = reading.networks[name]
    auc, searched = network["auc"], facts.arms.get(arm)
    days = searched.device_seconds / DAY_S if searched else None
    on_gpu = searched is not None and searched.grid.settings.device == "cuda"
    return {
        "source": _RUN,
        "method": _OURS[arm] or ARM_NAMES[arm],
        "dataset": reading.dataset,
        **{
            key: _times_100(auc.get(part)) for key, part in (("auc", "value"), ("auc_low", "low"), ("auc_high", "high"))
        },
        "accuracy": _times_100(value_of(network["accuracy"])),
        "parameters": network["parameters"],
        "gpu_days": days if on_gpu else None,
        "device_days": days,
    }


def _times_100(value: float | None) -> float | None:
    return None if value is None else 100 * value


def _percent(value: float) -> str:
    return f"{value:.1f}" if abs(value * 10 - round(value * 10)) < 1e-9 else f"{value:.2f}"


def table_3(facts: RunFacts) -> DataTable:
    """The paper's grid with ours, means over seeds: AUC in percent, parameters."""
    columns = (
        Column(key="temperature"),
        Column(key="num_samples"),
        Column(key="paper_auc"),
        Column(key="paper_parameters"),
        Column(key="dataset"),
        Column(key="estimator"),
        Column(key="options"),
        Column(key="networks"),
        Column(key="auc"),
        Column(key="parameters"),
    )
    cells: dict[tuple[Any, ...], list[Row]] = {}
    for reading in facts.tested:
        for row in facts.main.rows:
            network = reading.point_network(row["id"])
            if network is not None and value_of(network["auc"]) is not None:
                place = (row["temperature"], row["num_samples"], reading.dataset, row["estimator"], row["options"])
                cells.setdefault(place, []).append(network)
    rows = [
        {
            **dict(zip(("temperature", "num_samples", "dataset", "estimator", "options"), place, strict=True)),
            **_paper_cell(place[:2]),
            "networks": len(networks),
            "auc": 100 * fmean(network["auc"]["value"] for network in networks),
            "parameters": fmean(network["parameters"] for network in networks),
        }
        for place, networks in cells.items()
    ]
    there = {place[:2] for place in cells}
    alone = [place for place in PAPER_TABLE_3 if place not in there]
    rows += [{"temperature": float(t), "num_samples": m, **_paper_cell((t, m))} for t, m in alone]
    return DataTable("table3", columns, rows)


def _paper_cell(place: tuple[Any, ...]) -> Row:
    if place not in PAPER_TABLE_3:
        return {}
    printed, parameters = PAPER_TABLE_3[place]
    return {"paper_auc": float(printed), "paper_parameters": parameters}


def table_4(matrix: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> DataTable:
    """The paper's cross-data-set table with ours. matrix: trained on -> tested on -> metrics of the found network."""
    columns = (
        Column(key="source", head="source", text=True),
        Column(key="train", head="searched and trained on", text=True),
        Column(key="test", head="tested on", text=True),
        Column(key="auc", head="AUC, %", show=_percent),
        Column(key="auc_low", head="low", show=_percent),
        Column(key="auc_high", head="high", show=_percent),
        Column(key="accuracy", head="accuracy, %", show=_percent),
    )
    rows: list[Row] = []
    for train, tests in matrix.items():
        for test, metrics in tests.items():
            auc = metrics.get("auc") or {}
            parts = (("auc", "value"), ("auc_low", "low"), ("auc_high", "high"))
            scores = {key: _times_100(auc.get(part)) for key, part in parts}
            accuracy = _times_100(value_of(metrics.get("accuracy")))
            rows.append({"source": _RUN, "train": train, "test": test, **scores, "accuracy": accuracy})
    for (train, test), (auc_printed, accuracy_printed) in PAPER_TABLE_4.items():
        rows.append({"source": _PAPER, "train": train, "test": test, "auc": auc_printed, "accuracy": accuracy_printed})
    return DataTable("table4", columns, rows)


def paper_section(facts: RunFacts) -> Html:
    """Tables 2 and 4 of the paper beside ours; its Table 3 stands with our maps."""
    datasets = datasets_of(facts)
    parts: list[object] = [tag("h3", f"Table 2, {mark(datasets)}")]
    if not facts.tested:
        parts.append(tag("p", "The test clips have not been read yet, so the paper's rows stand alone."))
    parts += [tag("p", TABLE_2_NOTE, class_="soft"), table_2(facts).html()]
    parts += [
        tag("h3", "Table 3"),
        tag("p", "Its maps stand under ", tag("a", "The grid", href="#grid"), ", with ours."),
        tag("h3", "Table 4"),
        tag("p", "Training on one data set and testing on both is the protocol 'cross': this run has another."),
        table_4({}).html(),
    ]
    return section("paper", "Beside the paper", parts)


TABLE_2_NOTE = (
    "The paper's rows were measured on a mixture of FakeAVCeleb and SWAN-DF with its own splits, backbones and "
    "machine: "
    "they are context, never a ranking. Ours: chosen on dev; AUC with its 95 % interval; accuracy at P(fake) = 0.5. "
    "Parameters are without the classifier, but for concat + linear, which is nothing else. Device days are those of "
    "the whole arm's searches, on whatever device ran them; GPU days only where it was a GPU."
)
