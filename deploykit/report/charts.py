"""The charts of a report: altair specifications rendered offline to static SVG. Pure.

Colours are CSS variables, so that one drawing serves light and dark; text is text; no script is needed.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import altair as alt
import vl_convert

WIDTH = 420
"""A chart's width in CSS pixels; it fills its column and may shrink to a phone's."""
THIRD = 310
"""The width of a chart that stands with two others."""
_ROW = 26
_AXIS = 46
"""The height of a row of a chart, and of the axis below them."""
_COLOURS = {"baseline": "var(--baseline)", "head": "var(--head)", "original": "var(--muted)"}
_KINDS = {
    "best": "var(--head)",
    "front": "var(--pass)",
    "within": "var(--muted)",
    "beyond": "var(--fail)",
    "original": "var(--baseline)",
}
_VERDICTS = {"pass": "var(--pass)", "fail": "var(--fail)", "inconclusive": "var(--inconclusive)"}


def latency_distribution(distribution: Mapping[str, Any], medians: Mapping[str, float | None]) -> str:
    """Draw where the latencies of both sides lie, each curve as high as its own peak; a line marks the median.

    Args:
        distribution: `ms` (grid), `head` and `baseline` (density at each grid point, 0 to 1).
        medians: milliseconds, by side.
    """
    points = [
        {"ms": at, "density": density, "side": side}
        for side in ("baseline", "head")
        for at, density in zip(distribution["ms"], distribution[side], strict=True)
    ]
    x = alt.X(
        "ms:Q", title="milliseconds (log scale)", scale=alt.Scale(type="log", nice=False), axis=alt.Axis(tickCount=6)
    )
    y = alt.Y("density:Q", title=None, axis=None, stack=None, scale=alt.Scale(domain=[0, 1.08]))
    areas = (
        _chart(points)
        .mark_area(fillOpacity=0.22, strokeWidth=1.5)
        .encode(x=x, y=y, stroke=_sides(alt.Stroke), fill=_sides(alt.Fill))
    )
    rules = _chart([{"ms": at, "side": side} for side, at in medians.items() if at is not None])
    lines = rules.mark_rule(strokeWidth=2, strokeDash=[4, 3]).encode(x=x, color=_sides())
    return _svg(alt.layer(areas, lines), 170)


def ratios(rows: Iterable[Mapping[str, Any]], budget: float) -> str:
    """Draw head time / baseline time with its interval, a line a row, and the line that must not be crossed.

    Args:
        rows: `name`, `value`, `low`, `high` (both may be None), `verdict` (pass, fail, inconclusive or none).
        budget: the highest ratio that passes.
    """
    values = [dict(row) for row in rows]
    order = [row["name"] for row in values]
    y = alt.Y("name:N", title=None, sort=order, axis=alt.Axis(labelLimit=190, grid=False))
    ends = [row[key] for row in values for key in ("low", "value", "high") if row[key]] + [1, budget]
    domain = [min(ends) / 1.15, max(ends) * 1.15]
    title = "head time / baseline time (log scale; left of 1 is faster)"
    x = alt.X(
        "value:Q", title=title, scale=alt.Scale(type="log", domain=domain, nice=False), axis=alt.Axis(tickCount=6)
    )
    colour = _scale("verdict:N", {**_VERDICTS, "none": "var(--muted)"})
    dots = _chart(values).mark_point(filled=True, size=80, opacity=1).encode(x=x, y=y, color=colour)
    bars = (
        _chart([row for row in values if row["low"] and row["high"]])
        .mark_rule(strokeWidth=3)
        .encode(x=alt.X("low:Q"), x2="high:Q", y=y, color=colour)
    )
    equal = _chart([{"value": 1.0}]).mark_rule(color="var(--muted)").encode(x=x)
    limit = _chart([{"value": budget}]).mark_rule(color="var(--fail)", strokeDash=[4, 3]).encode(x=x)
    return _svg(alt.layer(equal, limit, bars, dots), _height(order))


def changes(rows: Sequence[Mapping[str, Any]], title: str) -> str:
    """Draw a score before and after for each class or slice, joined by a line.

    Args:
        rows: `name`, `before`, `after`.
        title: of the axis.
    """
    order = [row["name"] for row in rows]
    points = [
        {"name": row["name"], "value": row[key], "side": side}
        for row in rows
        for key, side in (("before", "baseline"), ("after", "head"))
        if row[key] is not None
    ]
    y = alt.Y("name:N", title=None, sort=order, axis=alt.Axis(labelLimit=150, grid=False))
    x = alt.X("value:Q", title=title, scale=alt.Scale(zero=False, padding=12), axis=alt.Axis(tickCount=5))
    joined = [dict(row) for row in rows if row["before"] is not None and row["after"] is not None]
    lines = _chart(joined).mark_rule(strokeWidth=3, color="var(--rule)").encode(x="before:Q", x2="after:Q", y=y)
    dots = _chart(points).mark_point(filled=True, size=90, opacity=1).encode(x=x, y=y, color=_sides())
    return _svg(alt.layer(lines, dots), _height(order))


def waterfall(rows: Sequence[Mapping[str, Any]], value: str, title: str, mark: Literal["bar", "interval"]) -> str:
    """Draw one quantity after each stage of compression.

    Args:
        rows: in order: `step`, the field `value`, `label` (the number as text), and `low`, `high` for an interval.
        value: the field drawn.
        title: of the chart.
        mark: bars from zero, or dots with their interval.
    """
    order = [row["step"] for row in rows]
    y = alt.Y("step:N", title=None, sort=order, axis=alt.Axis(labelLimit=120, grid=False))
    zero = mark == "bar"
    x = alt.X(
        f"{value}:Q", title=title, scale=alt.Scale(zero=zero, padding=0 if zero else 12), axis=alt.Axis(tickCount=4)
    )
    chart = _chart([dict(row) for row in rows])
    if mark == "bar":
        marks = [chart.mark_bar(height=14, color="var(--head)").encode(x=x, y=y)]
    else:
        spans = _chart([dict(row) for row in rows if row.get("low") is not None])
        marks = [
            spans.mark_rule(strokeWidth=3, color="var(--head)", opacity=0.45).encode(x="low:Q", x2="high:Q", y=y),
            chart.mark_point(filled=True, size=90, opacity=1, color="var(--head)").encode(x=x, y=y),
        ]
    return _svg(alt.layer(*marks), _height(order), THIRD)


def pareto(points: Sequence[Mapping[str, Any]], original: Mapping[str, Any], limits: Mapping[str, Any]) -> str:
    """Draw every tried recipe by latency and metric, as large as its bytes, and the edge that none is beyond.

    Args:
        points: `ms`, `metric`, `megabytes`, `kind` (best, front, within, beyond), `label` (text beside the point), and
            whether the point is on the `edge`.
        original: the model before compression: `ms`, `metric`, `megabytes`, `label`.
        limits: `metric` and `ms` (may be None): what must not be crossed; `title`: of the metric's axis.
    """
    ticks = alt.Axis(tickCount=6)
    x = alt.X(
        "ms:Q", title="milliseconds a row (log scale)", scale=alt.Scale(type="log", nice=False, padding=24), axis=ticks
    )
    y = alt.Y("metric:Q", title=limits["title"], scale=alt.Scale(zero=False, padding=20), axis=ticks)
    size = alt.Size("megabytes:Q", scale=alt.Scale(zero=True, range=[30, 420]), legend=None)
    drawn = [*map(dict, points), {**original, "kind": "original"}]
    colour = _scale("kind:N", _KINDS)
    dots = _chart(drawn).mark_point(filled=True, opacity=0.75).encode(x=x, y=y, size=size, color=colour)
    named = _chart([point for point in drawn if point["label"]])
    names = named.mark_text(dx=9, dy=-9, align="left", color="var(--ink)").encode(x=x, y=y, text="label:N")
    edge = _chart([dict(point) for point in points if point["edge"]])
    line = edge.mark_line(interpolate="step-after", color="var(--rule)").encode(x=x, y=y)
    limit = {"color": "var(--fail)", "strokeDash": [4, 3]}
    rules = [_chart([{"metric": limits["metric"]}]).mark_rule(**limit).encode(y=y)]
    if limits["ms"] is not None:
        rules.append(_chart([{"ms": limits["ms"]}]).mark_rule(**limit).encode(x=x))
    return _svg(alt.layer(line, *rules, dots, names), 320, 2 * THIRD)


def _chart(values: Sequence[Mapping[str, Any]]) -> Any:
    return alt.Chart(alt.InlineData(values=list(values)))


def _height(rows: Sequence[object]) -> int:
    return _ROW * max(2, len(rows)) + _AXIS


def _sides(channel: Any = alt.Color) -> Any:
    return _scale("side:N", _COLOURS, channel)


def _scale(field: str, colours: Mapping[str, str], channel: Any = alt.Color) -> Any:
    scale = alt.Scale(domain=list(colours), range=list(colours.values()))
    return channel(field, scale=scale, legend=None)


def _svg(chart: Any, height: int, width: int = WIDTH) -> str:
    """Render to SVG that scales with its column; the fonts are the page's."""
    styled = chart.properties(width=width, height=height, autosize=alt.AutoSizeParams(type="fit", contains="padding"))
    styled = styled.configure(
        background="transparent",
        font="sans-serif",
        padding={"left": 14, "right": 6, "top": 4, "bottom": 4},
        view=alt.ViewConfig(stroke=None),
        axis=alt.AxisConfig(
            domainColor="var(--rule)",
            gridColor="var(--grid)",
            tickColor="var(--rule)",
            labelColor="var(--ink)",
            titleColor="var(--soft)",
            labelFontSize=12,
            titleFontSize=12,
            titleFontWeight="normal",
            labelPadding=6,
            labelOverlap="greedy",
            labelSeparation=8,
        ),
    )
    drawing: str = vl_convert.vegalite_to_svg(styled.to_dict())
    return drawing
