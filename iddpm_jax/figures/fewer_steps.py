"""Bits/dim and sample quality against the number of steps (section 4)."""

from iddpm_jax.figures import points
from iddpm_jax.figures.drawing import NARROW, Figure, step_ticks
from iddpm_jax.figures.points import Curves, Found, Point
from iddpm_jax.figures.results import VARIANCES, Missing, Run, likelihoods
from iddpm_jax.figures.seeds import by_seed


def bits_per_dim(runs: list[Run]) -> Figure:
    """The bound against the number of steps, under the model's own and the fixed variances.

    Args:
        runs: whose nll/ is read; of several entries each one's own variance alone is drawn.

    Raises:
        Missing: nothing was measured with two numbers of steps.
    """
    groups = by_seed(runs)
    found = [
        each._replace(words=points.entry_words(group, each.words))
        for group in groups
        for run in group.runs
        for each in _bounds(run, alone=len(groups) == 1)
    ]
    panels = {"bits_per_dim": points.pooled(found)}
    if not panels["bits_per_dim"]:
        raise Missing(
            f"{runs[0].folder / 'nll'} holds bits/dim at less than two numbers of steps; "
            "measure more with --mode nll --config.nll.steps=25"
        )
    looks = points.looks(panels, groups)

    def draw(canvas):
        axes = canvas.subplots()
        _draw_by_steps(axes, panels["bits_per_dim"], looks.styles)
        axes.set_ylabel("bits/dim")
        points.draw_legend(canvas, looks.legend)

    errors = (
        "standard errors between images, most of which all points have in common, as they saw the "
        "same images"
    )
    caption = (
        "Bits/dim against the number of steps of the reverse process (after the paper's section "
        f"4), {points.common_words(panels)}. A fixed variance takes the same network's eps. "
        f"{points.bars(panels, errors)}"
    )
    return Figure(
        points.numbers(panels, looks.names, "steps"),
        caption,
        (NARROW, 2.8),
        draw,
        points.files(panels),
    )


def _bounds(run: Run, alone: bool) -> list[Found]:
    """A run's bounds by variance; beside other runs, under its own variance only."""
    found = []
    # Of several with the same steps, the most certain last, so that it is the one that stays.
    for each in sorted(likelihoods(run), key=lambda each: -each.record["standard_error"]):
        record = each.record
        bounds = {VARIANCES[record["settings"]["diffusion"]["variance"]]: record}
        if alone:
            bounds |= {VARIANCES[n]: b for n, b in record["others"].items() if n in VARIANCES}
        for variance, bound in bounds.items():
            point = Point(bound["bits_per_dim"], bound["standard_error"], (each.path,))
            found.append(Found((variance, *each.words), each.steps, run, point))
    return found


def scores(runs: list[Run]) -> Figure:
    """Every score of samples against the number of sampling steps, a curve for each sampler.

    Nichol & Dhariwal 2021, figure 8, with ancestral sampling under the model's own variance and
    under fixed ones (sample.variance), and with DDIM.

    Args:
        runs: whose fid/ is read.

    Raises:
        Missing: no sampler was measured with two numbers of steps.
    """
    groups = by_seed(runs)
    panels, better = points.score_curves(groups, lambda each: (each.words, each.steps))
    if not panels:
        raise Missing(
            f"{runs[0].folder / 'fid'} holds no sampler's scores at two numbers of steps "
            "with as many samples; measure more with --mode fid --config.sample.steps=25"
        )
    looks = points.looks(panels, groups)

    def draw(canvas):
        points.draw_panels(
            canvas, panels, better, lambda *each: _draw_by_steps(*each, looks.styles)
        )
        points.draw_legend(canvas, looks.legend)

    caption = (
        "Scores of samples against the number of sampling steps (after the paper's section 4 and "
        f"figure 8), {points.common_words(panels)}. "
        f"{points.bars(panels, 'standard errors, as docs/metrics.md says')}"
    )
    size = points.size_of(panels)
    return Figure(
        points.numbers(panels, looks.names, "steps"), caption, size, draw, points.files(panels)
    )


def _draw_by_steps(axes, curves: Curves, styles: dict[points.Words, dict]) -> None:
    """Curves on a logarithmic axis of numbers of steps."""
    points.draw_curves(axes, curves, styles, apart=True)
    step_ticks(axes, [steps for curve in curves.values() for steps in curve])
    axes.set_xlabel("number of steps")
