"""The page around its sections: contents, looks, and the script that sorts tables."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass

import jinja2
from markupsafe import Markup


@dataclass(frozen=True)
class Part:
    """Something below a heading of its own."""

    heading: str
    body: Markup


@dataclass(frozen=True)
class Section:
    """Parts below a title."""

    title: str
    parts: tuple[Part, ...]


def template(text: str) -> jinja2.Template:
    """One in which every value is escaped; an undefined one is an error."""
    return jinja2.Template(text, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)


def render(made: jinja2.Template, **values: object) -> Markup:
    return Markup(made.render(values))  # autoescape has escaped the values


_PARAGRAPHS = template('{% for text in texts %}<p{% if lead %} class="lead"{% endif %}>{{ text }}</p>\n{% endfor %}')


def paragraphs(*texts: str, lead: bool = False) -> Markup:
    """lead: in larger letters."""
    return render(_PARAGRAPHS, texts=texts, lead=lead)


STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 0 auto; padding: 1rem; color: #1a1a1a; overflow-wrap: anywhere; }
h1 { line-height: 1.2; } h2 { border-bottom: 2px solid #0072B2; margin-top: 3rem; } h3 { margin: 2rem 0 .5rem; }
.lead { font-size: 1.1rem; border-left: 4px solid #0072B2; padding-left: .8rem; }
.note, figcaption { color: #444; font-size: .9rem; }
figure { margin: 1rem 0; } .plot { position: relative; width: fit-content; max-width: 100%; }
.plot img { display: block; max-width: 100%; height: auto; } .plot svg { position: absolute; inset: 0; width: 100%; height: 100%; }
.plot svg * { fill: transparent; } .plot svg *:hover { stroke: #000; }
.box { overflow-x: auto; } .box:focus-visible { outline: 2px solid #0072B2; }
table { border-collapse: collapse; font-size: .85rem; }
th, td { text-align: left; padding: .2rem .6rem; border-bottom: 1px solid #ddd; vertical-align: top; white-space: nowrap; }
th { vertical-align: bottom; } th button { all: unset; cursor: pointer; font-weight: bold; } th button:focus-visible { outline: 2px solid; }
th button::after { content: " \\2195"; color: #999; } [aria-sort=ascending] button::after { content: " \\2191"; color: #000; }
[aria-sort=descending] button::after { content: " \\2193"; color: #000; }
.n { text-align: right; font-variant-numeric: tabular-nums; } .long { white-space: normal; min-width: 14rem; max-width: 40rem; }
nav ul { padding-left: 1.2rem; margin: .2rem 0; } summary { cursor: pointer; }
@media (max-width: 40rem) { body { padding: .6rem; } h1 { font-size: 1.5rem; } th, td { padding: .2rem .4rem; }
  figure { overflow-x: auto; } .plot.wide { width: 42rem; max-width: none; } .plot.wide img { width: 100%; }
  figcaption { position: sticky; left: 0; } }
"""
# A column is sorted by its numbers (the first of each cell; cells without one come last), or by its texts. A second click turns it round.
SCRIPT = """
for (const head of document.querySelectorAll("th")) head.firstElementChild.addEventListener("click", () => {
  const body = head.closest("table").tBodies[0], at = head.cellIndex, number = head.className === "n";
  const turn = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
  const key = row => number ? parseFloat(row.cells[at].title || row.cells[at].textContent) : row.cells[at].textContent;
  const last = value => Number.isNaN(value) || value === "";
  const order = (a, b) => last(a) - last(b) || turn * (number ? a - b : a.localeCompare(b, "en", {numeric: true})) || 0;
  body.append(...[...body.rows].map(row => [key(row), row]).sort((a, b) => order(a[0], b[0])).map(pair => pair[1]));
  for (const other of head.parentElement.cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", turn > 0 ? "ascending" : "descending");
});
"""
_PAGE = template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{{ hash }}'">
<title>{{ title }}</title>
<link rel="icon" href="data:,">
<style>{{ style }}</style>
</head>
<body>
<h1>{{ title }}</h1>
<nav aria-label="Contents"><ul>
{% for s in sections %}<li><a href="#s{{ loop.index }}">{{ s.title }}</a>
{% set outer = loop.index %}
<details><summary>{{ s.parts | length }} parts</summary><ul>
{% for p in s.parts %}<li><a href="#s{{ outer }}-{{ loop.index }}">{{ p.heading }}</a></li>
{% endfor %}</ul></details></li>
{% endfor %}
</ul></nav>
<main>
{% for s in sections %}
<section id="s{{ loop.index }}">
<h2>{{ s.title }}</h2>
{% set outer = loop.index %}
{% for p in s.parts %}
<h3 id="s{{ outer }}-{{ loop.index }}">{{ p.heading }}</h3>
{{ p.body }}
{% endfor %}
</section>
{% endfor %}
</main>
<script>{{ script }}</script>
</body>
</html>
""")


def page(title: str, sections: list[Section]) -> str:
    """The whole page, which needs nothing beside itself."""
    hashed = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    return render(_PAGE, title=title, sections=sections, style=Markup(STYLE), script=Markup(SCRIPT), hash=Markup(hashed)) + "\n"
