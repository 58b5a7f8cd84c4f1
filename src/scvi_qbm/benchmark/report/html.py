"""HTML as strings: what is not markup of ours is escaped."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from html import escape


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
    """An embedded picture, ``width`` CSS pixels wide where there is room."""
    source = "data:image/png;base64," + base64.b64encode(png).decode()
    least = f"width:{width}px;min-width:{min(width, 640)}px"
    image = Html(f'<img src="{source}" alt="{escape(alt)}" style="{least}">')
    inner = tag("div", image, class_="scroll", tabindex="0")
    return tag("figure", inner, tag("figcaption", caption))


def page(title: str, sections: Sequence[tuple[str, str, Html]], head: Html) -> str:
    """The whole page."""
    links = (tag("a", heading, href=f"#{key}") for key, heading, _ in sections)
    body = [
        tag("header", tag("h1", title), head),
        tag("nav", *links, aria_label="Sections"),
        *(
            tag("section", tag("h2", heading), content, id=key)
            for key, heading, content in sections
        ),
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"{tag('title', title)}<style>{CSS}</style></head>\n"
        f"<body><main>{join(body, chr(10))}</main></body></html>\n"
    )


CSS = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0; background: #fff; color: #222;
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
main { max-width: 1280px; margin: 0 auto; padding: 1rem 1.2rem 4rem; }
h1 { font-size: 1.6rem; font-weight: 600; margin: 1rem 0 .3rem; }
h2 { font-size: 1.25rem; font-weight: 600; margin: 2.4rem 0 .6rem; padding-top: .8rem;
  border-top: 1px solid #ddd; }
h3 { font-size: 1rem; font-weight: 600; margin: 1.6rem 0 .4rem; }
p, li { max-width: 48rem; }
ul { padding-left: 1.2rem; } li { margin: .2rem 0; }
a { color: #0b5c94; }
nav { display: flex; flex-wrap: wrap; gap: .2rem 1rem; padding: .6rem 0; font-size: .9rem; }
code, pre { font: .85em/1.45 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
pre { background: #f6f6f4; padding: .6rem .8rem; white-space: pre-wrap; overflow-wrap: anywhere; }
.quiet, figcaption, caption { color: #666; font-size: .86rem; }
.scroll { overflow-x: auto; max-width: 100%; }
table { border-collapse: collapse; font-size: .82rem; font-variant-numeric: tabular-nums;
  margin: .3rem 0 .8rem; }
caption { text-align: left; padding: .2rem 0; }
th, td { padding: .22rem .45rem; text-align: right; vertical-align: baseline;
  border-bottom: 1px solid #eee; white-space: nowrap; }
thead th { vertical-align: bottom; border-bottom: 1px solid #999; font-weight: 600;
  white-space: normal; min-width: 4.2rem; }
th:first-child { text-align: left; position: sticky; left: 0; background: #fff; font-weight: 500;
  white-space: normal; min-width: 7.5rem; }
td small { color: #777; font-size: .88em; }
table.prose th, table.prose td { text-align: left; }
td.text { white-space: normal; min-width: 14rem; max-width: 40rem; overflow-wrap: anywhere; }
td.short { text-align: left; }
td.best { font-weight: 700; } td.best small { font-weight: 400; }
td.better { background: #e8f1f8; } td.worse { background: #fbeadd; }
td span.range { display: block; color: #777; font-size: .86em; }
tr.block th { color: #666; font-weight: 600; font-size: .92em; padding-top: .7rem; }
tr.reference th, tr.reference td { background: #f3f3f1; }
figure { margin: 1rem 0 1.4rem; }
img { height: auto; max-width: 100%; display: block; }
details { margin: .6rem 0; } summary { cursor: pointer; color: #0b5c94; }
@media (max-width: 640px) { body { font-size: 14px; } main { padding: .5rem .8rem 3rem; }
  th:first-child { min-width: 6rem; max-width: 8.5rem; } }
@media print {
  @page { size: A4 landscape; margin: 12mm; }
  body { font-size: 9.5pt; } main { max-width: none; padding: 0; } nav { display: none; }
  table { font-size: 7pt; } th, td { padding: 1.2pt 3pt; } thead { display: table-header-group; }
  thead th, th:first-child { min-width: 0; } tr { break-inside: avoid; }
  .scroll { overflow: visible; }
  img { min-width: 0 !important; max-height: 165mm; width: auto !important; max-width: 100%; }
  figure { break-inside: avoid; } td { print-color-adjust: exact; }
  h2, h3, summary { break-after: avoid; } details:not([open]) { display: none; }
}
"""
