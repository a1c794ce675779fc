"""Likelihoods for people: one line, and the table that --mode nll shows."""

from collections.abc import Iterator

from iddpm_jax.evaluation.likelihood import Estimate, Likelihood, by_step, paired


def summary(likelihood: Likelihood) -> str:
    """One line for people."""
    decoder = "" if likelihood.decoder is None else f", L_0 {likelihood.decoder:.4f}"
    return (
        f"{likelihood.bits_per_dim:.4f} +- {likelihood.standard_error:.4f} bits/dim "
        f"(prior {likelihood.prior.mean():.5f}{decoder}; {_effort(likelihood)})"
    )


def table(found: dict[str, Likelihood], variance: str, dtype: str) -> str:
    """All that was measured in one pass, a few lines each.

    Args:
        found: by the rate of the average, "0" for the parameters themselves.
        variance: the model's own, such as "learned_range".
        dtype: that the network computed in.

    Returns:
        Bits/dim with its parts, paired differences, and the bounds over ranges of steps.
    """
    (first, likelihood), *_ = found.items()
    clipping = "clipped" if "unclipped" in likelihood.others else "unclipped"
    lines = [
        f"bits/dim of {_effort(likelihood)}, {_times(likelihood.draws.shape[1], 'draw')} of the "
        f"noise, x_0 {clipping}, {dtype}",
        *_averages(found),
        "",
    ]
    if likelihood.terms < len(likelihood.t):
        lines += ["adjusted: every term at its mean over the images that drew it"]
        for name, each in found.items():
            known = each.adjusted
            text = "-" if known is None else f"{known.mean:.4f} +- {known.standard_error:.4f}"
            lines.append(f"{_average(name):12}{text:>21}")
        lines.append("")
    lines += ["differences, on the same images, terms and noise"]
    lines += [*_differences(found, clipping, variance), ""]
    return "\n".join([*lines, *_by_step(_average(first), likelihood, variance)])


def _averages(found: dict[str, Likelihood]) -> Iterator[str]:
    yield (
        f"{'average':12}{'bits/dim':>10}{'+- images':>11}{'+- seeds':>10}{'prior':>10}"
        f"{'decoder':>10}{'KL':>10}"
    )
    for name, each in found.items():
        yield (
            f"{_average(name):12}{each.bits_per_dim:10.4f}{each.standard_error:11.4f}"
            f"{_number(each.monte_carlo_error, 10, 4)}{each.prior.mean():10.5f}"
            f"{_number(each.decoder, 10, 4)}{each.kl.mean():10.4f}"
        )


def _differences(found: dict[str, Likelihood], clipping: str, variance: str) -> Iterator[str]:
    """Of the averages from the first, and of each average's other bounds from its own."""
    (first, likelihood), *rest = found.items()
    for name, each in rest:
        difference = paired(each.per_image, likelihood.per_image)
        yield _line(f"{_average(name)} - {_average(first)}", difference)
    own = {"clipped": clipping, "unclipped": clipping}
    for name, each in found.items():
        for other, bound in each.others.items():
            words = f"{_average(name)}: {other} - {own.get(other, variance)}"
            yield _line(words, paired(bound.total, each.per_image))


def _effort(likelihood: Likelihood) -> str:
    return (
        f"{_times(len(likelihood.prior), 'image')}, {likelihood.terms} of "
        f"{_times(len(likelihood.t), 'term')} each"
    )


def _times(count: int, word: str) -> str:
    return f"{count} {word}" + ("s" if count != 1 else "")


def _average(name: str) -> str:
    return "parameters" if name == "0" else name


def _line(words: str, difference: Estimate) -> str:
    return f"{words:40}{difference.mean:+9.4f} +- {difference.standard_error:.4f}"


def _by_step(average: str, likelihood: Likelihood, variance: str) -> Iterator[str]:
    """Bits/dim of each range of steps under each variance, and the v that was learned."""
    variances = [name for name in likelihood.others if name.startswith("fixed")]
    header = f"{f'{average}, by step':22}" + "".join(f"{w:>15}" for w in [variance, *variances])
    learned = likelihood.v is not None
    yield header + (f"{'(v + 1) / 2':>14}{'v outside':>12}" if learned else "")
    for row in by_step(likelihood):
        first, last = row["first"], row["last"]
        line = f"{first if first == last else f'{first} to {last}':<22}"
        line += "".join(_number(row[name], 15, 4) for name in ("bound", *variances))
        if learned:
            fraction = None if row["v"] is None else (row["v"] + 1) / 2
            outside = None if row["v_outside"] is None else 100 * row["v_outside"]
            line += _number(fraction, 14, 3) + _number(outside, 11, 1)
            line += "" if outside is None else "%"
        yield line


def _number(value: float | None, width: int, digits: int) -> str:
    return f"{'-':>{width}}" if value is None else f"{value:{width}.{digits}f}"
