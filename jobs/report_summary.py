"""The report's first screen: what was searched, what was found, and what to think of it, in plain words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cluster.controls import AUDIO, GRID, RANDOM, SHUFFLED, VISUAL
from data_prep.synthetic import DATASET
from jobs.report_audit import shortcuts_note
from jobs.report_facts import Reading, RunFacts
from jobs.report_html import Html, bounds, count, duration, fraction, interval, join, plural, section, tag, text_of
from jobs.tables import of_points

# From this number of seeds on, design.md section 4 lets a heat map be called a result.
ENOUGH_SEEDS = 3
ARM_NAMES = {
    GRID: "both senses",
    VISUAL: "visual only",
    AUDIO: "audio only",
    RANDOM: "random genotypes",
    SHUFFLED: "shuffled labels",
}


def summary(facts: RunFacts) -> Html:
    """Title, figures at a glance, the summary in words, and its caveats."""
    readings = facts.readings
    parts: list[object] = [tag("p", _searched(facts)), _state(facts), shortcuts_note(facts)]
    words: list[object] = []
    for reading in readings:
        if len(readings) > 1:
            parts.append(tag("h3", f"Data set {reading.dataset}"))
            words.append(tag("h3", f"Data set {reading.dataset}"))
        parts.append(_tiles(facts, reading))
        lines = (_found(facts, reading), _single(reading), _random(reading), _shuffled(reading))
        words += [tag("p", line) for line in lines if line]
    if not readings and facts.main.rows:
        words.append(tag("p", _best_supernet(facts)))
    words.append(tag("p", _cost(facts)))
    parts.append(tag("div", tag("div", words), _caveats(facts), class_="columns"))
    return section("summary", "Summary", parts)


def _searched(facts: RunFacts) -> str:
    arm, settings = facts.main, facts.main.grid.settings
    grid = arm.grid
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
    if facts.readings and (absent := [ARM_NAMES[arm] for arm in _absent_arms(facts)]):
        lines.append(f"Controls that are missing: {', '.join(absent)}. The scores stand without them.")
    return (
        tag("div", tag("h3", "What this run lacks"), tag("ul", [tag("li", line) for line in lines]), class_="caveats")
        if lines
        else None
    )


def _absent_arms(facts: RunFacts) -> list[str]:
    have = {network["arm"] for reading in facts.readings for network in reading.networks.values()}
    return [arm for arm in (VISUAL, AUDIO, RANDOM, SHUFFLED) if arm not in have]


def _tiles(facts: RunFacts, reading: Reading) -> Html:
    found = reading.networks[reading.found]
    tiles = []
    if reading.dataset is None:
        tiles.append(_tile(fraction(found["dev_auc"]), "AUC on dev of the found network; test is not read yet"))
    else:
        value = found["auc"]
        tiles.append(
            _tile(fraction(value["value"]), f"AUC on test of the found network, 95 % interval {bounds(value)}")
        )
    difference = reading.content.get("difference")
    if difference is not None:
        above = difference["low"] > 0
        note = f"AUC above the best single sense, {bounds(difference)}: {_against_zero(difference)}"
        tiles.append(_tile(f"{difference['value']:+.3f}", note, above))
    shuffled = reading.content.get("shuffled")
    if shuffled is not None:
        chance = bool(shuffled["at_chance"])
        words = "shuffled labels: at chance" if chance else "shuffled labels: NOT at chance"
        tiles.append(_tile(fraction(shuffled["mean"]), f"mean test AUC, {words}", chance))
    tiles.append(_tile(count(found["parameters"]), "parameters of the found network, without its classifier"))
    tiles.append(
        _tile(duration(facts.main.device_seconds), f"device time of the search of {len(facts.main.rows)} points")
    )
    return tag("div", tiles, class_="tiles")


def _tile(value: str, note: str, good: bool | None = None) -> Html:
    class_ = "tile" if good is None else "tile good" if good else "tile bad"
    return tag("div", tag("b", value), tag("small", note), class_=class_)


def _against_zero(difference: dict[str, float]) -> str:
    if difference["low"] > 0:
        return "lies above 0"
    return "lies below 0" if difference["high"] < 0 else "does not exclude 0"


def point_words(point: dict[str, object] | None, facts: RunFacts) -> str:
    """A point in words: temperature and M, and what else the grid varies."""
    if point is None:
        return "a genotype drawn by chance"
    words = f"temperature {text_of(point['temperature'])}, M {point['num_samples']}"
    if group := facts.main.group_words(point):
        words += f", {group}"
    return words + (f", seed {point['seed']}" if len(facts.main.grid.seeds) > 1 else "")


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
    rivals = len(reading.of_arm(GRID))
    chosen = (
        f"The found network is the one whose AUC on dev is best of {plural(rivals, 'trained network')}: "
        f"{point_words(found['point'], facts)}, dev AUC {fraction(found['dev_auc'])}, {count(found['parameters'])} "
        "parameters."
    )
    if reading.dataset is None:
        return chosen
    content = reading.content
    return (
        f"{chosen} On {content['clips']:,} test clips ({content['fake']:,} of them fake) of {content['subjects']:,} "
        f"subjects that it never saw, its AUC is {interval(found['auc'])}: the bounds are those of a 95 % bootstrap "
        f"interval over subjects. Its equal error rate is {fraction(found['equal_error_rate'])}; at the threshold "
        f"chosen on dev its accuracy is {fraction(found['accuracy_dev_threshold'])}, balanced over the two classes "
        f"{fraction(found['balanced_accuracy'])}."
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
    verdict = {
        "lies above 0": "lies above 0: both senses together beat the better one alone on these clips",
        "lies below 0": "lies below 0: one sense alone does better on these clips",
        "does not exclude 0": "does not exclude 0: no advantage over one sense is shown on these clips",
    }[_against_zero(difference)]
    return (
        f"{words}: test AUC {interval(single['auc'])}. The difference, found minus single, is "
        f"{difference['value']:+.3f} {bounds(difference)}; this paired interval over subjects {verdict}."
    )


def _random(reading: Reading) -> str | None:
    random = reading.content.get("random")
    if random is None:
        return None
    ours = reading.networks[reading.found]["auc"]["value"]
    beaten = sum(network["auc"]["value"] < ours for network in reading.of_arm(RANDOM))
    return (
        f"{plural(random['count'], 'genotype')} drawn by chance, trained in the same way, reach a test AUC of "
        f"{fraction(random['mean'])} on average, {fraction(random['low'])} to {fraction(random['high'])}; the found "
        f"network lies above {beaten} of {random['count']}."
    )


def _shuffled(reading: Reading) -> str | None:
    shuffled = reading.content.get("shuffled")
    if shuffled is None:
        return None
    verdict = (
        "at chance, within 3 standard errors of 0.5, as it must be"
        if shuffled["at_chance"]
        else "NOT at chance (over 3 standard errors from 0.5): do not trust the other scores before this is explained"
    )
    return (
        f"With shuffled labels ({shuffled['count']} searches) the mean test AUC is "
        f"{fraction(shuffled['mean'])}, standard error {fraction(shuffled['standard_error'])}: {verdict}."
    )


def _cost(facts: RunFacts) -> str:
    rows = facts.main.rows
    if not rows:
        return "No point has a result, so no cost is known."
    search = facts.main.device_seconds
    words = f"Cost: {duration(search)} of device time for the search, {duration(search / len(rows))} a point"
    controls = sum(arm.device_seconds for name, arm in facts.arms.items() if name != GRID)
    if controls:
        words += f"; {duration(controls)} for the searches of the controls"
    training = facts.training_seconds()
    if training:
        words += f"; {duration(sum(training.values()))} for the training of all networks"
    return f"{words}."


def _caveats(facts: RunFacts) -> Html | None:
    warnings = (_movement(facts), _lost(facts), _choice(facts))
    lines = [line for line in (*_draws(facts), *_data(facts), *warnings) if line]
    if not lines:
        return None
    return tag("div", tag("h3", "Caveats"), tag("ul", [tag("li", line) for line in lines]), class_="caveats")


def _draws(facts: RunFacts) -> Sequence[str]:
    grid = facts.main.grid
    if len(grid.seeds) >= ENOUGH_SEEDS or len(grid.points()) == 1:
        return [] if len(grid.points()) > 1 else ["One point, one seed: this is one draw, it says nothing of a trend."]
    draws = "one draw" if len(grid.seeds) == 1 else f"{len(grid.seeds)} draws"
    return [
        f"{plural(len(grid.seeds), 'seed')}: the map shows {draws}, not a trend. At least {ENOUGH_SEEDS} seeds are "
        "needed before differences between its cells mean anything."
    ]


def _data(facts: RunFacts) -> Sequence[str]:
    lines = []
    if any(reading.dataset == DATASET for reading in facts.readings):
        lines.append(
            f"The data set '{DATASET}' is drawn by a program, faces and voices alike: its scores say that the "
            "machinery works, and nothing about real deepfakes."
        )
    config = facts.provenance.get("backbones", {})
    untrained = [s for s in (VISUAL, AUDIO) if str(config.get(f"{s}_weights", "")).startswith("random:")]
    if untrained:
        noun = "backbone is" if len(untrained) == 1 else "backbones are"
        lines.append(
            f"The {' and '.join(untrained)} {noun} untrained (random weights): trained ones give other scores."
        )
    if not facts.provenance:
        lines.append("No file that is left says which backbones made the features.")
    return lines


def _movement(facts: RunFacts) -> str | None:
    rows = facts.main.rows
    still = sum(row["hardly_moved"] for row in rows)
    if not still:
        return None
    return (
        f"The architecture has hardly moved at {of_points(still, len(rows))}: entropies above 0.99 of their maximum "
        "and a genotype that still changed in the last 10 epochs. Such genotypes are close calls: hold them against "
        "those drawn by chance."
    )


def _lost(facts: RunFacts) -> str | None:
    rows = facts.main.rows
    lost = sum(bool(row["gradient_lost"] or row["entropy_unmoved"]) for row in rows)
    if not lost:
        return None
    return (
        f"The architecture was not really searched at {of_points(lost, len(rows))}: its gradient is lost beside "
        "the weight decay, or an entropy never moved. They are named under 'How the search went'."
    )


def _choice(facts: RunFacts) -> str | None:
    genotypes = {row["genotype"] for row in facts.main.rows}
    if len(facts.main.rows) < 2 or len(genotypes) == len(facts.main.rows):
        return None
    return (
        f"The {len(facts.main.rows)} points ended in {plural(len(genotypes), 'different genotype')}: cells of the map "
        "that share one (and a seed) are one network, not several."
    )
