"""Tables of the page: bits/dim, scores, settings."""

from collections.abc import Iterable, Sequence
from urllib.parse import quote

from iddpm_jax.report.collect import Result
from iddpm_jax.report.markup import Html, joined, tag
from iddpm_jax.report.settings import Setting

BOUNDS = {
    "fixed_large": "fixed, beta",
    "fixed_small": "fixed, beta_tilde",
    "unclipped": "unclipped",
    "clipped": "clipped",
}
"""What other bounds of an evaluation are called in the table's head."""


def table(label: str, head: Sequence[object], rows: Iterable[Sequence[object]]) -> Html:
    """A table that scrolls sideways where it is too wide; the first column names the row."""
    heads = tag("tr", {}, *(tag("th", {"scope": "col"}, cell) for cell in head))
    lines = (
        tag(
            "tr",
            {},
            tag("th", {"scope": "row"}, first),
            *(tag("td", {}, cell) for cell in cells),
        )
        for first, *cells in rows
    )
    inner = tag("table", {}, tag("thead", {}, heads), tag("tbody", {}, *lines))
    return tag(
        "div", {"class": "wide", "tabindex": 0, "role": "region", "aria-label": label}, inner
    )


def likelihood_table(found: Sequence[Result]) -> Html:
    """Every evaluation of bits/dim, and below what decided each."""
    if not found:
        return Html()
    others = [name for name in BOUNDS if any(name in r.record["others"] for r in found)]
    head = ["", "checkpoint", "split", "steps", "images", "bits/dim", "adjusted", "decoder"]
    rows, decided = [], []
    for i, result in enumerate(found):
        r, settings = result.record, result.record["settings"]
        rows.append(
            [
                _link_to(f"nll-{i}", i),
                _step(result),
                settings["nll"]["split"],
                f"{r['steps']:,}",
                f"{r['images']:,}",
                tag("b", {}, _with_error(r["bits_per_dim"], r["standard_error"], 3)),
                _estimate(r.get("adjusted")),
                number(r["decoder"], ".3f"),
                *(_other(r["others"].get(name)) for name in others),
            ]
        )
        averages = {f"less {name}": value for name, value in r.get("minus_averages", {}).items()}
        lines = {
            "terms of each image": f"{r['terms']:,} of {r['steps']:,}",
            "draws of the noise": r["draws"],
            "data": settings["data"]["name"],
            "variance": settings["diffusion"]["variance"],
            **{f"nll.{key}": value for key, value in settings["nll"].items()},
            **{f"bits/dim {name}": _estimate_of(value) for name, value in averages.items()},
        }
        decided.append(_decided(f"nll-{i}", i, result, lines))
    head += [BOUNDS[name] for name in others]
    return joined(
        [
            tag("h3", {}, "Every evaluation"),
            table("Every evaluation of bits/dim", head, rows),
            tag(
                "p",
                {"class": "note"},
                "Errors are standard errors between images. Below other bounds is their difference "
                "from the model's, on the same network outputs, images, terms and noise.",
            ),
            *decided,
        ]
    )


def score_table(found: Sequence[Result]) -> Html:
    """Every comparison of samples, and below what decided each."""
    if not found:
        return Html()
    names = list(dict.fromkeys(s["name"] for r in found for s in r.record["scores"]))
    better = {s["name"]: s.get("better", "") for r in found for s in r.record["scores"]}
    arrows = {"lower": " ↓", "higher": " ↑"}
    head = ["", "samples", "count", "against"]
    head += [name + arrows.get(better[name], "") for name in names]
    rows, decided = [], []
    for i, result in enumerate(found):
        r = result.record
        scores = {score["name"]: score for score in r["scores"]}
        samples = r["samples"].replace("\\", "/").split("/")
        rows.append(
            [
                _link_to(f"fid-{i}", i),
                tag("span", {"class": "words"}, _samples_word(samples)),
                number(r["samples_count"], ","),
                tag("span", {"class": "words"}, r["reference"]),
                *(_score(scores.get(name)) for name in names),
            ]
        )
        lines = {
            "samples": "/".join(samples),
            "reference": f"{r['reference']}, {number(r.get('reference_count'), ',')} images",
            "features": f"{r['network']} {r.get('preprocessing', '')}".strip(),
            **r["settings"],
        }
        for name, score in scores.items():
            words = [score.get("note", ""), f"error from {score.get('error_from', 'nothing')}"]
            lines[name] = "; ".join(filter(None, words))
        decided.append(_decided(f"fid-{i}", i, result, lines))
    note = "↓: lower is better, ↑: higher. Errors are standard errors, as docs/metrics.md says."
    return joined(
        [
            table("Every comparison of samples", head, rows),
            tag("p", {"class": "note"}, note),
            *decided,
        ]
    )


def setting_tables(settings: Sequence[Setting]) -> Html:
    """What differs from the paper's model, and all settings by part."""
    changed = [setting for setting in settings if setting.differs]
    head = ["key", "this run", "base config"]
    differing = map(_setting_row, changed)
    parts = [
        tag(
            "p",
            {"class": "note"},
            f"{len(changed)} of {len(settings)} settings differ from the base config, which is the "
            "paper's CIFAR-10 model. Where the paper's value is another one, its line says so.",
        ),
        tag("div", {"class": "settings"}, table("Settings that differ", head, differing)),
    ]
    rows = [_setting_row(setting) for setting in settings]
    summary = tag("summary", {}, f"All {len(settings)} settings")
    everything = table("All settings", head, rows)
    return joined([*parts, tag("details", {"class": "settings"}, summary, everything)])


def _setting_row(setting: Setting) -> list[object]:
    value = _value(setting.value)
    if setting.differs:
        value = tag("mark", {}, value)
    meaning = tag("p", {"class": "meaning"}, setting.meaning)
    return [joined([tag("code", {}, setting.key), meaning]), value, _value(setting.base)]


def _value(value: object) -> str:
    if isinstance(value, str):
        return value or '""'
    return str(value).lower() if isinstance(value, bool) else str(value)


def _decided(anchor: str, i: int, result: Result, lines: dict[str, object]) -> Html:
    """What decided a result, closed until it is asked for."""
    items = (
        joined([tag("dt", {}, name), tag("dd", {}, _value(value))]) for name, value in lines.items()
    )
    file = tag("a", {"href": quote(result.file)}, tag("code", {}, result.file))
    summary = tag("summary", {}, f"What decided {i + 1}")
    return tag("details", {"id": anchor}, summary, tag("p", {}, file), tag("dl", {}, *items))


def _link_to(anchor: str, i: int) -> Html:
    return tag("a", {"href": f"#{anchor}", "title": "what decided it"}, str(i + 1))


def _step(result: Result) -> str:
    return "" if result.step is None else f"{result.step:,}"


def _samples_word(path: Sequence[str]) -> str:
    """The folder of samples that were drawn here, in words; of others the path."""
    folder = path[-2] if len(path) > 1 else ""
    return folder.replace("_", " ") if folder.startswith("step") else "/".join(path)


def number(value: float | None, form: str) -> str:
    """A number for people, or a dash where none was measured."""
    return "–" if value is None else format(value, form)


def _with_error(value: float | None, error: float | None, digits: int) -> str:
    shown = number(value, f".{digits}f")
    return shown if error is None else f"{shown}\u00a0±\u00a0{error:.{digits}f}"


def _estimate(estimate: dict | None) -> str:
    return "–" if not estimate else _with_error(estimate["mean"], estimate["standard_error"], 3)


def _estimate_of(value: object) -> object:
    return _estimate(value) if isinstance(value, dict) else value


def _other(bound: dict | None) -> str | Html:
    if bound is None:
        return ""
    value, difference = bound["bits_per_dim"], bound["difference"]
    small = f"{difference:+.3f}\u00a0±\u00a0{bound['difference_standard_error']:.3f}"
    return joined([f"{value:.3f}", tag("small", {}, small)])


def _score(score: dict | None) -> str:
    return "" if score is None else _with_error(score["value"], score.get("error"), 3)
