"""A hook of mkdocs: links to files outside docs/, which the pages have for readers of the source.

A link to a function, class or module leads to its place in the reference. A link to any other file
leads below `repo_url` where mkdocs.yml has one; without, its text stays, and shows the path.
"""

import functools
import posixpath
import re
from pathlib import Path

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.pages import Page

DOCS = Path(__file__).resolve().parent
FENCE = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)
DEFINITION = re.compile(r"^\[([^\]]+)\]: (\S+)\n", re.MULTILINE)
LINK = re.compile(r"\[([^\[\]]+)\](?:\(([^()\s]+)\)|\[([^\[\]]+)\])")


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, **_: object) -> str:
    """The page's text with its links outside docs/ replaced."""
    targets = dict(DEFINITION.findall(markdown))

    def outside(target: str) -> str | None:
        """The path in the repository, or None if the site has the target."""
        folder = posixpath.dirname(f"docs/{page.file.src_uri}")
        path = posixpath.normpath(posixpath.join(folder, target))
        local = not re.match(r"[a-z]+:|#", target)
        return path if local and not path.startswith("docs/") else None

    def replace(link: re.Match) -> str:
        label, target, name = link.groups()
        path = outside(target or targets.get(name, "#"))
        return link[0] if path is None else _elsewhere(label, path, config.repo_url)

    def define(definition: re.Match) -> str:
        return "" if outside(definition[2]) else definition[0]

    parts = FENCE.split(markdown)  # every other one is a block of code
    parts[::2] = [LINK.sub(replace, DEFINITION.sub(define, part)) for part in parts[::2]]
    return "".join(parts)


def _elsewhere(label: str, path: str, repo_url: str | None) -> str:
    name = documented(label, path)
    if name:
        return f"[{label}][{name}]"
    if repo_url:
        return f"[{label}]({repo_url.rstrip('/')}/blob/main/{path})"
    return f'<span title="{path}">{label}</span>'


def documented(label: str, path: str) -> str | None:
    """Dotted name of what the reference says about a link to a module, or None.

    Args:
        label: the link's text; `module.name` names something in the module.
        path: the file's, from the root of the repository.
    """
    module = path.removesuffix("/__init__.py").removesuffix(".py").replace("/", ".")
    if not any(f"{module}.".startswith(f"{room}.") for room in _rooms()):
        return None
    found = _package()[module.partition(".")[2]]
    for name in label.strip("`").split(".")[1:] if label.startswith("`") else ():
        inner = found.members.get(name)
        if inner is None or not inner.has_docstring:
            break  # fields stand in the docstring of their class
        found = inner
    return found.path


@functools.cache
def _rooms() -> list[str]:
    """What the pages of the reference document."""
    text = "".join(page.read_text(encoding="utf-8") for page in (DOCS / "api").glob("*.md"))
    return re.findall(r"^::: (\S+)", text, flags=re.MULTILINE)


@functools.cache
def _package() -> griffe.Module:
    return griffe.load("iddpm_jax", search_paths=[DOCS.parent])
