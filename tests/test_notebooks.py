"""The notebooks run top to bottom in a kernel of their own, here on tiny untrained models."""

import json
from pathlib import Path

import jax
import nbformat
import pytest
from nbclient import NotebookClient
from tiny_config import tiny

from iddpm_jax import build, convert
from iddpm_jax.interop import openai, weights
from iddpm_jax.training.parallel import make_mesh

CACHE = Path(__file__).resolve().parent.parent / ".pytest_cache" / "jax"  # of the other tests
NOTEBOOKS = sorted((Path(__file__).resolve().parent.parent / "notebooks").glob("*.ipynb"))

SMALL = {"model.channel_mult": (1,), "model.attention_resolutions": ()}

PARAMETERS = {
    "quickstart": {
        "workdir": "quickstart",
        "overrides": [
            f"--config.{key}={value}"
            for key, value in {
                **SMALL,
                "diffusion.T": 100,
                "train.steps": 4,
                "train.sample_every_steps": 4,
            }.items()
        ],
    },
    "schedules_and_bound": {"workdir": "digits", "images": 2},
    "importance_sampling": {
        "changes": {**SMALL, "diffusion.T": 20, "sample.steps": "5", "train.steps": 6},
        "images": 4,
    },
    "few_step_sampling": {"workdir": "digits", "counts": [2, 3], "samples": 20, "batch_size": 10},
    "inpainting": {"workdir": "digits", "steps": "4"},
    "official_weights": {
        "workdir": "official",
        "small": [f"--config.{key}={value}" for key, value in {**SMALL, "model.width": 32}.items()],
        "overrides": ["--config.sample.count=2", "--config.sample.steps=3", "--config.nll.terms=2"],
        "images": 2,
    },
    "interpolation": {
        "workdir": "interpolation",
        "overrides": [
            f"--config.{key}={value}"
            for key, value in {**SMALL, "diffusion.T": 100, "train.steps": 4}.items()
        ],
        "counts": [3, 4],
        "pictures": 20,
    },
}
"""What each notebook is given in place of its cell tagged "parameters"; workdirs are the test's."""


@pytest.fixture(name="runs", scope="module")
def make_runs(tmp_path_factory) -> Path:
    """A folder with the workdir that notebooks ask for, digits."""
    folder = tmp_path_factory.mktemp("runs")
    config = tiny()
    model = build.model(config)
    params = model.network.init(jax.random.key(0), model.image_shape)
    file = folder / "model.safetensors"
    weights.write(file, openai.to_state_dict(model.spec, params), {})
    convert.from_files(config, model, make_mesh(), file, folder / "digits")
    return folder


def with_parameters(path: Path, values: dict) -> nbformat.NotebookNode:
    """A notebook with a cell of other values after the one tagged "parameters"."""
    notebook = nbformat.read(path, as_version=4)
    [place] = [
        i for i, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", [])
    ]
    own = notebook.cells[place].source
    assert [name for name in values if name not in own] == []
    code = "\n".join(f"{name} = {value!r}" for name, value in values.items())
    notebook.cells.insert(place + 1, nbformat.v4.new_code_cell(code))
    return notebook


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs_to_its_end(path, runs, monkeypatch, tmp_path):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(CACHE))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))  # nobody's own settings
    values = dict(PARAMETERS[path.stem])
    if "workdir" in values:
        values["workdir"] = str(runs / values["workdir"])
    notebook = with_parameters(path, values)
    place = {"metadata": {"path": str(path.parent)}}
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources=place).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert any("image/png" in output.get("data", {}) for output in outputs)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_stored_without_outputs(path):
    cells = json.loads(path.read_text())["cells"]
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_first_code_cell_installs_the_package_where_it_is_missing(path):
    cells = json.loads(path.read_text())["cells"]
    first = next(cell for cell in cells if cell["cell_type"] == "code")
    known = json.loads((path.parent / "quickstart.ipynb").read_text())["cells"][1]
    assert first["id"] == "install" and first["source"] == known["source"]
    assert 'find_spec("iddpm_jax") is None' in "".join(first["source"])


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_cells_are_short(path):
    cells = json.loads(path.read_text())["cells"]
    assert max(len(cell["source"]) for cell in cells if cell["cell_type"] == "code") <= 15
