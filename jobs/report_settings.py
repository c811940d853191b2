"""Section of the report on settings, versions and digests, and the commands that make the run again."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from cluster.controls import CONTROLS, GRID, RANDOM, SHUFFLED, SOFTMAX, UNIFORM
from cluster.finetune import backbone_uri
from cluster.protocol_splits import PROTOCOL_KEY, SPLIT_KEY
from data_prep.damages import DAMAGES
from jobs.evaluate import EvaluateJobConfig
from jobs.extract import ExtractJobConfig
from jobs.grid import GridJobConfig
from jobs.prepare import PrepareJobConfig
from jobs.report_baseline_commands import baseline_commands
from jobs.report_commands import command_line
from jobs.report_facts import RunFacts, leaves
from jobs.report_html import Html, facts_table, fold, section, tag, text_of
from jobs.search import SearchJobConfig
from jobs.train import TrainJobConfig
from stgs.backbones import SENSES

# What a run's config.yaml holds beside the settings of its search.
_NO_SEARCH_SETTINGS = ("backbones", "finetune", PROTOCOL_KEY, SPLIT_KEY)
_DIGESTS = ("features_digest", "manifest_digest", "split_digest")


def settings_section(facts: RunFacts) -> Html:
    """How the run was made, and how to make it again."""
    return section(
        "settings",
        "Settings and how to repeat it",
        tag("h3", "Commands"),
        tag("p", _COMMANDS_NOTE, class_="soft"),
        tag("pre", tag("code", "\n".join(commands(facts)))),
        tag("h3", "Digests"),
        facts_table(_digests(facts)),
        tag("h3", "Versions and hardware"),
        facts_table(_environment(facts)),
        fold("Settings of the search", facts_table(_texts(facts.main.config, without=_DIGESTS))),
        fold("Settings of the networks' training", facts_table(_texts(facts.training))) if facts.training else None,
        fold("How the features were made", facts_table(_provenance(facts))) if facts.provenance else None,
    )


_COMMANDS_NOTE = (
    "Options that have their default value are left out. The same bits are promised on the same kind of device, with "
    "the same packs, threads and workers. A clip's way to the features begins with 'stgs manifest' ('stgs demo' for "
    "the drawn clips); CORPUS and FEATURES stand for directories that the run's files do not name."
)


def _texts(settings: Mapping[str, Any], without: tuple[str, ...] = ()) -> dict[str, str]:
    return {name: text_of(value) for name, value in leaves(settings) if name not in without}


def _provenance(facts: RunFacts) -> dict[str, str]:
    named = ((part, settings) for part, settings in facts.provenance.items() if isinstance(settings, Mapping))
    return {f"{part}: {name}": text_of(value) for part, settings in named for name, value in leaves(settings)}


def _digests(facts: RunFacts) -> dict[str, object]:
    found: dict[str, object] = {}
    for name in _DIGESTS:
        if name in facts.main.config:
            found[name.replace("_", " ")] = tag("code", facts.main.config[name])
    for reading in facts.readings:
        if reading.dataset is not None:
            found[f"networks evaluated on {reading.dataset}"] = tag("code", reading.content["digests"]["networks"])
    return found


def _environment(facts: RunFacts) -> dict[str, object]:
    environment = dict(facts.environment)
    versions = environment.pop("versions", {})
    commit = environment.pop("commit", None)
    shown: dict[str, object] = {name: text_of(value) for name, value in environment.items() if value}
    shown["device of the search"] = facts.main.grid.settings.device
    shown["packages"] = ", ".join(f"{name} {version}" for name, version in versions.items())
    shown["git commit"] = "unknown: not run from a checkout" if commit is None else tag("code", commit)
    return shown


def commands(facts: RunFacts) -> list[str]:
    """The commands that make the run, in order, as far as its files say."""
    lines = []
    corpus, backbones = (dict(leaves(facts.provenance.get(name, {}))) for name in ("corpus", "backbones"))
    features, manifest = (str(facts.hints[name]) for name in ("features", "manifest"))
    trained = "finetune" in facts.main.config
    if corpus:
        out = features if trained else "CORPUS"
        lines.append(command_line("prepare", PrepareJobConfig, {"manifest": manifest, "out": out, **corpus}))
    if "visual" in backbones and not trained:
        lines.append(command_line("extract", ExtractJobConfig, {"corpus": "CORPUS", "out": features, **backbones}))
    if facts.searched:
        lines += _search_commands(facts)
    if facts.readings or not facts.searched:
        lines.append(_train_command(facts))
    for reading in facts.readings:
        if reading.dataset is not None:
            resamples = reading.content["bootstrap"]["resamples"]
            values = {"run": facts.whole, "resamples": resamples, **_where_features(facts)}
            values["latency"] = facts.latency is not None
            values |= _damaged(facts)
            lines.append(command_line("evaluate", EvaluateJobConfig, values))
            break  # one command reads the test clips of every data set
    elsewhere = [baseline.uri for baseline in facts.baselines if not baseline.is_of(facts.uri, facts.whole)]
    shown = ["--baselines", *elsewhere] if elsewhere else []
    return [*lines, *baseline_commands(facts.baselines), shlex.join(["stgs", "report", facts.uri, *shown])]


def _damaged(facts: RunFacts) -> dict[str, Any]:
    """The options on damaged clips; none where nothing was damaged."""
    measured = [(reading.content["clips"], reading.robustness) for reading in facts.tested if reading.robustness]
    if not measured:
        return {}
    values: dict[str, Any] = {"robustness": True}
    names = tuple(damage["name"] for damage in measured[0][1]["damages"])
    if set(names) != set(DAMAGES):
        values["robustness_damages"] = names
    fewer = [content["clips"] for clips, content in measured if content["clips"] < clips]
    # The option counts clips of a data set; all together are a reading of their own.
    return values | ({"robustness_clips": min(fewer)} if fewer else {})


def _search_commands(facts: RunFacts) -> list[str]:
    """The search, and the features of backbones that it trained."""
    features, manifest = (str(facts.hints[name]) for name in ("features", "manifest"))
    trained, lines = "finetune" in facts.main.config, []
    where = {"features": features, "manifest": manifest, "out": facts.whole}
    config = {name: value for name, value in facts.main.config.items() if name not in _NO_SEARCH_SETTINGS}
    # Of an axis the settings hold the first value alone.
    settings = {**dict(leaves(config)), **config.get("axes", {}), **facts.protocol}
    # Runs that are older than the setting had none.
    settings["candidates"] = facts.main.grid.settings.search.candidates
    if trained:
        settings |= {**_trained_backbones(facts), **facts.main.config["finetune"], **facts.hints, "finetune": True}
        # That of the backbones is their corpus's.
        settings["length"] = facts.main.grid.settings.length
    if len(facts.main.grid.points()) == 1:
        point = facts.main.grid.points()[0]
        single = {"temperature": point.temperature, "num_samples": point.num_samples, "estimator": point.estimator}
        settings |= {**single, "seed": point.seed}
        lines.append(command_line("search", SearchJobConfig, {**settings, **where}))
    else:
        lines.append(command_line("grid", GridJobConfig, {**settings, **where}))
    if trained:
        files = {f"{sense}_weights": backbone_uri(facts.uri, sense) for sense in SENSES}
        made = {**_trained_backbones(facts), **facts.hints, **files, "corpus": features, "out": "FEATURES"}
        lines.append(command_line("extract", ExtractJobConfig, made))
    return lines


def _trained_backbones(facts: RunFacts) -> dict[str, Any]:
    """The settings of backbones that a search trained; what stood in their files is said by the run's hints."""
    return {name: value for name, value in facts.main.config["backbones"].items() if name != "weights"}


def _where_features(facts: RunFacts) -> dict[str, str]:
    """Option of a command that reads features, where they are not those that the search read."""
    return {"features": "FEATURES"} if "finetune" in facts.main.config else {}


def _train_command(facts: RunFacts) -> str:
    networks = list(facts.readings[0].networks.values()) if facts.readings else []
    found = dict(leaves(facts.training or {}, "found_"))
    released = TrainJobConfig.PRESETS["released"]
    if all(found.get(name) == value for name, value in released.items()):
        found = {"preset": "released", **{name: value for name, value in found.items() if name not in released}}
    values: dict[str, Any] = {"run": facts.whole, **found, **_where_features(facts)}
    values["repeats"] = 1 + max((network.get("repeat") or 0 for network in networks), default=0)
    values |= _controls(facts, [network["arm"] for network in networks]) if facts.searched else _given(facts)
    return command_line("train", TrainJobConfig, values)


def _controls(facts: RunFacts, networks: Sequence[str]) -> dict[str, Any]:
    """The options on controls. networks: the arm of each."""
    values: dict[str, Any] = {"controls": tuple(arm for arm in CONTROLS if arm in networks)}
    if RANDOM in networks:
        values["random_genotypes"] = networks.count(RANDOM)
    if SHUFFLED in facts.arms:
        values["shuffles"] = facts.arms[SHUFFLED].grid.shuffles
    searches = [len(facts.arms[arm].grid.points()) for arm in (SOFTMAX, UNIFORM) if arm in facts.arms]
    if searches and max(searches) < len(facts.main.grid.points()):
        values["control_searches"] = max(searches)
    # Controls are searched with the threads of `stgs train`; those of the networks' training are the same.
    parts = [arm for name, arm in facts.arms.items() if name != GRID]
    if parts:
        values["threads"] = parts[0].grid.settings.threads
    return values


def _given(facts: RunFacts) -> dict[str, Any]:
    """The options of a training without a search; where the files of the genotypes lie is not known."""
    files = [f"{name}.json" for name in facts.main.config["genotypes"]]
    where = {"out": facts.whole, **{name: str(facts.hints[name]) for name in ("features", "manifest")}}
    return {"run": files[0], "genotypes": tuple(files[1:]), "seeds": facts.main.grid.seeds, **where, **facts.protocol}
