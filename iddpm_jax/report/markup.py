"""HTML from Python: every string is escaped unless it is markup already."""

from collections.abc import Iterable, Mapping
from html import escape


class Html(str):
    """Text that is markup; any other string is text for people."""


def text(value: object) -> Html:
    """A value as HTML: escaped, unless it is markup."""
    return value if isinstance(value, Html) else Html(escape(str(value)))


def tag(name: str, attributes: Mapping[str, object], *children: object) -> Html:
    """An element with an end tag.

    Args:
        name: of the element.
        attributes: values are escaped; True stands for an attribute without a value.
        children: one after the other, escaped unless they are Html.
    """
    return Html(f"{opening(name, attributes)}{''.join(map(text, children))}</{name}>")


def opening(name: str, attributes: Mapping[str, object]) -> Html:
    """A start tag, or an element without an end such as img."""
    words = "".join(
        f" {key}" if value is True else f' {key}="{escape(str(value))}"'
        for key, value in attributes.items()
    )
    return Html(f"<{name}{words}>")


def joined(parts: Iterable[object], between: str = "") -> Html:
    """Pieces in a row, each escaped unless it is markup."""
    return Html(Html(between).join(map(text, parts)))
