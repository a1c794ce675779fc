"""Who may import whom: imports go down the floors of the package, read from the source."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import iddpm_jax

ROOT = Path(iddpm_jax.__file__).resolve().parent
PACKAGE = ROOT.name

FLOORS = {
    "errors": -1,
    "peers": -1,
    "diffusion": 0,
    "models": 0,
    "config": 0,
    "checks": 1,
    "runtime": 0,
    "allocator": 0,
    "variants": 0,
    "usage": 0,
    "arguments": 1,
    "data": 1,
    "images": 1,
    "downloads": 1,
    "interop": 1,
    "build": 1,
    "inspection": 2,
    "training": 2,
    "evaluation": 3,
    "convert": 3,
    "figures": 4,
    "plan": 4,
    "report": 5,
    "main": 6,
    "__main__": 6,
    "reproduce": 7,
}
"""Floor of every module or folder right below the package."""

LAZY = ("torch", "tensorflow", "tensorflow_datasets", "matplotlib")
"""Imported inside the functions that need them: not everyone has them, or they are slow."""

FREE_FLOOR = 1
"""The floor whose modules may import each other."""

DIFFUSION = {
    "schedules": set(),
    "gaussian": set(),
    "importance": set(),
    "process": {"schedules", "gaussian"},
    "respacing": {"schedules", "gaussian", "process"},
    "reverse": {"schedules", "gaussian", "process"},
    "losses": {"schedules", "gaussian", "process", "respacing", "reverse"},
    "guidance": {"schedules", "gaussian", "process", "respacing", "reverse"},
    "samplers": {"schedules", "gaussian", "process", "respacing", "reverse", "guidance"},
    "inpainting": {
        "schedules",
        "gaussian",
        "process",
        "respacing",
        "reverse",
        "guidance",
        "samplers",
    },
}
"""What each module of diffusion/ may import of diffusion/."""

FILES = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*.py"))


def imports(source: str) -> Iterator[tuple[str, bool]]:
    """(dotted name, whether it runs when the module is imported) of every import."""

    def visit(node: ast.AST, on_import: bool) -> Iterator[tuple[str, bool]]:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, on_import
        elif isinstance(node, ast.ImportFrom):
            prefix = "." * node.level + (node.module or "")
            for alias in node.names:
                yield f"{prefix}.{alias.name}", on_import
        inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            yield from visit(child, on_import and not inside)

    yield from visit(ast.parse(source), True)


def violations(file: str, source: str) -> Iterator[str]:
    """What is wrong with the imports of a file, given its path within the package."""
    unit, *inner = Path(file).with_suffix("").parts
    if unit == "__init__":
        unit = ""
    elif unit not in FLOORS:
        yield f"{file}: {unit} has no floor"
        return
    for name, on_import in imports(source):
        top, *rest = name.split(".")
        if top == "":
            yield f"{file}: relative import {name}"
        elif top in LAZY and on_import:
            yield f"{file}: {top} outside a function"
        elif top == "flax" and unit != "models":
            yield f"{file}: flax outside models/"
        elif top == PACKAGE:
            yield from _downward(file, unit, inner, rest)
        elif unit == "diffusion" and top not in {"jax", "numpy", *sys.stdlib_module_names}:
            yield f"{file}: diffusion/ imports {top}"


def _downward(file: str, unit: str, inner: list[str], target: list[str]) -> Iterator[str]:
    if not target or target[0] == "__version__":
        return
    if unit == "":
        yield f"{file}: the package itself imports {target[0]}"
    elif target[0] not in FLOORS:
        yield f"{file}: {target[0]} has no floor"
    elif target[0] == unit == "diffusion":
        for module in target[1:2]:
            if module not in DIFFUSION.get(inner[-1], set()):
                yield f"{file}: diffusion/{inner[-1]} imports {module}"
    elif unit == "diffusion":
        yield f"{file}: diffusion/ imports {target[0]}"
    elif target[0] != unit:
        floor, below = FLOORS[unit], FLOORS[target[0]]
        if not (below < floor or below == floor == FREE_FLOOR):
            yield f"{file}: {unit} (floor {floor}) imports {target[0]} (floor {below})"


@pytest.mark.parametrize("file", FILES)
def test_imports_go_down_only(file):
    assert list(violations(file, (ROOT / file).read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("diffusion/losses.py", "from iddpm_jax.models.unet import UNet"),
        ("diffusion/losses.py", "import iddpm_jax.errors"),
        ("diffusion/losses.py", "import scipy"),
        ("diffusion/process.py", "from iddpm_jax.diffusion.losses import Losses"),
        ("diffusion/process.py", "from iddpm_jax.diffusion import losses"),
        ("diffusion/importance.py", "from iddpm_jax.diffusion import gaussian"),
        ("diffusion/respacing.py", "from . import process"),
        ("models/unet.py", "def f():\n    from iddpm_jax.diffusion import process"),
        ("models/unet.py", "from iddpm_jax.config import check"),
        ("interop/openai.py", "import torch"),
        ("interop/openai.py", "try:\n    import torch\nexcept ImportError:\n    torch = None"),
        ("data/tfds.py", "import tensorflow.io"),
        ("data/pipeline.py", "from iddpm_jax import training"),
        ("training/state.py", "from flax import struct"),
        ("training/loop.py", "from iddpm_jax.evaluation import nll"),
        ("plan.py", "from iddpm_jax import figures"),
        ("build.py", "from iddpm_jax.main import run"),
        ("utils.py", "import numpy"),
        ("__init__.py", "from iddpm_jax.models import unet"),
    ],
)
def test_forbidden_imports_are_found(file, source):
    assert len(list(violations(file, source))) == 1


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("diffusion/losses.py", "import math\nimport jax.numpy as jnp\nimport numpy as np"),
        ("diffusion/losses.py", "from iddpm_jax.diffusion.reverse import Parametrization"),
        ("models/unet.py", "import flax.linen as nn\nfrom iddpm_jax.models import layers"),
        ("interop/openai.py", "def load():\n    import torch\n    return torch"),
        ("build.py", "from iddpm_jax import data\nfrom iddpm_jax.models.unet import UNetSpec"),
        ("main.py", "from iddpm_jax import __version__, figures\nimport iddpm_jax"),
    ],
)
def test_allowed_imports_pass(file, source):
    assert list(violations(file, source)) == []


def test_importing_the_package_leaves_jax_alone():
    script = "import sys, iddpm_jax; sys.exit(any(m in sys.modules for m in ('jax', 'numpy')))"
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT.parent, timeout=60)
