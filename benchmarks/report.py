"""What came out: results, the Markdown tables and the JSON document."""

from __future__ import annotations

import json
import os
import platform
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

from benchmarks.contenders import Contender

PACKAGES = (
    "sqlalchemy",
    "asyncpg",
    "psycopg",
    "psycopg-pool",
    "langgraph",
    "langgraph-checkpoint",
    "langgraph-checkpoint-postgres",
    "langchain-core",
)

Samples = dict[Contender, list[list[float]]]
"""What was measured: for each contender a list per round."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """What a ratio has to reach, or with `of_ours` our figure itself."""

    at_most: float | None = None
    at_least: float | None = None
    of_ours: bool = False

    def met(self, ratio: float | None, ours: float) -> bool:
        """Whether the figure that counts is on the right side."""
        figure = ours if self.of_ours or ratio is None else ratio
        return (self.at_most is None or figure <= self.at_most) and (self.at_least is None or figure >= self.at_least)

    def __str__(self) -> str:
        bound = f"≤ {short_ratio(self.at_most)}" if self.at_most is not None else f"≥ {short_ratio(self.at_least or 0)}"
        return f"ours {bound}" if self.of_ours else bound


@dataclass(frozen=True, kw_only=True)
class Result:
    """One measure.

    `targets` go by the name of a contender of ours, and are against the stock saver's best mode, or the one that
    `stock` names; `reference_targets` are against a reference contender's figure, of which a measure has one at most.
    """

    measure: str
    unit: str
    samples: Samples
    higher_is_better: bool = False
    targets: Mapping[str, Target] = field(default_factory=dict)
    reference_targets: Mapping[str, Target] = field(default_factory=dict)
    stock: str | None = None

    def median(self, contender: Contender) -> float:
        """Median of all samples."""
        return statistics.median(self._all(contender))

    def figures(self, contender: Contender) -> dict[str, float]:
        """Median, p10 and p90; counted from the best, so one sample in ten is at least as good as p10."""
        ordered = sorted(self._all(contender), reverse=self.higher_is_better)
        p10, p90 = (ordered[len(ordered) * tenths // 10] for tenths in (1, 9))
        return {"median": self.median(contender), "p10": p10, "p90": p90}

    def stock_best(self) -> Contender | None:
        """What represents the stock saver: its best mode, by its median in this run, if the measure names no other."""
        stock = [contender for contender in self.samples if contender.role == "stock"]
        stock = [contender for contender in stock if self.stock in (None, contender.name)]
        return (max if self.higher_is_better else min)(stock, key=self.median, default=None)

    def compared(self, ours: Contender) -> list[tuple[Contender | None, Target | None]]:
        """Whom a contender of ours is compared with, and what it has to reach; None for itself alone."""
        target = self.targets.get(ours.name)
        references = [one for one in self.samples if one.role == "reference"]
        pairs: list[tuple[Contender | None, Target | None]] = []
        if (stock := self.stock_best()) or (target and target.of_ours):
            pairs.append((stock, target))
        return [*pairs, *[(one, self.reference_targets.get(ours.name)) for one in references]]

    def spread(self, ours: Contender, other: Contender) -> tuple[float, float]:
        """Quartiles of the ratio taken round by round: how much of the ratio is noise."""
        pairs = zip(self.samples[ours], self.samples[other], strict=True)
        ratios = [statistics.median(mine) / statistics.median(theirs) for mine, theirs in pairs]
        if len(ratios) < 2:
            return ratios[0], ratios[0]
        low, _, high = statistics.quantiles(ratios, method="inclusive")
        return low, high

    def _all(self, contender: Contender) -> list[float]:
        return [sample for one_round in self.samples[contender] for sample in one_round]


@dataclass(frozen=True, kw_only=True)
class Series:
    """How something develops: for each contender its points, for the plots."""

    name: str
    x: str
    unit: str
    points: Mapping[Contender, Sequence[tuple[float, float]]]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One of our contenders against another in one measure; with no other its figure counts alone."""

    result: Result
    ours: Contender
    other: Contender | None
    target: Target | None

    @property
    def ratio(self) -> float | None:
        return self.result.median(self.ours) / self.result.median(self.other) if self.other else None

    @property
    def undisturbed_ratio(self) -> float | None:
        p10 = {one: self.result.figures(one)["p10"] for one in (self.ours, self.other) if one}
        return p10[self.ours] / p10[self.other] if self.other else None

    @property
    def met(self) -> bool | None:
        return self.target.met(self.ratio, self.result.median(self.ours)) if self.target else None


def rows(results: Sequence[Result]) -> list[Row]:
    """Every contender of ours, in every measure, against each that it is compared with."""
    return [
        Row(result=result, ours=ours, other=other, target=target)
        for result in results
        for ours in result.samples
        if ours.role == "ours"
        for other, target in result.compared(ours)
    ]


def markdown(results: Sequence[Result], run: Mapping[str, Any]) -> str:
    """The comparison, every contender's own figures, and the conditions."""
    return "\n".join([*_comparison(rows(results)), "", *_figures(results), "", *_conditions(run)])


def document(results: Sequence[Result], series: Sequence[Series], run: Mapping[str, Any]) -> dict[str, Any]:
    """The same for machines, with every contender's samples summed up, and the series that the plots show."""
    return {**run, "results": [_summary(result) for result in results], "series": [_points(one) for one in series]}


def written(document: Mapping[str, Any]) -> str:
    """A document as JSON, lists of numbers on one line."""
    text = json.dumps(document, indent=1)
    return re.sub(r"\[[-+.,\seE\d]+\]", lambda found: f"[{' '.join(found[0][1:-1].split())}]", text) + "\n"


def conditions(settings: Mapping[str, str], *, quick: bool) -> dict[str, Any]:
    """When, where and with what this run was made."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "quick": quick,
        "cpus": os.cpu_count(),
        "machine": platform.machine(),
        "versions": {
            "python": platform.python_version(),
            "postgresql": settings["server_version"],
            **{package: version(package) for package in PACKAGES},
        },
        "settings": dict(settings),
    }


def _comparison(compared: Sequence[Row]) -> list[str]:
    lines = [
        "| measure | ours | stock best (which), or reference | ratio (quartiles) | ratio of p10 | target | met? |",
        "|---|---:|---:|---:|---:|---:|---|",
    ]
    for row in compared:
        result, unit = row.result, row.result.unit
        ours = f"{short(result.median(row.ours))} {unit}".strip()
        ours += f" ({row.ours.name})" if row.ours.name != "ours" else ""
        other = ratio = undisturbed = ""
        if row.other and row.ratio is not None and row.undisturbed_ratio is not None:
            other = f"{short(result.median(row.other))} {unit} ({row.other.name.removeprefix('stock ')})"
            ratio = "{} ({}-{})".format(*map(short_ratio, (row.ratio, *result.spread(row.ours, row.other))))
            undisturbed = short_ratio(row.undisturbed_ratio)
        met = {None: "", True: "yes", False: "**no**"}[row.met]
        cells = (result.measure, ours, other, ratio, undisturbed, str(row.target or ""), met)
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _figures(results: Sequence[Result]) -> list[str]:
    names = list(dict.fromkeys(contender.name for result in results for contender in result.samples))
    lines = [
        "Median (p10, p90) of every contender:",
        "",
        f"| measure | unit | rounds | {' | '.join(names)} |",
        f"|---|---|---:|{'---:|' * len(names)}",
    ]
    for result in results:
        figures = {
            contender.name: "{} ({}, {})".format(*map(short, result.figures(contender).values()))
            for contender in result.samples
        }
        rounds = max(map(len, result.samples.values()))
        cells = " | ".join(figures.get(name, "") for name in names)
        lines.append(f"| {result.measure} | {result.unit} | {rounds} | {cells} |")
    return lines


def _conditions(run: Mapping[str, Any]) -> list[str]:
    settings = run["settings"]
    durable = ", ".join(f"{name}={settings[name]}" for name in ("fsync", "synchronous_commit", "full_page_writes"))
    versions = ", ".join(f"{name} {number}" for name, number in run["versions"].items())
    return [
        f"{run['date']}{', quick' if run['quick'] else ''}; {run['cpus']} CPUs ({run['machine']}) for server and "
        f"contenders together; {durable}; {speed_of(run)}.",
        "",
        f"{versions}.",
    ]


def speed_of(run: Mapping[str, Any]) -> str:
    """The machine's speed, before the measures and after."""
    loop, select, commit = (
        " and ".join(map(short, run["speed"][name])) for name in ("loop_ms", "select_us", "commit_ms")
    )
    return (
        f"before and after, a loop of 300,000 steps in Python took {loop} ms, `SELECT 1` by bare asyncpg {select} us, "
        f"the smallest durable commit {commit} ms"
    )


def short(figure: float) -> str:
    """A figure with three digits."""
    return f"{figure:,.0f}" if figure >= 100 else f"{figure:.3g}"


def short_ratio(ratio: float) -> str:
    """A ratio, as a fraction if it is small."""
    return f"{ratio:.2f}" if abs(ratio) >= 0.1 or not ratio else f"1/{1 / ratio:.0f}"


def _points(series: Series) -> dict[str, Any]:
    return {
        "name": series.name,
        "x": series.x,
        "unit": series.unit,
        "contenders": {
            contender.name: {
                "role": contender.role,
                "x": [x for x, _ in points],
                "y": [float(f"{y:.4g}") for _, y in points],
            }
            for contender, points in series.points.items()
        },
    }


def _summary(result: Result) -> dict[str, Any]:
    return {
        "measure": result.measure,
        "unit": result.unit,
        "better": "higher" if result.higher_is_better else "lower",
        "contenders": {
            contender.name: {
                "role": contender.role,
                **result.figures(contender),
                "rounds": len(rounds),
                "samples": sum(map(len, rounds)),
                "median_by_round": [statistics.median(one_round) for one_round in rounds],
            }
            for contender, rounds in result.samples.items()
        },
        "comparison": [
            {
                "ours": row.ours.name,
                "other": row.other.name if row.other else None,
                "role": row.other.role if row.other else None,
                "ratio": row.ratio,
                "undisturbed_ratio": row.undisturbed_ratio,
                "quartiles": result.spread(row.ours, row.other) if row.other else None,
                "target": str(row.target) if row.target else None,
                "met": row.met,
            }
            for row in rows([result])
        ],
    }
