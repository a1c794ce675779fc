"""What the documentation names exists: functions, attributes, tests, files and links."""

import ast
import dataclasses
import functools
import importlib
import json
import re
from pathlib import Path, PurePosixPath

import pytest
from golden_cases import FOLDER

from iddpm_jax import config

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted(
    page.relative_to(ROOT).as_posix()
    for page in [*(ROOT / "docs").glob("*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
    if page.exists()
)


def text_of(page: str) -> str:
    """A page without its fenced code and without pieces of code that look like links."""
    text = (ROOT / page).read_text(encoding="utf-8")
    text = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"`([^`]*)`", lambda code: "" if "[" in code[1] else code[0], text)


def definitions(text: str) -> dict[str, str]:
    """Name -> target of `[name]: target`."""
    return dict(re.findall(r"^\[([^\]]+)\]: (\S+)", text, flags=re.MULTILINE))


def links(text: str) -> list[tuple[str, str]]:
    """(text, target) of every link, image and definition."""
    known = definitions(text)
    found = re.findall(r"\[([^\]]*)\]\(<?([^)\s>]+)", text)
    found += [(label, known.get(key, "")) for label, key in _references(text)]
    found += list(known.items())
    found += [("", target) for target in re.findall(r"\)\]\(([^)\s]+)", text)]  # around an image
    found += [("", target) for target in re.findall(r'(?:src|href)="([^"]+)"', text)]
    return found


def _references(text: str) -> list[tuple[str, str]]:
    return re.findall(r"\[([^\]]*)\]\[([^\]]+)\]", text)


def missing_target(page: str, target: str) -> str | None:
    """What is wrong with the target of a link, or None."""
    if re.match(r"[a-z]+:|#", target):
        return None
    path = ((ROOT / page).parent / target.split("#")[0]).resolve()
    if not path.is_relative_to(ROOT):
        return f"{target!r} leads out of the repository"
    return None if target and path.exists() else f"{target!r} does not exist"


def has(owner: object, name: str) -> bool:
    """Whether a module or class has an attribute, fields of dataclasses included."""
    if dataclasses.is_dataclass(owner):
        fields = (field.name for field in dataclasses.fields(owner))
        return name in fields or hasattr(owner, name)
    return hasattr(owner, name)


def missing_name(module: str, names: list[str]) -> str | None:
    """The first of module.name.name... that does not exist, or None."""
    owner = importlib.import_module(module)
    for i, name in enumerate(names):
        if not has(owner, name):
            return f"{module}.{'.'.join(names[: i + 1])}"
        owner = getattr(owner, name, None)
    return None


def named_in_code(page: str) -> list[tuple[str, list[str]]]:
    """(module, names within) of every link to a module of the package, and of `iddpm_jax.x.y`."""
    text = text_of(page)
    found = []
    for label, target in links(text):
        path = PurePosixPath(target)
        dotted = label.strip("`").split(".")
        if path.suffix == ".py" and "iddpm_jax" in path.parts and label.startswith("`"):
            parts = path.with_suffix("").parts
            module = ".".join(parts[parts.index("iddpm_jax") :])
            assert dotted[0] == path.stem, f"{label} is linked to {target}"
            found.append((module, dotted[1:]))
    for dotted in re.findall(r"`(iddpm_jax(?:\.\w+)+)`", text):
        parts = dotted.split(".")
        split = next(n for n in range(len(parts), 0, -1) if _is_module(parts[:n]))
        found.append((".".join(parts[:split]), parts[split:]))
    return found


@functools.cache
def functions_of(file: Path) -> set[str]:
    """Names of the functions that a file defines."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def _is_module(parts: list[str]) -> bool:
    path = ROOT.joinpath(*parts)
    return path.is_dir() or path.with_suffix(".py").exists()


def facts(text: str) -> list[tuple[int, str, list[str]]]:
    """(number, what is done here, tests cited) of every row of compat.md's tables of facts."""
    found, known = [], definitions(text)
    for row in re.findall(r"^\| \d+ \|.*", text, flags=re.MULTILINE):
        number, _, here, tests = (cell.strip() for cell in row.strip().strip("|").split("|"))
        cited = [label for label, key in _references(tests) if known.get(key, "").endswith(".py")]
        found.append((int(number), here, cited))
    return found


def listed_files() -> list[str]:
    """Every path in the tree of docs/design.md, "Where things live"; folders end in a slash."""
    text = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    tree = text.split("## Where things live")[1].split("```text\n")[1].split("```")[0]
    found, folders = [], []
    for line in tree.splitlines():
        name = line.split()[0]
        depth = (len(line) - len(line.lstrip())) // 2
        found.append("".join([*folders[:depth], name]))
        if name.endswith("/"):
            folders[depth:] = [name]
    return found


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files(page):
    text = text_of(page)
    undefined = {key for _, key in _references(text)} - set(definitions(text))
    wrong = [missing_target(page, target) for _, target in links(text)]
    assert not undefined
    assert [message for message in wrong if message] == []


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_names_of_the_package_exist(page):
    wrong = [missing_name(module, names) for module, names in named_in_code(page)]
    assert [name for name in wrong if name] == []


@pytest.mark.parametrize("page", PAGES)
def test_named_tests_exist(page):
    for label, target in links(text_of(page)):
        if label.startswith("`test_") and target.endswith(".py"):
            names = functions_of((ROOT / page).parent / target)
            assert label.strip("`") in names, f"{target} has no {label}"


def test_equations_names_many_functions():
    # Guards the patterns above: a page that names nothing would pass every test of it.
    named = named_in_code("docs/equations.md")
    assert len(named) > 80
    assert ("iddpm_jax.diffusion.process", ["q_sample"]) in named


def test_every_fact_of_openai_has_one_row_and_a_test():
    found = facts(text_of("docs/compat.md"))
    assert [number for number, *_ in found] == list(range(1, 39))
    for number, here, tests in found:
        assert here.startswith(("same", "differs: ")), f"fact {number} says {here!r}"
        assert tests and all(t.startswith("`test_") for t in tests), f"fact {number} has no test"


def test_every_flag_of_openai_is_mapped():
    recorded = json.loads((FOLDER / "10_state_dicts.json").read_text(encoding="utf-8"))
    flags = {flag for script in recorded["defaults"].values() for flag in script}
    flags |= {flag for listing in recorded["listings"].values() for flag in listing["flags"]}
    table = text_of("docs/compat.md").split("## Flags")[1].split("## The facts")[0]
    mapped = {
        f for row in re.findall(r"^\| (`.*?) \|", table, re.M) for f in re.findall(r"\w+", row)
    }
    assert {flag for flag in flags if not flag.startswith("classifier_")} - mapped == set()


def test_config_keys_and_files_named_for_openais_exist():
    text = (ROOT / "docs" / "compat.md").read_text(encoding="utf-8")
    known = dict(config.flat(config.base()))
    sections = "|".join(sorted({key.split(".")[0] for key in known if "." in key}))
    key = rf"((?:{sections})\.\w+)"
    named = set(
        re.findall(f"--config.{key}", text) + re.findall(f"`{key}", text.split("## Flags")[1])
    )
    assert len(named) > 30
    assert named - set(known) == set()
    files = set(re.findall(r"configs/\w+\.py", text))
    assert len(files) > 4
    assert [file for file in files if not (ROOT / file).exists()] == []


def test_listed_files_exist():
    listed = listed_files()
    assert "iddpm_jax/diffusion/process.py" in listed
    wrong = [f for f in listed if not (ROOT / f).exists() or f.endswith("/") != (ROOT / f).is_dir()]
    assert wrong == []


def test_every_module_is_listed():
    modules = (path.relative_to(ROOT).as_posix() for path in (ROOT / "iddpm_jax").rglob("*.py"))
    listed = set(listed_files())
    assert [m for m in modules if m not in listed and not m.endswith("/__init__.py")] == []


@pytest.mark.parametrize(
    ("target", "wrong"),
    [
        ("design.md", False),
        ("design.md#floors", False),
        ("https://example.org/nothing.md", False),
        ("#floors", False),
        ("nothing.md", True),
        ("../../outside.md", True),
    ],
)
def test_wrong_targets_are_found(target, wrong):
    assert (missing_target("docs/equations.md", target) is not None) == wrong


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["Process", "T"], None),
        (["Process", "beta"], None),
        (["Process", "gamma"], "Process.gamma"),
        (["q_sampel"], "q_sampel"),
    ],
)
def test_wrong_names_are_found(names, expected):
    module = "iddpm_jax.diffusion.process"
    assert missing_name(module, names) == (expected and f"{module}.{expected}")
