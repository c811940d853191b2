"""Runs for the tests of the report, searched in this process without Ray, and pages as their parser sees them."""

from __future__ import annotations

import argparse
import shlex
from dataclasses import asdict
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from cluster import found_loop
from cluster.attempts import Pack, Point
from cluster.controls import CONTROLS, GRID, control_grids, control_jobs
from cluster.evaluation import evaluate_run
from cluster.features import FeatureSource
from cluster.gathering import gather, read_grid
from cluster.packing import add_packs, pack_job
from cluster.runs import open_run
from cluster.search_loop import search_pack
from cluster.settings import GridConfig, SearchSettings
from jobs.options import add_arguments, build, options_of
from jobs.report import report_page
from jobs.report_facts import RunFacts, read_run
from stgs.config import FoundConfig, SearchConfig

SETTINGS = SearchSettings(channels=4, device="cpu", search=SearchConfig(epochs=2, batch_size=48))
GRID_CONFIG = GridConfig(temperatures=(5.0, 10.0), num_samples=(1, 3), pack=4, settings=SETTINGS)
FOUND = FoundConfig(epochs=2, batch_size=48)
# So few random genotypes give no rank correlation, which the page has to say.
SHUFFLES, RANDOMS = 2, 2
VOID = {"meta", "br", "img"}


class Page(HTMLParser):
    """A page as its parser sees it: tags with attributes, and text; an element that is not closed is an error."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.source = source
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"style", "script"} & set(self.open):
            self.words.append(data)

    @property
    def text(self) -> str:
        """All text, with single spaces."""
        return " ".join(" ".join(self.words).split())

    def section(self, anchor: str) -> Page:
        """One section of the page."""
        start = self.source.index(f'<section id="{anchor}"')
        return Page(self.source[start : self.source.index("</section>", start) + len("</section>")])

    @property
    def charts(self) -> list[str]:
        """The labels of all pictures: title, axis, and the hint of every line."""
        return [given["aria-label"] or "" for name, given in self.tags if name == "svg" and "aria-label" in given]

    def count_tags(self, name: str) -> int:
        """How many elements are called so."""
        return sum(tag == name for tag, _ in self.tags)

    def count(self, name: str, class_: str) -> int:
        """How many elements have a class."""
        return sum(tag == name and class_ in (given.get("class") or "").split() for tag, given in self.tags)


def read_page(run: Path | RunFacts) -> Page:
    return Page(report_page(run if isinstance(run, RunFacts) else read_run(str(run))))


def search(run: str, config: GridConfig, source: FeatureSource) -> list[dict[str, Any]]:
    """Search a grid in this process; returns the rows of grid.parquet."""
    digests = {
        "features_digest": source.meta.digest,
        "manifest_digest": source.manifest.meta.digest,
        "split_digest": source.split_digest(),
    }
    hints = {"features": source.uri, "manifest": source.manifest_uri}
    run = open_run(run, {**asdict(config), **digests, **source.protocol}, resume=False, hints=hints)
    groups: dict[Any, list[Point]] = {}
    for point in config.points():
        groups.setdefault((point.estimator, point.options), []).append(point)
    packs = add_packs(run, [], [Pack(f"pack-{n:04d}", tuple(points)) for n, points in enumerate(groups.values())])
    splits = source.load_splits(("train", "dev"))
    for pack in packs:
        search_pack(
            pack_job(run, config.settings, source, pack), pack, splits["train"], splits["dev"], lambda row: None
        )
    return gather(run, packs, {}).rows


def complete_run(run: Path, source: FeatureSource) -> Path:
    """A grid with all controls, trained and evaluated in this process."""
    search(str(run), GRID_CONFIG, source)
    train(str(run), GRID_CONFIG, source)
    evaluate_run(str(run), source, resamples=40)
    return run


def train(run: str, config: GridConfig, source: FeatureSource, *, controls: bool = True) -> None:
    """Search the controls and train all networks in this process."""
    rows = {GRID: read_grid(run)}
    arms = CONTROLS if controls else ()
    for uri, part in control_grids(run, config, arms, source, shuffles=SHUFFLES, searches=2).items():
        rows[uri.rsplit("/", 1)[-1]] = search(uri, part, source)
    jobs = control_jobs(run, config, source, rows, arms, random_count=RANDOMS)
    splits = source.load_splits(("train", "dev"))
    for group in found_loop.waiting_groups(jobs):
        # The body of the Ray task; which networks are trained together does not matter here.
        assert found_loop._fit(group, FOUND, found_loop.provenance(source), splits, "cpu", 1) == {}


def parsed(line: str, config_class: type) -> Any:
    """The configuration that a command line of the report gives."""
    parser = argparse.ArgumentParser()
    add_arguments(parser, options_of(config_class))
    words = shlex.split(line.replace("\\\n", " "))[2:]
    return build(config_class, vars(parser.parse_args(words)))
