"""Sample quality when the beginning of the reverse process is skipped (figure 4)."""

from iddpm_jax.figures import points
from iddpm_jax.figures.drawing import Figure
from iddpm_jax.figures.points import Curves, Words
from iddpm_jax.figures.results import Measured, Missing, Run, skip_word
from iddpm_jax.figures.seeds import by_seed


def skipped_steps(runs: list[Run]) -> Figure:
    """Every score of samples against sample.skip, a curve for each entry and number of steps.

    Args:
        runs: whose fid/ is read.

    Raises:
        Missing: nothing was measured with two values of sample.skip.
    """
    groups = by_seed(runs)
    panels, better = points.score_curves(groups, _place)
    if not panels:
        raise Missing(
            f"{runs[0].folder / 'fid'} holds no scores at two values of sample.skip with "
            "as many steps and samples; measure more with --mode fid --config.sample.skip=0.2"
        )
    looks = points.looks(panels, groups)

    def draw_one(axes, curves: Curves) -> None:
        points.draw_curves(axes, curves, looks.styles, apart=False)
        axes.set_xlabel("share of the process skipped")

    def draw(canvas):
        points.draw_panels(canvas, panels, better, draw_one)
        points.draw_legend(canvas, looks.legend)

    caption = (
        "Scores of samples when the first steps of the reverse process, the noisiest, are left out "
        f"and it starts from N(0, I) at the step reached (the paper's figure 4), "
        f"{points.common_words(panels)}. "
        f"{points.bars(panels, 'standard errors, as docs/metrics.md says')}"
    )
    numbers = points.numbers(panels, looks.names, "skip")
    return Figure(numbers, caption, points.size_of(panels), draw, points.files(panels))


def _place(each: Measured) -> tuple[Words, float]:
    """What else decided a score, and the share that was skipped."""
    words = (word for word in each.words if word != skip_word(each.skip))
    return (*words, f"{each.steps:,} steps if none is skipped"), each.skip
