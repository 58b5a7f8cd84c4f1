"""HTML as strings: what is not markup of ours is escaped."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path


class Html(str):
    """Markup, which is not escaped again."""

    __slots__ = ()


def text(content: object) -> Html:
    """Escape anything but markup."""
    return content if isinstance(content, Html) else Html(escape(str(content)))


def join(parts: Iterable[object], between: str = "") -> Html:
    """One piece of many."""
    return Html(between.join(text(part) for part in parts))


def tag(name: str, *content: object, **attributes: object) -> Html:
    """An element; ``class_`` and ``for_`` lose their underscore, None and "" are left out."""
    pairs = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(str(value))}"'
        for key, value in attributes.items()
        if value not in (None, "")
    )
    return Html(f"<{name}{pairs}>{join(content)}</{name}>")


def bullets(items: Iterable[object]) -> Html:
    """A list."""
    return tag("ul", *(tag("li", item) for item in items))


def details(summary: str, *content: object) -> Html:
    """What is folded away at first; printed if it was unfolded."""
    return tag("details", tag("summary", summary), *content)


def table(
    head: Sequence[object], body: Iterable[object], caption: str = "", *, prose: bool = False
) -> Html:
    """A table that scrolls by itself on a narrow screen."""
    headings = tag("tr", *(h if _is(h, "th") else tag("th", h, scope="col") for h in head))
    rows = [row if isinstance(row, Html) else line(row) for row in body]
    parts = [tag("caption", caption)] if caption else []
    parts += [tag("thead", headings), tag("tbody", *rows)]
    inner = tag("table", *parts, class_="prose" if prose else "")
    return tag("div", inner, class_="scroll", tabindex="0")


def line(cells: Sequence[object], class_: str = "") -> Html:
    """A row, its first cell a heading."""
    first, *rest = cells
    others = (c if _is(c, "td") else tag("td", c) for c in rest)
    return tag("tr", tag("th", first, scope="row"), *others, class_=class_)


def _is(content: object, name: str) -> bool:
    return isinstance(content, Html) and content.startswith((f"<{name}>", f"<{name} "))


def picture(png: bytes, width: int, alt: str, caption: str) -> Html:
    """An embedded picture, ``width`` CSS pixels wide at most."""
    source = "data:image/png;base64," + base64.b64encode(png).decode()
    least = f"width:{width}px;min-width:{min(width, 640)}px"
    image = Html(f'<img src="{source}" alt="{escape(alt)}" style="{least}">')
    inner = tag("div", image, class_="scroll", tabindex="0")
    return tag("figure", inner, tag("figcaption", caption))


def page(title: str, sections: Sequence[tuple[str, str, Html]], head: Html) -> str:
    """The whole page."""
    links = (tag("a", heading.partition(":")[0], href=f"#{key}") for key, heading, _ in sections)
    body = [
        tag("header", tag("h1", title), head),
        tag("nav", *links, aria_label="Sections"),
        *(
            tag("section", tag("h2", heading), content, id=key)
            for key, heading, content in sections
        ),
    ]
    css = Path(__file__).with_name("style.css").read_text()
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"{tag('title', title)}<style>\n{css}</style></head>\n"
        f"<body><main>{join(body, chr(10))}</main></body></html>\n"
    )
