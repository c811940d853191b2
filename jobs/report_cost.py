"""Section of the report on cost: latency on the machine of the evaluation, and the device time of every arm."""

from __future__ import annotations

from cluster.controls import SHUFFLED
from jobs.report_facts import RunFacts
from jobs.report_html import Html, duration, section, tag
from jobs.report_rows import ARM_NAMES, ARMS, DAY_S, network_names
from jobs.report_tables import Column, DataTable

_PARTS = {"fusion": "found network alone", "backbones": "backbones", "all": "backbones and found network"}


def latency_table(facts: RunFacts) -> DataTable:
    """Milliseconds a clip of the found network and of its backbones."""
    columns = (
        Column(key="network", head="network", text=True, show=network_names(facts)),
        Column(key="part", head="what", text=True, show=lambda part: _PARTS.get(part, part)),
        Column(key="device", text=True),
        Column(key="batch", head="clips at once"),
        Column(key="threads", head="CPU threads"),
        Column(key="milliseconds_per_clip", head="ms a clip, median", show=_milliseconds),
        Column(key="low", head="5 %", show=_milliseconds),
        Column(key="high", head="95 %", show=_milliseconds),
    )
    content = facts.latency or {}
    return DataTable("latency", columns, [{"device": content["device"], **row} for row in content.get("rows", ())])


def _milliseconds(value: float) -> str:
    return f"{value:.3g}" if value < 100 else f"{value:,.0f}"


def cost_table(facts: RunFacts) -> DataTable:
    """Device time of every arm: its searches, and the training of its networks."""
    columns = (
        Column(key="arm", text=True),
        Column(key="name", head="arm", text=True),
        Column(key="device", head="device", text=True),
        Column(key="searches", head="searched points"),
        Column(key="search_seconds", head="search, device time", show=duration),
        Column(key="seconds_a_point", head="a point", show=duration),
        Column(key="training_seconds", head="training its networks", show=duration),
        Column(key="device_days", head="device days in all", show=lambda value: f"{value:.2g}"),
    )
    training = facts.training_seconds()
    rows = []
    for name in ARMS:
        arm = facts.arms.get(name)
        if arm is None and name not in training:
            continue
        search = arm.device_seconds if arm else None
        rows.append(
            {
                "arm": name,
                "name": ARM_NAMES[name],
                "device": (arm or facts.main).grid.settings.device,
                "searches": len(arm.rows) if arm else None,
                "search_seconds": search,
                "seconds_a_point": search / len(arm.rows) if arm and arm.rows and search is not None else None,
                "training_seconds": training.get(name),
                "device_days": ((search or 0.0) + training.get(name, 0.0)) / DAY_S,
            }
        )
    return DataTable("cost", columns, rows)


def cost_section(facts: RunFacts) -> Html:
    """Latency, then what search and training took."""
    latency = latency_table(facts)
    parts: list[object] = [tag("h3", "Latency")]
    if latency.rows:
        device = (facts.latency or {})["device"]
        words = f"On {device}, on prepared clips: decoding and finding faces come on top."
        parts += [tag("p", words), latency.html()]
    else:
        parts.append(tag("p", f"Nothing was timed: 'stgs evaluate {facts.whole}' does."))
    parts += [tag("h3", "Device time"), cost_table(facts).html(), tag("p", _NOTE, class_="soft")]
    return section("cost", "Latency and cost", parts)


_NOTE = (
    "Device time of a point is its share of its pack's. Networks of equal genotype, seed and labels are trained once "
    "and "
    "counted once, for the first arm that has them. On a GPU a device day is a GPU day; on a CPU it is a day of one "
    f"process. The arm '{ARM_NAMES[SHUFFLED]}' is a check, and no part of the price of a result."
)
