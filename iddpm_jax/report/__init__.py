"""--mode report: all that a workdir holds on one page, which needs no server and no network."""

import errno
from collections.abc import Iterator
from pathlib import Path

from iddpm_jax import config as configs
from iddpm_jax.errors import InputError
from iddpm_jax.report import page, settings
from iddpm_jax.report.collect import collect
from iddpm_jax.report.pictures import draw
from iddpm_jax.training import runs
from iddpm_jax.training.parallel import is_main_process

__all__ = ["write"]


def write(workdir: Path, run: runs.Run, progress: bool = True) -> Iterator[str]:
    """Write report.html into a workdir, and a film of samples if there is none yet.

    All processes must call this together.

    Args:
        workdir: of the run.
        run: opened; its sample part says which samples are shown.
        progress: show a bar while samples are drawn.

    Yields:
        Lines for people: what is left out and why, and where the page is; only in the main process.

    Raises:
        InputError: the page cannot be written.
    """
    path = workdir / "report.html"
    if not is_main_process():
        draw(workdir, run, progress)
        return
    unfinished = path.with_suffix(".unfinished")
    try:  # now, or samples might be drawn for nothing
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "it is a folder")
        unfinished.write_text("")
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror})") from None
    try:
        shown = draw(workdir, run, progress)
        found = collect(workdir, run)
        stored = settings.settings(configs.load(workdir / "config.json"))
        unfinished.write_text(page.html(found, shown, stored), encoding="utf-8")
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
    for name, why in [*shown.missing.items(), *found.missing.items()]:
        yield f"{name:12} left out: {why}"
    yield f"{'report':12} {path} ({path.stat().st_size / 1e6:.2f} MB)"
