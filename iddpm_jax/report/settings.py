"""The settings of a run beside those of the paper's model, with what each one means."""

import ast
import inspect
import io
import tokenize
from typing import NamedTuple

from ml_collections import ConfigDict

from iddpm_jax import config as configs


class Setting(NamedTuple):
    """A key of the config.

    Attributes:
        key: dotted.
        value: of the run.
        base: of config.base(), the paper's CIFAR-10 model.
        meaning: what config.py says of it, with the paper's value where that is another one.
    """

    key: str
    value: object
    base: object
    meaning: str

    @property
    def differs(self) -> bool:
        return self.value != self.base


def settings(config: ConfigDict) -> list[Setting]:
    """Every key of a config, in the order of config.base()."""
    own, said = dict(configs.flat(config)), meanings(inspect.getsource(configs.base))
    return [
        Setting(key, own[key], base, said.get(key, ""))
        for key, base in configs.flat(configs.base())
    ]


def meanings(source: str) -> dict[str, str]:
    """The comment on each key, right above its assignment or within it.

    Args:
        source: of a function that assigns to c.KEY.
    """
    comments: dict[int, str] = {}
    alone: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            comments[row] = token.string.removeprefix("#").strip()
            if not token.line[:column].strip():
                alone.add(row)
    found = {}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Attribute):
            first = node.lineno
            while first - 1 in alone:
                first -= 1
            lines = [comments[row] for row in range(first, node.end_lineno + 1) if row in comments]
            if lines:
                found[ast.unparse(node.targets[0]).partition(".")[2]] = " ".join(lines)
    return found
