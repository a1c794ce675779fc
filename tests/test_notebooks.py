"""The notebooks run top to bottom, here on a tiny untrained model."""

import json
from pathlib import Path

import jax
import pytest
from tiny_config import tiny

from iddpm_jax import build, convert
from iddpm_jax.interop import openai, weights
from iddpm_jax.training.parallel import make_mesh

NOTEBOOKS = sorted((Path(__file__).resolve().parent.parent / "notebooks").glob("*.ipynb"))


@pytest.fixture(name="runs", scope="module")
def make_runs(tmp_path_factory) -> Path:
    """A folder with the workdir that the notebooks ask for, digits."""
    folder = tmp_path_factory.mktemp("runs")
    config = tiny()
    model = build.model(config)
    params = model.network.init(jax.random.key(0), model.image_shape)
    file = folder / "model.safetensors"
    weights.write(file, openai.to_state_dict(model.spec, params), {})
    convert.from_files(config, model, make_mesh(), file, folder / "digits")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs_to_its_end(path, runs):
    cells = json.loads(path.read_text())["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    scope: dict = {}
    for cell in code:
        # Fewer steps of the tiny model's 20.
        cell = cell.replace("../runs", str(runs)).replace('respaced("100"', 'respaced("4"')
        exec(compile(cell, str(path), "exec"), scope)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_stored_without_outputs(path):
    cells = json.loads(path.read_text())["cells"]
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells)
