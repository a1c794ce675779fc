"""The allocator below XLA on CPUs: one that keeps the memory which a step gives back.

XLA asks for a training step's working memory anew at every step. The C library hands blocks of that
size back to the kernel, which clears every page of the next ones. tcmalloc and Intel's tbbmalloc
keep them, and are quicker with the many small blocks that compiling asks for. Which one a process
has is settled when it starts, so a program starts itself again with it.

For programs that do not, such as a notebook's:

    env $(python -m iddpm_jax.allocator) jupyter notebook
"""

import os
import sys
import sysconfig
from collections.abc import Mapping
from importlib import metadata, util
from pathlib import Path

USR = Path("/usr")

TCMALLOC = "libtcmalloc_minimal.so.4"
"""Of Debian's and Ubuntu's libtcmalloc-minimal4, Fedora's gperftools-libs."""

TBBMALLOC = ("libtbbmalloc.so.2", "libtbbmalloc_proxy.so.2")
"""Of the package tbb, which `pip install 'iddpm_jax[cpu]'` brings; the second needs the first."""

TBBMALLOC_SETTINGS = {"TBB_MALLOC_SET_HUGE_SIZE_THRESHOLD": str(8 << 20)}
"""Freed blocks from 8 MiB up, the least it takes, are kept; by default none above 64 MiB is."""


def environment(given: Mapping[str, str]) -> dict[str, str]:
    """Variables that give a program on CPUs such an allocator.

    Args:
        given: the program's environment. Where it has LD_PRELOAD, even empty, the user has chosen.

    Returns:
        What to add; nothing where none is installed, or JAX has an accelerator.
    """
    if "LD_PRELOAD" in given or not _only_cpus(given):
        return {}
    libraries, settings = _tcmalloc(), {}
    if not libraries:
        libraries, settings = _tbbmalloc(), TBBMALLOC_SETTINGS
    # The dynamic linker takes spaces and colons for the ends of names.
    if not libraries or any(set(" :") & set(str(library)) for library in libraries):
        return {}
    found = {**settings, "LD_PRELOAD": ":".join(map(str, libraries))}
    return {name: value for name, value in found.items() if name not in given}


def restart() -> None:
    """Start this program again with `environment`, in place of itself. Call before all else.

    Does nothing where there is nothing to add, as in a program started again.
    """
    added = environment(os.environ)
    if added:
        command = [sys.executable, *sys.orig_argv[1:]]
        os.execve(sys.executable, command, {**os.environ, **added})


def name() -> str:
    """The allocator that this process was given by LD_PRELOAD: tcmalloc, tbbmalloc; else ""."""
    loaded = os.environ.get("LD_PRELOAD", "")
    return next((known for known in ("tcmalloc", "tbbmalloc") if known in loaded), "")


def _only_cpus(given: Mapping[str, str]) -> bool:
    """Whether JAX will compute on CPUs, by its own setting or by what is installed."""
    platforms = given.get("JAX_PLATFORMS")
    if platforms:
        return platforms == "cpu"
    return not any(util.find_spec(package) for package in ("jax_plugins", "libtpu"))


def _tcmalloc() -> list[Path]:
    """Where Debian keeps libraries for this interpreter, or Fedora."""
    folders = ("lib/" + (sysconfig.get_config_var("MULTIARCH") or ""), "lib64")
    paths = (USR / folder / TCMALLOC for folder in folders)
    return [path for path in paths if path.exists()][:1]


def _tbbmalloc() -> list[Path]:
    try:
        files = metadata.files("tbb") or []
    except metadata.PackageNotFoundError:
        return []
    found = {file.name: Path(file.locate()).resolve() for file in files}
    return [found[library] for library in TBBMALLOC] if found.keys() >= set(TBBMALLOC) else []


if __name__ == "__main__":
    print(*(f"{key}={value}" for key, value in environment(os.environ).items()))
