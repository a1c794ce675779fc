"""An extension of griffe: "a, b: text" in a docstring's Args or Attributes speaks of a and of b."""

import re

import griffe

GROUP = re.compile(
    r"^(?P<indent> +)(?P<names>\w+(?:,\s+\w+)+): (?P<text>.*(?:\n(?P=indent) +.*)*)", re.MULTILINE
)


class GroupedNames(griffe.Extension):
    """Gives each name an entry of its own, which is what griffe understands."""

    def on_instance(self, *, obj: griffe.Object, **_: object) -> None:
        """Called by griffe for every object it finds."""
        if obj.docstring is not None:
            obj.docstring.value = ungrouped(obj.docstring.value)


def ungrouped(docstring: str) -> str:
    """The docstring with every group of names taken apart."""

    def entries(group: re.Match) -> str:
        names = re.split(r",\s+", group["names"])
        return "\n".join(f"{group['indent']}{name}: {group['text']}" for name in names)

    return GROUP.sub(entries, docstring)
