"""The aims of `benchmarks.compression`: the bars, whether a study meets them, and how that is drawn. Pure."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt
import vl_convert

from benchmarks.table import grid, heading, machine_of, system_rows

KEPT = 0.99
"""The accuracy budget: the least share of the original's metric."""
CHOSEN, POST_TRAINING, INT8 = "chosen", "post_training", "int8"
ROLES = (CHOSEN, POST_TRAINING, INT8)
_PUBLISHED = (
    "Published, for the ratio: Kwon et al. 2022 (abstract) report up to 1.56x without retraining at under 1% lost, for "
    "BERT-base and DistilBERT."
)

Json = Mapping[str, Any]


@dataclass(frozen=True)
class Aim:
    """A bar, and where its value stands in a study."""

    name: str
    bar: float
    path: tuple[str, ...]
    """Keys to an interval, or to a number."""
    role: str = CHOSEN


AIMS = (
    Aim("batch 1, x PyTorch eager", 20, ("single", "mean", "over_baseline")),
    Aim("batch 1, x best int8 peer", 4, ("single", "mean", "over_best_int8_peer")),
    Aim("offline, x PyTorch eager", 12, ("offline", "over_baseline")),
    Aim("offline, x best int8 peer", 3, ("offline", "over_best_int8_peer")),
    Aim("post-training only, x int8", 1.6, ("single", "mean", "over_int8"), POST_TRAINING),
    Aim("times smaller on disk", 8, ("smaller",)),
    Aim("int8 kernels, share of the int8 rate, batch 32", 0.6, ("int8_kernels",)),
    Aim("the same over whole calls", 0.6, ("int8_share",)),
)
MOST_SECONDS = 180
"""What post-training compression may take."""


def aims_of(systems: Mapping[str, Json], recipes: Mapping[str, Json]) -> list[dict[str, Any]]:
    """Hold a study's models against the bars; an aim without its model, or its peer, is left out.

    Batch 1 counts the time of all rows together: the median would not see the rows that a cascade hands on.

    A bar is met where the lower end of the interval reaches it, within the accuracy budget and, without retraining,
    within `MOST_SECONDS`.
    """
    found = []
    for aim in AIMS:
        system = systems.get(aim.role)
        value: Any = system
        for key in aim.path:
            value = value.get(key) if value else None
        if system is None or value is None:
            continue
        point, low = (value["value"], value["low"]) if isinstance(value, Mapping) else (value, value)
        seconds = recipes[aim.role]["seconds"] if aim.role == POST_TRAINING else None
        within = system["kept"] >= KEPT and (seconds is None or seconds <= MOST_SECONDS)
        met = bool(low is not None and low >= aim.bar and within)
        found.append(
            {
                "aim": aim.name,
                "bar": aim.bar,
                "value": point,
                "low": low,
                "kept": system["kept"],
                "seconds": seconds,
                "met": met,
            }
        )
    return found


def tables(result: Json) -> str:
    """Draw every study: the systems, the aims, and where the time of one row goes."""
    return "\n\n".join(_tables(result, study) for study in result["studies"])


def _tables(result: Json, study: Json) -> str:
    title = heading(study["name"], {**result, "data": study["data"]}, result["threads"])
    aims = [("aim", "bar", "reached", "lower end", "metric kept", "")]
    aims += [
        (
            aim["aim"],
            f"{aim['bar']:g}",
            f"{aim['value']:.2f}",
            "" if aim["low"] is None else f"{aim['low']:.2f}",
            f"{aim['kept']:.2%}",
            _verdict(aim),
        )
        for aim in study["aims"]
    ]
    spent = [("time of one row", "ms"), *((name, f"{ms:.3f}") for name, ms in study["time"].items())]
    recipe = "\n".join(
        f"{role} ({made['seconds']:.0f} s): {json.dumps(made['stages'])}" for role, made in study["recipes"].items()
    )
    parts = (title, recipe, system_rows(study), grid(aims), _PUBLISHED, grid(spent))
    return "\n\n".join(parts)


def summary(results: Sequence[Json]) -> str:
    """Draw a table for each machine, and in it one column a study.

    Each says what a study kept of the metric, and what it reached of each bar; `*` marks a bar met.
    """
    by_machine: dict[str, list[Json]] = {}
    for result in results:
        by_machine.setdefault(machine_of(result, result["threads"]), []).append(result)
    return "\n\n".join(_summary(machine, found) for machine, found in by_machine.items())


def _summary(machine: str, results: Sequence[Json]) -> str:
    rows = [("", *(f"{aim.name}: {aim.bar:g}" for aim in AIMS))]
    for study in (study for result in results for study in result["studies"]):
        reached = {each["aim"]: f"{each['value']:.2f}{'*' if each['met'] else ''}" for each in study["aims"]}
        kept = next(each["kept"] for each in study["systems"] if each["name"] == CHOSEN)
        rows.append((f"{study['name']}, {kept:.2%} kept", *(reached.get(aim.name, "") for aim in AIMS)))
    columns = [list(column) for column in zip(*rows, strict=True)]
    title = f"**Aims of compression**, {machine}; a bar that is met, within {KEPT:.0%} of the metric, has a *"
    return f"{title}\n\n{grid(columns)}"


def _verdict(aim: Json) -> str:
    """Say whether a bar is met, or by how much it is missed."""
    if aim["met"]:
        return "met"
    if aim["kept"] < KEPT:
        return f"not within the budget: {KEPT:.0%} of the metric"
    if aim["seconds"] is not None and aim["seconds"] > MOST_SECONDS:
        return f"took {aim['seconds']:.0f} s of {MOST_SECONDS}"
    return f"missed: {(aim['low'] or 0.0) / aim['bar']:.0%} of the bar"


def chart(result: Json) -> str:
    """Draw what each study reached of each bar as SVG; the bar is the line at 1."""
    rows = [
        {
            "study": study["name"],
            "aim": aim["aim"],
            "reached": aim["value"] / aim["bar"],
            "verdict": "met" if aim["met"] else "missed",
        }
        for study in result["studies"]
        for aim in study["aims"]
    ]
    base = alt.Chart(alt.InlineData(values=rows))
    colours = alt.Scale(domain=["met", "missed"], range=["#2b7a4b", "#b5532a"])
    bars = base.mark_bar().encode(
        x=alt.X("reached:Q", title="reached / bar"),
        y=alt.Y("aim:N", title=None, sort=[aim.name for aim in AIMS], axis=alt.Axis(labelLimit=220)),
        color=alt.Color("verdict:N", scale=colours, title=None),
    )
    line = alt.Chart(alt.InlineData(values=[{"at": 1}])).mark_rule(strokeDash=[4, 3]).encode(x="at:Q")
    drawn = alt.layer(bars, line, data=alt.InlineData(values=rows)).properties(width=260).facet("study:N", columns=2)
    return str(vl_convert.vegalite_to_svg(drawn.to_json()))
