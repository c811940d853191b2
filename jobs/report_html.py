"""HTML for `stgs report`: tags that escape what they hold, tables, number formats, and the page with its style.

A table's cell that is a `Number` shows a text and is sorted by its value.

Text becomes part of a page through `tag` alone, which escapes everything that is not `Html` already: names come from
files and may hold anything.
"""

from __future__ import annotations

import base64
import hashlib
import html
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jobs.report_script import SCRIPT

_VOID = {"meta", "br", "img"}
MISSING = "–"  # noqa: RUF001 - a dash, shown where a file has no value
_NO_BREAK = "\u00a0"  # a space at which no line ends


class Html(str):
    """Text that is HTML already."""

    __slots__ = ()


def tag(name: str, /, *children: object, **attributes: object) -> Html:
    """An element.

    children: `Html` is kept, lists are flattened, None is left out, all else is escaped. attributes: None is left out;
    a trailing underscore is cut (`class_`), the others become dashes (`stroke_width`).
    """
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(str(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Html(f"<{name}{given}>" if name in _VOID else f"<{name}{given}>{join(children)}</{name}>")


def join(children: Iterable[object]) -> Html:
    """Children of an element, one after the other (see `tag`)."""
    parts: list[str] = []
    for child in children:
        if isinstance(child, Html):
            parts.append(child)
        elif isinstance(child, list | tuple):
            parts.append(join(child))
        elif child is not None:
            parts.append(html.escape(str(child)))
    return Html("".join(parts))


def section(anchor: str, title: str, *children: object) -> Html:
    """A section of the page with its heading."""
    return tag("section", tag("h2", title), children, id=anchor)


@dataclass(frozen=True, slots=True)
class Number:
    """A cell of a sortable table: what it shows, and the value that it is sorted by (None: it has none)."""

    shown: object
    value: float | None


def table(
    head: Sequence[object], rows: Iterable[Sequence[object]], *, text_columns: int = 1, sortable: bool = False
) -> Html:
    """A table that scrolls by itself on narrow screens.

    text_columns: how many columns hold text; the others hold numbers, which are aligned to the right. sortable: a click
    on a column's name sorts by it; cells of number columns are then a `Number`, a number, or a dash for a missing one.
    """

    def cell(kind: str, index: int, content: object) -> Html:
        class_ = None if index < text_columns else "number"
        value = content.value if isinstance(content, Number) else content
        shown = content.shown if isinstance(content, Number) else content
        given = "" if isinstance(content, Number) else None
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            given = repr(float(value))
        return tag(kind, shown, class_=class_, data_value=given if sortable and kind == "td" else None)

    def line(kind: str, cells: Sequence[object]) -> Html:
        return tag("tr", [cell(kind, index, content) for index, content in enumerate(cells)])

    body = tag("tbody", [line("td", row) for row in rows])
    class_ = "sortable" if sortable else None
    return tag("div", tag("table", tag("thead", line("th", head)), body, class_=class_), class_="scroll")


def picture(jpeg: bytes, description: str) -> Html:
    """A JPEG inside the page. description: what it shows, for those who do not see it."""
    return tag("img", src=f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}", alt=description)


def facts_table(facts: Mapping[str, object]) -> Html:
    """Names and values, two columns of text."""
    rows = [tag("tr", tag("th", name, scope="row"), tag("td", value)) for name, value in facts.items()]
    return tag("div", tag("table", tag("tbody", rows), class_="facts"), class_="scroll")


def fold(title: object, *children: object) -> Html:
    """A part of the page that opens on a click (and in print)."""
    return tag("details", tag("summary", title), children)


def figure(picture: object, caption: object, *, title: object = None, class_: str | None = None) -> Html:
    """A picture with its title above and its caption below."""
    head = None if title is None else tag("p", title, class_="head")
    return tag("figure", head, picture, None if caption is None else tag("figcaption", caption), class_=class_)


def fraction(value: float | None, decimals: int = 3) -> str:
    """A number such as an AUC, e.g. 0.993; a dash for None and NaN."""
    return MISSING if value is None or value != value else f"{value:.{decimals}f}"


def count(value: float | None) -> str:
    """A whole number with separators, e.g. 651,776; a dash for None."""
    return MISSING if value is None else f"{value:,.0f}"


def interval(value: Mapping[str, float] | None) -> str:
    """A value with its bounds, e.g. 0.993 [0.977, 1.000]."""
    return MISSING if value is None else f"{fraction(value['value'])} {bounds(value)}"


def bounds(value: Mapping[str, float]) -> str:
    """The bounds of an interval, e.g. [0.977, 1.000]."""
    return f"[{fraction(value['low'])}, {fraction(value['high'])}]"


def duration(seconds: float | None) -> str:
    """Seconds in a unit that suits them, e.g. 0.54 s, 8.6 s, 74 s, 12.5 min, 3.2 h."""
    if seconds is None:
        return MISSING
    if seconds < 120:
        decimals = 2 if seconds < 1 else 1 if seconds < 10 else 0
        return f"{seconds:.{decimals}f}{_NO_BREAK}s"
    value, unit = (seconds / 60, "min") if seconds < 7200 else (seconds / 3600, "h")
    return f"{value:.1f}{_NO_BREAK}{unit}"


def plural(number: int, noun: str) -> str:
    """A number and its noun, e.g. "1 point", "16 points"."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def text_of(value: Any) -> str:
    """A setting as text: lists with commas, nothing for None, floats without trailing zeros."""
    if isinstance(value, list | tuple):
        return ", ".join(text_of(item) for item in value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else MISSING if value is None else str(value)


def page(title: str, *children: object) -> str:
    """The whole file. Its policy lets a browser load nothing, and run no script but the page's own."""
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'unsafe-inline'; img-src data:; script-src 'sha256-{digest}'"
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        Html(f'<meta http-equiv="Content-Security-Policy" content="{policy}">'),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", title),
        tag("style", Html(_STYLE)),
    )
    body = tag("body", tag("main", children), tag("script", Html(SCRIPT)))
    return f"<!DOCTYPE html>\n{tag('html', head, body, lang='en')}\n"


# Series colours s0 to s3 differ by at least 15 (CIE76) for normal, protan, deutan and tritan sight, and from the paper
# by a contrast of at least 4; dashes tell them apart, too. Print is always light.
_STYLE = """
:root{--paper:#fff;--ink:#1c2127;--soft:#5a6470;--line:#d5dae0;--tint:#f4f6f8;--good:#066b5e;--bad:#a83605;
--c0:#14307a;--c1:#b03a06;--c2:#078a7a;--c3:#c216bf;--c4:#1c2127;--c5:#7b8591;--see:#e3ecfb;--hear:#fdebdd;--box:#fff}
@media screen and (prefers-color-scheme:dark){:root{--paper:#14181d;--ink:#e6e9ed;--soft:#a3adb8;--line:#39424c;
--tint:#1d232a;--good:#46d9a8;--bad:#ff8f57;--c0:#6aa2ff;--c1:#f9772f;--c2:#2fe3a0;--c3:#f0aad0;--c4:#f2f4f6;
--c5:#97a2ae;--see:#1b3050;--hear:#4a2c15;--box:#20272f}}
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%}
body{margin:0;background:var(--paper);color:var(--ink);
font:15px/1.5 system-ui,"Segoe UI",Roboto,"DejaVu Sans",sans-serif}
main{max-width:1200px;margin:0 auto;padding:24px 20px 60px}
h1{font-size:26px;line-height:1.25;margin:0 0 4px}
h1,h2,h3,p,li,summary,figcaption{overflow-wrap:anywhere}
h2{font-size:20px;margin:44px 0 10px;padding-top:10px;border-top:1px solid var(--line)}
h3{font-size:16px;margin:26px 0 8px}
p,ul{max-width:76ch;margin:8px 0}
li{margin:3px 0}
.soft,figcaption,.heat small{color:var(--soft)}
nav{font-size:14px;margin:10px 0 0;display:flex;flex-wrap:wrap;gap:2px 16px}
nav a{color:inherit}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(200px,1fr));gap:12px;margin:18px 0}
.tile{background:var(--tint);border:1px solid var(--line);border-radius:8px;padding:12px 14px}
.tile b{display:block;font-size:25px;line-height:1.25;font-variant-numeric:tabular-nums}
.tile small{display:block;color:var(--soft);font-size:13px;line-height:1.4}
.good b{color:var(--good)}.bad b{color:var(--bad)}
.caveats{background:var(--tint);border-left:4px solid var(--bad);padding:8px 16px;margin:16px 0}
.caveats h3{margin:4px 0}
.scroll{overflow-x:auto;margin:10px 0}
table{border-collapse:collapse;font-size:14px;font-variant-numeric:tabular-nums}
th,td{padding:4px 10px;text-align:left;vertical-align:top;border-bottom:1px solid var(--line)}
thead th{vertical-align:bottom;border-bottom:2px solid var(--line)}
.number{text-align:right;white-space:nowrap}
.facts th{font-weight:normal;color:var(--soft);white-space:nowrap}
.facts td{overflow-wrap:anywhere}
.chosen td{font-weight:600}
.maps{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(400px,100%),1fr));gap:8px 28px}
.heat{width:100%;table-layout:fixed}.heat th[scope=row],.heat .corner{width:3.4em;vertical-align:middle}
.heat td,.heat th{border:2px solid var(--paper);text-align:center;padding:5px 3px}
.heat td{border-radius:6px;line-height:1.25;print-color-adjust:exact;-webkit-print-color-adjust:exact}
.heat td small{display:block;font-size:11.5px;color:inherit}
.heat th{font-weight:normal;color:var(--soft);font-size:13px;white-space:nowrap}
.heat .found{outline:3px solid var(--bad);outline-offset:-1px}
.fine{table-layout:auto}.fine th[scope=row],.fine .corner{width:6.6em;text-align:left}.fine td{font-size:13px}
.heat .corner{padding:0}.heat .none{background:var(--tint);color:var(--soft)}
figure{margin:12px 0}
.head{font-size:14px;font-weight:600;margin:0 0 2px;max-width:none}
figcaption{font-size:13.5px;line-height:1.45;max-width:76ch}
.columns{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(460px,100%),1fr));gap:0 36px;align-items:start}
.roc{max-width:500px}
.pair{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(400px,100%),1fr));gap:8px 36px}
.panels{display:grid;grid-auto-flow:column;grid-auto-columns:minmax(255px,1fr);gap:6px;overflow-x:auto}
.wrap{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(280px,100%),1fr));gap:14px 6px}
.large{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(350px,100%),1fr));gap:10px 16px}
.beside{display:flex;flex-wrap:wrap;gap:0 36px}.beside>div{min-width:0}
.drawings{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(500px,100%),1fr));gap:18px 32px}
.drawings figure{break-inside:avoid;border:1px solid var(--line);border-radius:8px;padding:12px;margin:0;min-width:0}
.drawings .best{border:2px solid var(--bad)}
.drawings svg{min-width:500px}
.legend{list-style:none;padding:0;margin:6px 0;font-size:13.5px;max-width:none}
.legend li{display:inline-block;margin-right:18px}
.legend.rows li{display:block;margin:1px 0}
.legend svg{display:inline-block;width:34px;height:10px;vertical-align:middle;margin-right:6px}
svg{display:block;width:100%;height:auto}
img{max-width:100%;height:auto;display:block}
.sortable th button{font:inherit;color:inherit;background:none;border:0;padding:0;text-align:inherit;cursor:pointer}
.sortable th button::after{content:"\\2195";color:var(--soft);font-weight:normal;padding-left:3px}
.sortable th[aria-sort=ascending] button::after{content:"\\2191";color:inherit}
.sortable th[aria-sort=descending] button::after{content:"\\2193";color:inherit}
a:focus-visible,button:focus-visible,summary:focus-visible,[tabindex]:focus-visible{outline:3px solid var(--c0);
outline-offset:2px}
.tip{position:fixed;z-index:9;max-width:min(420px,calc(100vw - 16px));padding:5px 9px;border-radius:6px;
background:var(--ink);color:var(--paper);font-size:13px;line-height:1.4;white-space:pre-line;pointer-events:none;
overflow-wrap:anywhere}
td.at{outline:3px solid var(--c0)}svg .at{stroke-width:4}svg circle.at,svg .at circle{stroke:var(--ink);stroke-width:3}
svg text{font-size:12px;fill:var(--soft)}
svg .title,svg .strong{fill:var(--ink);font-weight:600}
svg .axis{stroke:var(--soft);fill:none}
svg .tick{stroke:var(--line)}
svg .diagonal{stroke:var(--line);stroke-width:1.5}
svg .series{fill:none;stroke-width:1.8;stroke-linejoin:round}
svg .series:hover{stroke-width:4}
svg .thick{stroke-width:3}
svg .faint{stroke-width:1;opacity:.4}
svg text.thick{font-weight:600}
svg .dot{stroke:none}
svg .box{fill:var(--box);stroke:var(--soft)}
svg .frame{fill:var(--tint);stroke:var(--line)}
svg .visual{fill:var(--see);stroke:var(--soft)}
svg .audio{fill:var(--hear);stroke:var(--soft)}
svg .unused{opacity:.38}
svg .wire{fill:none;stroke:var(--ink);stroke-width:1.4}
.s0{stroke:var(--c0);fill:var(--c0)}.s1{stroke:var(--c1);fill:var(--c1);stroke-dasharray:7 3}
.s2{stroke:var(--c2);fill:var(--c2);stroke-dasharray:2.5 2.5}
.s3{stroke:var(--c3);fill:var(--c3);stroke-dasharray:9 3 2 3}
.s4{stroke:var(--c4);fill:var(--c4);stroke-dasharray:12 4}.s5{stroke:var(--c5);fill:var(--c5);stroke-dasharray:4 2}
svg text.s0,svg text.s1,svg text.s2,svg text.s3,svg text.s4,svg text.s5{stroke:none}
details{margin:12px 0}
summary{cursor:pointer;font-weight:600}
pre{background:var(--tint);border:1px solid var(--line);border-radius:6px;padding:10px 12px;line-height:1.6;
overflow-x:auto}
pre code{overflow-wrap:normal}
code{font-family:ui-monospace,Menlo,Consolas,"DejaVu Sans Mono",monospace;font-size:13px;overflow-wrap:anywhere}
@media (max-width:600px){main{padding:16px 12px 40px}h1{font-size:22px}th,td{padding:4px 7px}}
@media print{main{max-width:none;padding:0}nav,.tip{display:none!important}.sortable th button::after{content:none}
.scroll,.panels{overflow:visible}
.panels{grid-auto-flow:row;grid-template-columns:1fr 1fr}
.maps,.pair,.drawings{grid-template-columns:1fr 1fr;gap:8px 16px}.drawings svg{min-width:0}
figure,.tile,tr{break-inside:avoid}pre{white-space:pre-wrap}
h2,h3{break-after:avoid}details::details-content{content-visibility:visible;height:auto}table{font-size:9.5px}
th,td{padding:2px 4px;overflow-wrap:anywhere}
.number,td span{white-space:normal!important}.scroll>*{min-width:0!important}}
"""
