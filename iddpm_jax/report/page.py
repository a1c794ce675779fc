"""The page: HTML around what was found, with the style and the script inside."""

from importlib import resources
from pathlib import PurePosixPath
from string import Template
from urllib.parse import quote

from iddpm_jax.report.charts import Chart, as_json
from iddpm_jax.report.collect import Found, Result
from iddpm_jax.report.markup import Html, joined, opening, tag, text
from iddpm_jax.report.pictures import Panel, Shown
from iddpm_jax.report.settings import Setting
from iddpm_jax.report.tables import likelihood_table, number, score_table, setting_tables

SECTIONS = {
    "samples": "Samples",
    "bound": "Bits/dim",
    "curves": "Learning curves",
    "importance": "Importance sampling",
    "scores": "Scores of samples",
    "config": "Config",
}


def html(found: Found, shown: Shown, settings: list[Setting]) -> str:
    """The whole page, the same bytes for the same workdir and version.

    Args:
        found: facts, charts and results.
        shown: samples.
        settings: of the run as it is stored.
    """
    files = resources.files("iddpm_jax.report")
    parts = {
        name: (files / f"page.{name}").read_text(encoding="utf-8") for name in ("html", "css", "js")
    }
    charts = [chart for group in found.charts.values() for chart in group]
    contents = {
        "samples": _samples(found, shown),
        "bound": _bound(found),
        "curves": _group(found, "curves"),
        "importance": _group(found, "importance"),
        "scores": joined([_reason(found, "scores"), score_table(found.scores)]),
        "config": setting_tables(settings),
    }
    links = (tag("a", {"href": f"#{key}"}, title) for key, title in SECTIONS.items())
    sections = (
        tag("section", {"id": key}, tag("h2", {}, SECTIONS[key]), content)
        for key, content in contents.items()
    )
    return Template(parts["html"]).substitute(
        title=text(found.name),
        description=text(found.description),
        facts=joined(
            tag("div", {}, tag("dt", {}, name), tag("dd", {}, value)) for name, value in found.facts
        ),
        links=joined(links, " "),
        sections=joined(sections, "\n"),
        version=text(found.version),
        style=parts["css"],
        script=parts["js"],
        data=as_json(charts, shown.times),
    )


def _reason(found: Found, group: str) -> Html:
    """The line on what is left out of a group, or nothing."""
    why = found.missing.get(group)
    return Html() if why is None else _left_out(why)


def _left_out(why: str) -> Html:
    return tag("p", {"class": "missing"}, f"Left out: {why}.")


def _samples(found: Found, shown: Shown) -> Html:
    """The film under its slider, and the grid."""
    parts = [_left_out(why) for why in shown.missing.values()]
    if shown.panels:
        parts.append(_film(shown))
    if shown.grid:
        grid = shown.grid
        attributes = {
            "class": "pixels",
            "src": grid.source,
            "width": grid.width,
            "height": grid.height,
            "alt": f"Grid of samples of {found.name}",
            "style": f"max-width: {_enlarged(grid)}px",
        }
        caption = tag("figcaption", {}, f"{grid.name}. {shown.caption}, in ", _code(shown.folder))
        parts.append(tag("figure", {}, opening("img", attributes), caption))
    return joined(parts)


def _enlarged(panel: Panel) -> int:
    """Width on a wide screen, a whole number of pixels for each of the picture's."""
    return panel.width * max(1, min(6, 1040 // panel.width))


def _film(shown: Shown) -> Html:
    last = len(shown.times) - 1
    panels = []
    for panel in shown.panels:
        image = {
            "class": "pixels",
            "src": panel.source,
            "alt": f"{panel.name} of the first samples at the chosen t",
        }
        window = {
            "class": "window",
            "style": f"aspect-ratio: {panel.width} / {panel.height}; "
            f"max-width: {_enlarged(panel)}px",
        }
        name = tag("figcaption", {}, _paper_words(panel.name))
        panels.append(tag("figure", {}, name, tag("div", window, opening("img", image))))
    slider = {
        "type": "range",
        "id": "moment",
        "min": 0,
        "max": last,
        "step": 1,
        "value": last,
        "aria-valuetext": f"t = {shown.times[last]}",
    }
    controls = tag(
        "div",
        {"class": "controls"},
        tag("button", {"type": "button", "id": "play", "aria-pressed": "false"}, "Play"),
        tag("label", {"for": "moment"}, "Denoising step"),
        opening("input", slider),
        tag("output", {"for": "moment", "id": "time"}, f"t = {shown.times[last]}"),
    )
    style = {
        "id": "film",
        "class": "film",
        "style": f"--frame: {last}; --frames: {last + 1}",
    }
    note = (
        f"From noise (t = {shown.times[0]}, left) to samples (t = 0, right): x_t, and the x_0 that "
        f"the network predicts meanwhile. {shown.caption}."
    )
    return joined(
        [
            tag("div", style, tag("div", {"class": "panels"}, *panels), controls),
            tag("p", {"class": "note"}, _paper_words(note)),
        ]
    )


def _bound(found: Found) -> Html:
    parts = [_reason(found, "bits/dim")]
    if found.bound is not None:
        parts.append(_totals(found.bound))
    parts.append(_group(found, "bound"))
    parts.append(likelihood_table(found.likelihoods))
    return joined(parts)


def _totals(result: Result) -> Html:
    """The bound of one evaluation and what it is made of."""
    r = result.record
    rows = [("bits/dim", f"{r['bits_per_dim']:.4f} ± {r['standard_error']:.4f}")]
    if r.get("adjusted"):
        adjusted = r["adjusted"]
        value = f"{adjusted['mean']:.4f} ± {adjusted['standard_error']:.4f}"
        rows.append(("adjusted for terms left out", value))
    rows += [
        ("decoder, L_0", number(r["decoder"], ".4f")),
        ("terms L_1 to L_{T-1}", number(r["kl"], ".4f")),
        ("prior, L_T", number(r["prior"], ".2e")),
    ]
    items = (
        tag("div", {}, tag("dt", {}, _paper_words(name)), tag("dd", {}, value))
        for name, value in rows
    )
    return tag("dl", {"class": "facts small"}, *items)


def _group(found: Found, group: str) -> Html:
    """The charts of a group with their note, or why there are none."""
    if group not in found.charts:
        return _reason(found, group)
    note = tag("p", {"class": "note"}, _paper_words(found.notes[group]))
    charts = (_chart(chart) for chart in found.charts[group])
    return joined([tag("div", {"class": "charts"}, *charts), note])


def _chart(chart: Chart) -> Html:
    """A place for the script to draw in."""
    caption = tag("figcaption", {}, _paper_words(chart.title))
    return tag("figure", {"class": "chart", "data-chart": chart.name}, caption)


def _paper_words(words: str) -> Html:
    """Text with L_simple, x_t and the like as the paper sets them."""
    escaped = text(words)
    for name in ("L_simple", "L_vlb", "L_{T-1}", "L_0", "L_1", "L_T", "x_t", "x_0", "p_t"):
        letter, _, low = name.partition("_")
        low = low.strip("{}").replace("T-1", "T−1")
        escaped = escaped.replace(name, f"<i>{letter}</i><sub>{low}</sub>")
    return Html(escaped)


def _code(path: str) -> Html:
    """A file or folder of the workdir, with a link that works beside the page."""
    name = PurePosixPath(path).name
    return tag("a", {"href": quote(path)}, tag("code", {}, name))
