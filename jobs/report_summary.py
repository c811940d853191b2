"""The report's first screen: what was searched, what was found, and what to think of it, in plain words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cluster.controls import AUDIO, CONTROLS, GRID, RANDOM, VISUAL
from cluster.evaluation_metrics import chosen_by_search, fitted_on_dev
from jobs.report_audit import shortcuts_note
from jobs.report_caveats import caveats
from jobs.report_facts import Reading, RunFacts
from jobs.report_html import Html, bounds, count, duration, facts_table, fraction, join, plural, section, tag, text_of
from jobs.report_rows import ARM_NAMES, against_zero, network_words, point_words
from jobs.report_tables import bounds_of, estimate_words, value_of
from jobs.report_verdicts import baseline_verdicts, chance_words, difference_words
from stgs.genotype import genotype_from_dict


def chance_warning(facts: RunFacts) -> Html | None:
    """The page's first line where shuffled labels are not at chance; None where they are, or where nothing tells."""
    failed = [
        reading
        for reading in facts.tested
        if reading.content.get("shuffled") is not None and reading.content["shuffled"]["at_chance"] is False
    ]
    if not failed:
        return None
    told = "; ".join(
        f"{reading.dataset}: mean test AUC {fraction(reading.content['shuffled']['mean'])}, standard error "
        f"{fraction(reading.content['shuffled']['standard_error'])}"
        for reading in failed
    )
    words = (
        f"WARNING: with shuffled labels the scores are NOT at chance ({told}). Something but the labels tells the "
        "clips apart, or test clips leak into training: believe no score on this page before this is explained."
    )
    return tag("p", tag("strong", words), class_="caveats", role="alert")


def summary(facts: RunFacts) -> Html:
    """What was found, how good it is, how sure that is and what it cost; then the same in more words, and caveats."""
    readings = facts.readings
    parts: list[object] = []
    words: list[object] = [tag("p", searched_words(facts))]
    for reading in readings:
        if len(readings) > 1:
            parts.append(tag("h3", f"Data set {reading.dataset}"))
            words.append(tag("h3", f"Data set {reading.dataset}"))
        parts += [facts_table(_at_a_glance(facts, reading)), _tiles(facts, reading)]
        lines = (_found(facts, reading), _single(reading), _random(reading), _shuffled(reading))
        words += [tag("p", line) for line in lines if line]
    if not readings and facts.main.rows:
        words.append(tag("p", _best_supernet(facts)))
    if not readings:
        words.append(tag("p", f"Cost: {_cost(facts)}"))
    parts += [
        _state(facts),
        shortcuts_note(facts.audit),
        tag("div", tag("div", words), caveats(facts), class_="columns"),
    ]
    return section("summary", "Summary", parts)


def _at_a_glance(facts: RunFacts, reading: Reading) -> dict[str, object]:
    """The four answers that a reader looks for first."""
    found = reading.networks[reading.found]
    genotype = genotype_from_dict(found["genotype"], reading.found)
    cells = "; ".join(
        f"cell {number} joins {' and '.join(cell.inputs)}" for number, cell in enumerate(genotype.cells, start=1)
    )
    what = (
        f"A fusion network of {count(found['parameters'])} parameters ({network_words(found, facts)}): {cells}. "
        f"Chosen on dev out of {plural(_rivals(reading), 'trained network')}{_by_search(found)}."
    )
    return {
        "What was found": what,
        "How good it is": _how_good(reading),
        "How sure that is": " ".join(filter(None, _how_sure(facts, reading))) or "Nothing says so yet.",
        "What it cost": _cost(facts),
    }


def _rivals(reading: Reading) -> int:
    """The networks that the found one was chosen of: further trainings of a network show the spread."""
    return sum(not network.get("repeat") for network in reading.of_arm(GRID))


def _by_search(found: Mapping[str, Any]) -> str:
    """What the choice looked at, where it was not the network's own AUC on dev."""
    return " by the supernet's AUC there, for the networks were fitted on dev" if chosen_by_search(found) else ""


def _threshold(found: Mapping[str, Any]) -> str:
    return "0.5, for it was fitted on dev" if fitted_on_dev(found) else "the threshold of dev"


def _how_good(reading: Reading) -> str:
    found, content = reading.networks[reading.found], reading.content
    if reading.dataset is None:
        role = "fitted" if fitted_on_dev(found) else "chosen"
        return f"AUC on dev {fraction(found['dev_auc'])}, on which it was {role}; the test clips are not read yet."
    return (
        f"AUC {estimate_words(found['auc'])} on {plural(content['clips'], 'test clip')} of "
        f"{plural(content['subjects'], 'subject')} that no choice and no weight saw "
        f"({reading.dataset}); accuracy {estimate_words(found['accuracy_dev_threshold'])} at {_threshold(found)}."
    )


def _how_sure(facts: RunFacts, reading: Reading) -> list[str | None]:
    content, difference = reading.content, reading.content.get("difference")
    sure: list[str | None] = []
    if reading.dataset is not None and bounds_of(reading.networks[reading.found]["auc"]):
        sure.append("The bounds are a 95 % bootstrap interval over subjects.")
    if (where := against_zero(difference)) is not None:
        sure.append(f"The difference to the best single sense, {difference_words(difference)}, {where}.")
    elif difference is not None:
        sure.append(f"The difference to the best single sense is {estimate_words(difference)}.")
    sure.append(_unbeaten(content))
    if reading.dataset is not None:
        sure += baseline_verdicts(facts.baselines, reading.dataset)
    shuffled = content.get("shuffled")
    if shuffled is not None:
        sure.append(chance_words(shuffled))
    elif reading.dataset is not None:
        sure.append("Shuffled labels were not tried, so that nothing rules out a leak.")
    seeds = len(facts.main.grid.seeds)
    if facts.searched:
        sure.append(f"{plural(seeds, 'seed')} of the search: {'one draw' if seeds == 1 else f'{seeds} draws'}.")
    return sure


def _unbeaten(content: Mapping[str, Any]) -> str | None:
    """The controls over which the found network shows no advantage, so that nobody has to look for them."""
    rows = content.get("comparisons", {}).items()
    names = [ARM_NAMES[arm] for arm, row in rows if against_zero(row["difference"]) != "lies above 0"]
    return f"No advantage is shown over the best of: {', '.join(names)}." if names else None


def searched_words(facts: RunFacts) -> str:
    """What was searched, in a sentence."""
    grid, settings = facts.main.grid, facts.main.grid.settings
    if not facts.searched:
        names = facts.main.config["genotypes"]
        return (
            f"Nothing was searched: {plural(len(names), 'genotype')} ({', '.join(names)}) were given, and trained with "
            f"{'seed' if len(grid.seeds) == 1 else 'seeds'} {text_of(grid.seeds)}."
        )
    points = len(grid.points())
    if points == 1:
        what = (
            f"One point was searched: temperature {text_of(grid.temperatures)}, {text_of(grid.num_samples)} Gumbel "
            f"samples (M)"
        )
    else:
        what = (
            f"A grid of {points} points was searched: temperature {text_of(grid.temperatures)} by number of Gumbel "
            f"samples M {text_of(grid.num_samples)}"
        )
    seeds = f"{'seed' if len(grid.seeds) == 1 else 'seeds'} {text_of(grid.seeds)}"
    estimators = f"estimator{'s' if len(grid.estimators) > 1 else ''} {text_of(grid.estimators)}"
    senses = "the features of both senses" if settings.sense == "both" else f"{settings.sense} features only"
    for name, values in grid.axes.items():
        estimators += f", {name} {text_of(values)}"
    words = (
        f"{what}, {estimators}, {seeds}, {plural(settings.search.epochs, 'epoch')} each, over "
        f"{plural(settings.num_cells, 'cell')} of {plural(settings.num_steps, 'step')}, on {senses}"
    )
    backbones = backbone_words(facts)
    return f"{words} ({backbones})." if backbones else f"{words}."


def backbone_words(facts: RunFacts) -> str:
    """The backbones and their weights, nothing where no file names them."""
    config = facts.provenance.get("backbones", {})
    senses = [sense for sense in (VISUAL, AUDIO) if sense in config]
    return ", ".join(f"{sense}: {config[sense]}, weights {config.get(f'{sense}_weights')}" for sense in senses)


def _state(facts: RunFacts) -> Html | None:
    """What this run lacks, None for a complete one."""
    lines: list[object] = []
    rows, missing = facts.main.rows, facts.main.missing
    if missing:
        what = f"{plural(len(missing), 'point')} of {len(rows) + len(missing)} without a result"
        lines.append([what, ": ", join([[tag("code", point), f" {reason}. "] for point, reason in missing.items()])])
    if not facts.readings:
        lines.append("No network is trained yet, so this page shows the search alone. Next: 'stgs train'.")
    elif not facts.evaluated:
        lines.append(
            "The test clips have not been read yet (no evaluation), so this page has no test score: it shows the "
            "search and what training saw of dev. Next: 'stgs evaluate'."
        )
    if facts.readings and facts.searched and (absent := [ARM_NAMES[arm] for arm in _absent_arms(facts)]):
        lines.append(f"Controls that are missing: {', '.join(absent)}. The scores stand without them.")
    return (
        tag("div", tag("h3", "What this run lacks"), tag("ul", [tag("li", line) for line in lines]), class_="caveats")
        if lines
        else None
    )


def _absent_arms(facts: RunFacts) -> list[str]:
    have = {network["arm"] for reading in facts.readings for network in reading.networks.values()}
    return [arm for arm in CONTROLS if arm not in have]


def _tiles(facts: RunFacts, reading: Reading) -> Html:
    found = reading.networks[reading.found]
    tiles = []
    if reading.dataset is None:
        tiles.append(_tile(fraction(found["dev_auc"]), "AUC on dev of the found network; test is not read yet"))
    else:
        value = found["auc"]
        sure = f"95 % interval {bounds(value)}" if bounds_of(value) else value.get("sentence") or "no interval"
        tiles.append(_tile(fraction(value["value"]), f"AUC on test of the found network, {sure}"))
    difference = reading.content.get("difference")
    if value_of(difference) is not None:
        where = against_zero(difference)
        assert difference is not None
        note = f"AUC above the best single sense, {bounds(difference)}: {where}" if where else difference["sentence"]
        tiles.append(_tile(f"{difference['value']:+.3f}", note, where == "lies above 0"))
    shuffled = reading.content.get("shuffled")
    if shuffled is not None:
        chance = shuffled["at_chance"]
        words = {True: "at chance", False: "NOT at chance", None: "too few or too equal to tell"}[chance]
        tiles.append(_tile(fraction(shuffled["mean"]), f"mean test AUC, shuffled labels: {words}", chance))
    tiles.append(_tile(count(found["parameters"]), "parameters of the found network, without its classifier"))
    if facts.searched:
        searched = plural(len(facts.main.rows), "point")
        tiles.append(_tile(duration(facts.main.device_seconds), f"device time of the search of {searched}"))
    return tag("div", tiles, class_="tiles")


def _tile(value: str, note: str, good: bool | None = None) -> Html:
    class_ = "tile" if good is None else "tile good" if good else "tile bad"
    return tag("div", tag("b", value), tag("small", note), class_=class_)


def points_words(points: Sequence[Mapping[str, Any]], facts: RunFacts) -> str:
    """Points in words; those with equal settings but M stand together, and the points of a group that are all named."""
    pieces: dict[str, list[str]] = {}
    whole = {words: {row["id"] for row in rows} for words, rows in facts.main.groups()}
    for words, ids in whole.items():
        own = [point for point in points if point["id"] in ids]
        if len(own) == len(ids) > 1:
            pieces[f"all {len(ids)} points" + (f" with {words}" if words else "")] = []
            continue
        for point in sorted(own, key=_place):
            parts = [words, f"temperature {point['temperature']:g}"]
            parts.insert(1, f"seed {point['seed']}" if len(facts.main.grid.seeds) > 1 else "")
            pieces.setdefault(", ".join(filter(None, parts)), []).append(str(point["num_samples"]))
    return "; ".join(f"{words}, M {', '.join(samples)}" if samples else words for words, samples in pieces.items())


def _place(point: Mapping[str, Any]) -> tuple[Any, ...]:
    return point["seed"], point["temperature"], point["num_samples"]


def _found(facts: RunFacts, reading: Reading) -> str:
    found = reading.networks[reading.found]
    rivals = plural(_rivals(reading), "trained network")
    how = (
        f"was chosen out of {rivals}{_by_search(found)}"
        if chosen_by_search(found)
        else f"is the one whose AUC on dev is best of {rivals}"
    )
    if len(reading.of_arm(GRID)) > _rivals(reading):
        how += " (further trainings of the same genotypes show the spread, and are not chosen)"
    chosen = (
        f"The found network {how}: {network_words(found, facts)}, dev AUC {fraction(found['dev_auc'])}, "
        f"{count(found['parameters'])} parameters."
    )
    if reading.dataset is None:
        return chosen
    content = reading.content
    return (
        f"{chosen} On {content['clips']:,} test clips ({content['fake']:,} of them fake) of {content['subjects']:,} "
        f"subjects that it never saw, its AUC is {estimate_words(found['auc'])}: the bounds are those of a 95 % "
        f"bootstrap interval over subjects. Its average precision is {estimate_words(found['average_precision'])}, its "
        f"equal error rate {estimate_words(found['equal_error_rate'])}; its accuracy is "
        f"{estimate_words(found['accuracy'])} at P(fake) = 0.5 and {estimate_words(found['accuracy_dev_threshold'])} "
        f"at {_threshold(found)}, balanced over the two classes {estimate_words(found['balanced_accuracy'])}."
    )


def _best_supernet(facts: RunFacts) -> str:
    """What is known before training."""
    best = max(facts.main.rows, key=lambda row: row["dev_auc"])
    return (
        f"The best supernet on dev is that of {point_words(best, facts)}: AUC {fraction(best['dev_auc'])} at epoch "
        f"{best['best_epoch']} of {best['epochs']}. Its genotype has {count(best['parameters'])} parameters without "
        "the classifier. A supernet's AUC is not that of the network that is trained from its genotype."
    )


def _single(reading: Reading) -> str | None:
    name, difference = reading.best_single_sense, reading.content.get("difference")
    if name is None:
        return None
    single = reading.networks[name]
    words = f"The best single sense on dev, from the same grid, is {ARM_NAMES[single['arm']]}"
    if difference is None or "auc" not in single:
        return f"{words} (dev AUC {fraction(single['dev_auc'])})."
    where = against_zero(difference)
    if where is None:
        return f"{words}: test AUC {estimate_words(single['auc'])}. The difference is {estimate_words(difference)}."
    verdict = {
        "lies above 0": "lies above 0: both senses together beat the better one alone on these clips",
        "lies below 0": "lies below 0: one sense alone does better on these clips",
        "does not exclude 0": "does not exclude 0: no advantage over one sense is shown on these clips",
    }[where]
    return (
        f"{words}: test AUC {estimate_words(single['auc'])}. The difference, found minus single, is "
        f"{difference_words(difference)}; this paired interval over subjects {verdict}."
    )


def _random(reading: Reading) -> str | None:
    random, ours = reading.content.get("random"), reading.networks[reading.found].get("auc")
    if random is None or value_of(ours) is None:
        return None
    theirs = [value for network in reading.of_arm(RANDOM) if (value := value_of(network["auc"])) is not None]
    beaten = sum(value < value_of(ours) for value in theirs)  # type: ignore[operator]
    return (
        f"{plural(random['count'], 'genotype')} drawn by chance, trained in the same way, reach a test AUC of "
        f"{fraction(random['mean'])} on average, {fraction(random['low'])} to {fraction(random['high'])}; the found "
        f"network lies above {beaten} of {random['count']}."
    )


def _shuffled(reading: Reading) -> str | None:
    shuffled = reading.content.get("shuffled")
    if shuffled is None:
        return None
    verdict = {
        True: "at chance, within 3 standard errors of 0.5, as it must be",
        False: "NOT at chance (over 3 standard errors from 0.5): do not trust the other scores before this is "
        "explained",
        None: "no verdict",
    }[shuffled["at_chance"]]
    error, sentence = shuffled["standard_error"], shuffled.get("sentence")
    known = "" if error is None else f", standard error {fraction(error)}"
    return (
        f"With shuffled labels ({shuffled['count']} {'search' if shuffled['count'] == 1 else 'searches'}) the mean "
        f"test AUC is {fraction(shuffled['mean'])}{known}: {verdict}{f' ({sentence[:-1]})' if sentence else ''}."
    )


def _cost(facts: RunFacts) -> str:
    rows, training = facts.main.rows, facts.training_seconds()
    if not facts.searched:
        return f"{duration(sum(training.values()))} of device time for the training of all networks; no search."
    if not rows:
        return "No point has a result, so no cost is known."
    search = facts.main.device_seconds
    words = f"{duration(search)} of device time for the search, {duration(search / len(rows))} a point"
    controls = sum(arm.device_seconds for name, arm in facts.arms.items() if name != GRID)
    if controls:
        words += f"; {duration(controls)} for the searches of the controls"
    if training:
        words += f"; {duration(sum(training.values()))} for the training of all networks"
    return f"{words}."
