"""The plots of a run, from its JSON document: `python -m benchmarks.plots [JSON] [--into DIRECTORY]`."""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

RESULTS = Path(__file__).parent / "results"
IMAGES = Path(__file__).parents[1] / "docs" / "images"
SMOOTHED_OVER = 15
"""Neighbouring points of which the median is drawn."""

INK = "#7A7A7A"
"""The colour of text and lines, which reads on a light and on a dark background."""

# Okabe and Ito's palette, which most colour-blind readers can tell apart; markers and dashes say the same again.
STYLES: dict[str, dict[str, Any]] = {
    "ours": {"color": "#0072B2", "marker": "o", "linewidth": 2.2},
    "ours, plain": {"color": "#009E73", "marker": "D", "linewidth": 2.2},
    "ours, host's engine": {"color": "#56B4E9", "marker": "P", "linewidth": 2.2},
    "stock connection": {"color": "#D55E00", "marker": "s", "linestyle": "-"},
    "stock pipeline": {"color": "#E69F00", "marker": "^", "linestyle": "--"},
    "stock pool": {"color": "#CC79A7", "marker": "v", "linestyle": "-."},
    "in memory": {"color": INK, "marker": "x", "linestyle": ":"},
    "bare asyncpg": {"color": "#8C6D1F", "marker": "+", "linestyle": ":"},
}
NAMED_IN_CAPTION = ("postgresql", "langgraph", "langgraph-checkpoint-postgres", "asyncpg", "psycopg", "python")

Document = Mapping[str, Any]


def main() -> None:
    """Draw the plots of the newest whole run, or of another one."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.plots", description=__doc__)
    parser.add_argument("json", type=Path, nargs="?", default=RESULTS / "latest.json")
    parser.add_argument("--into", type=Path, metavar="DIRECTORY", default=IMAGES)
    options = parser.parse_args()
    for path in draw(json.loads(options.json.read_text()), options.into):
        print(path)


def draw(document: Document, directory: Path) -> list[Path]:
    """Write every plot that the document has figures for, as SVG. Returns the files."""
    directory.mkdir(parents=True, exist_ok=True)
    mpl.rcParams.update(
        {
            "font.size": 10,
            **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK),
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.grid": True,
            "grid.alpha": 0.3,
            "axes.axisbelow": True,
            "legend.frameon": False,
            "svg.fonttype": "none",
            # The same figures make the same file.
            "svg.hashsalt": "checkpoint_store",
        }
    )
    written = []
    for name, plot in {"growth": _growth, "throughput": _throughput, "ratios": _ratios}.items():
        if (figure := plot(document)) is None:
            continue
        figure.supxlabel(_caption(document), fontsize=7, color=INK)
        written.append(directory / f"{name}.svg")
        figure.savefig(written[-1], metadata={"Date": None}, transparent=True)
    return written


def _growth(document: Document) -> Figure | None:
    series = [_series(document, f"growth: {name}") for name in ("time", "size")]
    found = [one for one in series if one]
    if len(found) < len(series):
        return None
    figure, axes = _panels(2)
    titles = ("What a turn of a chat takes", "What the thread occupies")
    for ax, one, title in zip(axes, found, titles, strict=True):
        for name, line in one["contenders"].items():
            x, y = _smoothed(line["x"], line["y"]) if "time" in one["name"] else (line["x"], line["y"])
            held = " (bytes in memory)" if name == "in memory" and one["unit"] == "MB" else ""
            ax.plot(x, y, label=_label(name) + held, **{**STYLES[name], "marker": None})
        ax.set(title=title, xlabel="turns so far", ylabel=one["unit"], ylim=(0, None), xlim=(0, None))
        ax.legend(loc="upper left")
    axes[0].set_ylabel(f"ms per turn (median of {SMOOTHED_OVER})")
    axes[1].set_ylabel("MB on disk, indexes included")
    return figure


def _throughput(document: Document) -> Figure | None:
    wheres = {"loopback": "loopback", "2 ms away": "a round trip of 2 ms"}
    found = {title: one for where, title in wheres.items() if (one := _series(document, f"throughput: {where}"))}
    if not found:
        return None
    figure, axes = _panels(len(found))
    for ax, (title, one) in zip(axes, found.items(), strict=True):
        for name, line in one["contenders"].items():
            ax.plot(line["x"], line["y"], label=_label(name), **STYLES[name])
        ax.set(title=f"Supersteps stored, {title}", xlabel=one["x"], ylabel=one["unit"], ylim=(0, None))
        ax.set_xscale("log", base=2)
        runs = sorted({x for line in one["contenders"].values() for x in line["x"]})
        ax.xaxis.set_major_locator(FixedLocator(runs))
        ax.xaxis.set_minor_locator(NullLocator())
        ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
        ax.legend(loc="upper left")
    return figure


def _ratios(document: Document) -> Figure | None:
    bars: dict[str, dict[str, float]] = {}
    for result in document["results"]:
        for row in result["comparison"]:
            compared = row["role"] == "stock" and row["ratio"] and not str(row["target"]).startswith("ours")
            if compared and (row["target"] or result["measure"] in bars):
                better = row["ratio"] if result["better"] == "higher" else 1 / row["ratio"]
                bars.setdefault(result["measure"], {})[row["ours"]] = better
    if not bars:
        return None
    names = [name for name in STYLES if any(name in bar for bar in bars.values())]
    figure = Figure(figsize=(9, 1.4 + 0.42 * len(bars)), layout="constrained")
    ax = figure.subplots()
    for place, bar in enumerate(bars.values()):
        height = 0.8 / len(bar)
        for number, name in enumerate(name for name in names if name in bar):
            y = place + height * (number - (len(bar) - 1) / 2)
            # From 1 on, so that a bar to the left says "worse".
            ax.barh(y, bar[name] - 1, height * 0.9, left=1, color=STYLES[name]["color"])
            right = bar[name] >= 1
            ax.annotate(
                f"{bar[name]:.2g}" if bar[name] < 10 else f"{bar[name]:.0f}",
                (bar[name], y),
                xytext=(3 if right else -3, 0),
                textcoords="offset points",
                va="center",
                ha="left" if right else "right",
                fontsize=8,
            )
    ax.axvline(1, color=INK, linewidth=1)
    ax.set_xscale("log")
    ticks = [tick for tick in (0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200) if tick <= max(map(_most, bars.values())) * 1.6]
    low = min(min(bar.values()) for bar in bars.values())
    ax.set_xlim(min(0.8, low * 0.6), max(map(_most, bars.values())) * 1.5)
    ax.xaxis.set_major_locator(FixedLocator(ticks))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    ax.set_yticks(range(len(bars)), list(bars))
    ax.invert_yaxis()
    ax.grid(visible=False, axis="y")
    ax.set(
        title="Times better than the stock saver's best mode",
        xlabel="times (1: the same; to the right: ours is better)",
    )
    handles = [mpl.patches.Patch(color=STYLES[name]["color"], label=_label(name)) for name in names]
    ax.legend(handles=handles, loc="upper right")
    return figure


def _panels(count: int) -> tuple[Figure, Sequence[Axes]]:
    figure = Figure(figsize=(5.2 * count, 4.2), layout="constrained")
    return figure, list(figure.subplots(1, count, squeeze=False)[0])


def _series(document: Document, name: str) -> Mapping[str, Any] | None:
    return next((one for one in document["series"] if one["name"] == name), None)


def _smoothed(x: Sequence[float], y: Sequence[float]) -> tuple[Sequence[float], list[float]]:
    half = SMOOTHED_OVER // 2
    return x, [statistics.median(y[max(0, n - half) : n + half + 1]) for n in range(len(y))]


def _most(bar: Mapping[str, float]) -> float:
    return max(bar.values())


def _label(name: str) -> str:
    return {"in memory": "InMemorySaver"}.get(name, name)


def _caption(document: Document) -> str:
    versions = ", ".join(f"{name} {document['versions'][name]}" for name in NAMED_IN_CAPTION)
    quick = "; a quick run, no more than an impression" if document["quick"] else ""
    return f"{versions}\n{document['date'][:10]}, {document['cpus']} CPUs ({document['machine']}){quick}"


if __name__ == "__main__":
    main()
