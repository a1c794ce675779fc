"""The site of docs/: it builds without a warning, links lead somewhere, and nothing is fetched."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = sorted(path.parent.name for path in (ROOT / "iddpm_jax").glob("*/__init__.py"))


def load(name: str) -> ModuleType:
    """A Python file of docs/, which is no package."""
    spec = importlib.util.spec_from_file_location(f"docs_{name}", ROOT / "docs" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(name="links", scope="module")
def make_links() -> ModuleType:
    """The hook, which reads the package's source once."""
    return load("links")


@pytest.fixture(name="site", scope="module")
def make_site(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return folder


@pytest.mark.slow
def test_no_page_asks_another_host(site):
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 15
    for page in pages:
        text = page.read_text(encoding="utf-8")
        loaded = re.findall(r'<(?:script|img|iframe)[^>]*src="?([^" >]+)', text)
        loaded += re.findall(r'<link[^>]*rel="?(?:stylesheet|icon|preconnect)[^>]*', text)
        assert [target for target in loaded if "//" in target] == [], page.name
    styles = [path.read_text(encoding="utf-8") for path in site.rglob("*.css")]
    assert styles and not any(re.search(r"url\(['\"]?(https?:)?//", style) for style in styles)


@pytest.mark.slow
def test_equations_lead_to_the_reference(site):
    links = re.findall(r'href="(api/\w+\.html)#([\w.]+)"', (site / "equations.html").read_text())
    assert len(links) > 60
    assert ("api/diffusion.html", "iddpm_jax.diffusion.process.q_sample") in links
    for page in {page for page, _ in links}:
        places = set(re.findall(r'id="([\w.]+)"', (site / page).read_text(encoding="utf-8")))
        assert {place for other, place in links if other == page} - places == set()


def test_every_room_has_a_page():
    text = "".join(page.read_text() for page in (ROOT / "docs" / "api").glob("*.md"))
    documented = set(re.findall(r"^::: iddpm_jax\.(\w+)$", text, re.MULTILINE))
    assert set(ROOMS) - documented == set()
    assert {"diffusion", "models", "training"} <= set(ROOMS)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("label", "path", "expected"),
    [
        ("`process.q_sample`", "iddpm_jax/diffusion/process.py", "diffusion.process.q_sample"),
        ("`process.Process.beta`", "iddpm_jax/diffusion/process.py", "diffusion.process.Process"),
        ("`process.Process.T`", "iddpm_jax/diffusion/process.py", "diffusion.process.Process.T"),
        ("config.py", "iddpm_jax/config.py", "config"),
        ("the room", "iddpm_jax/diffusion/__init__.py", "diffusion"),
        ("`test_metrics`", "tests/training/test_metrics.py", None),
        ("`main`", "iddpm_jax/main.py", None),
    ],
)
def test_links_to_code_find_their_place(links, label, path, expected):
    found = links.documented(label, path)
    assert found == (expected and f"iddpm_jax.{expected}")


def test_grouped_names_are_taken_apart():
    before = "One line.\n\nArgs:\n    a, b: first,\n        and more.\n    c: last.\n"
    after = "    a: first,\n        and more.\n    b: first,\n        and more.\n    c: last.\n"
    ungrouped = load("names").ungrouped
    assert ungrouped(before) == f"One line.\n\nArgs:\n{after}"
    assert ungrouped("Of two, four: no list of names.") == "Of two, four: no list of names."
