# Copyright: gpurig.llm maintainers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Memory plans as one HTML page: a bar for each card, and the numbers below it. (pure)

The page stands alone: inline SVG and style, no script, nothing fetched. It follows the reader's light or dark mode, and
on paper the parts are told apart by their labels and outlines, too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

_GIB = 1 << 30
WIDTH, BAR, GAP = 960, 44, 14
LABEL_FROM = 84
"""Parts narrower than this many units have their label in the table alone."""

KINDS = {
    "weights": "weights",
    "kv": "KV cache",
    "activation": "activations",
    "graphs": "CUDA graphs",
    "engine": "CUDA context, libraries, states",
    "others": "others on the card",
    "free": "headroom",
    "missing": "missing for KV cache",
}
"""What the bars are made of -> its name."""
_KIND_OF = {
    "weights": "weights",
    "kv": "kv",
    "activation": "activation",
    "compute": "activation",
    "unknown_tower": "activation",
    "graphs": "graphs",
    "others": "others",
}

STYLE = """
:root { color-scheme: light dark; --ink: #1b1b1b; --paper: #ffffff; --soft: #6b6b6b; --line: #c9c9c9;
  --weights: #7fb2d9; --kv: #74c7a5; --activation: #f0bf62; --graphs: #dda3c4; --engine: #b9bcc4;
  --others: #d9d0c1; --free: #ffffff; --missing: #e8795a; }
@media (prefers-color-scheme: dark) { :root { --ink: #ececec; --paper: #17191c; --soft: #a6a6a6; --line: #4a4d52;
  --weights: #2f6f9f; --kv: #217a5b; --activation: #94690f; --graphs: #8a4a70; --engine: #565a63;
  --others: #6a6153; --free: #17191c; --missing: #b04526; } }
@media print { :root { --ink: #000; --paper: #fff; --soft: #444; --line: #888; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; } section { break-inside: avoid; } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); margin: 2rem auto;
  max-width: 62rem; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin: 2rem 0 .25rem; } p { margin: .25rem 0; }
svg { width: 100%; height: auto; display: block; margin: .5rem 0; }
svg text { font: 13px system-ui, sans-serif; fill: var(--ink); }
rect { stroke: var(--ink); stroke-width: .75; } .edge { stroke: var(--ink); stroke-width: 2; stroke-dasharray: 5 3; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; margin: .5rem 0; }
td, th { text-align: right; padding: .15rem .6rem; border-bottom: 1px solid var(--line); font-weight: normal; }
td:first-child, th:first-child { text-align: left; } th { color: var(--soft); }
.key { display: inline-block; width: .8em; height: .8em; border: 1px solid var(--ink); margin-right: .4em; }
.verdict { font-weight: 600; } .soft { color: var(--soft); } ul { margin: .25rem 0; padding-left: 1.25rem; }
"""


@dataclass(frozen=True)
class Part:
    """One piece of a bar. kind: a key of KINDS; low, likely, high: bytes; instance: '' for what no instance takes."""

    kind: str
    label: str
    likely: float
    low: float
    high: float
    instance: str = ""


@dataclass(frozen=True)
class CardBar:
    """One card: its name, its total in bytes, and its parts from left to right."""

    card: str
    total_bytes: float
    parts: tuple[Part, ...]


def plan_page(hosts: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """The page for {host: plans}, each plan as the module vram_plan returns it."""
    body = "\n".join(section for host, plans in hosts.items() for section in _host(host, plans))
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>Memory plan</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<h1>Memory plan</h1>\n"
        '<p class="soft">Likely sizes; the tables have low and high. Nothing was started for this page.</p>\n'
        f"{body}\n</body>\n</html>\n"
    )


def bars_of(plans: Sequence[Mapping[str, Any]]) -> list[CardBar]:
    """One bar for each card that a plan names, in that order; instances that share a card follow each other."""
    cards: dict[str, list[tuple[str, Mapping[str, Any]]]] = {}
    for one in plans:
        for card in (one["plan"] or {}).get("cards", []):
            cards.setdefault(str(card["uuid"] or card["card"]), []).append((str(one["name"]), card))
    return [_bar(entries) for entries in cards.values()]


def _bar(entries: Sequence[tuple[str, Mapping[str, Any]]]) -> CardBar:
    first = entries[0][1]
    total = float(first["total_bytes"])
    parts = [
        part
        for number, (name, card) in enumerate(entries)
        for part in _parts(name, card)
        if part.kind != "others" or number == 0  # to a later instance the earlier ones are others
    ]
    left = total - sum(part.likely for part in parts if part.kind != "missing")
    if left > 0:
        parts.append(Part("free", KINDS["free"], left, left, left))
    return CardBar(str(first["card"]), total, tuple(parts))


def _parts(name: str, card: Mapping[str, Any]) -> Iterator[Part]:
    for label, size in {**card["parts"], **card["outside"]}.items():
        kind = _KIND_OF.get(label, "engine")
        if size["high"] > 0:
            whose = "" if kind == "others" else name
            yield Part(kind, label.replace("_", " "), size["likely"], size["low"], size["high"], whose)
    pool = card["pool"]
    if "kv" in card["parts"]:  # llama.cpp: what it needs is its own part, and the pool is what stays free
        return
    if pool["likely"] > 0:
        yield Part("kv", KINDS["kv"], pool["likely"], max(pool["low"], 0), pool["high"], name)
    else:
        yield Part("missing", KINDS["missing"], -pool["likely"], max(-pool["high"], 0), -pool["low"], name)


def _host(host: str, plans: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for card_bar in bars_of(plans):
        title = f"{escape(host)}: {escape(card_bar.card)}, {card_bar.total_bytes / _GIB:.1f} GiB"
        yield f"<section>\n<h2>{title}</h2>\n{_svg(card_bar)}\n{_table(card_bar)}\n</section>"
    for one in plans:
        yield f"<section>\n{_words(one)}\n</section>"


def _svg(card_bar: CardBar) -> str:
    # What is missing has no place on a card.
    shown = [part for part in card_bar.parts if part.likely > 0 and part.kind != "missing"]
    several = len({part.instance for part in shown if part.instance}) > 1
    whole = max(sum(part.likely for part in shown), card_bar.total_bytes)
    lines = [
        f'<svg viewBox="0 0 {WIDTH} {BAR + 2 * GAP}" role="img" aria-label="{escape(_spoken(card_bar), quote=True)}">',
    ]
    at = 0.0
    for part in shown:
        width = part.likely / whole * WIDTH
        said = f"{part.label}{f' of {part.instance}' if part.instance else ''}: {part.likely / _GIB:.2f} GiB"
        lines.append(
            f'<rect x="{at:.1f}" y="{GAP}" width="{width:.1f}" height="{BAR}" fill="var(--{part.kind})">'
            f"<title>{escape(said)}</title></rect>"
        )
        if width >= LABEL_FROM:
            whose = f"{part.instance}: " if several and part.instance else ""
            lines.append(f'<text x="{at + 6:.1f}" y="{GAP + 18}">{escape(whose + part.label)}</text>')
            lines.append(f'<text x="{at + 6:.1f}" y="{GAP + 35}">{part.likely / _GIB:.2f}</text>')
        at += width
    edge = card_bar.total_bytes / whole * WIDTH
    if edge < WIDTH - 0.5:
        lines.append(f'<line class="edge" x1="{edge:.1f}" x2="{edge:.1f}" y1="2" y2="{BAR + 2 * GAP - 2}"/>')
        lines.append(f'<text x="{edge - 6:.1f}" y="11" text-anchor="end">the card ends here</text>')
    return "\n".join([*lines, "</svg>"])


def _spoken(card_bar: CardBar) -> str:
    parts = ", ".join(f"{part.label} {part.likely / _GIB:.2f}" for part in card_bar.parts)
    return f"{card_bar.card}, {card_bar.total_bytes / _GIB:.2f} GiB: {parts}"


def _table(card_bar: CardBar) -> str:
    rows = "".join(
        f'<tr><td><span class="key" style="background: var(--{part.kind})"></span>{escape(part.label)}</td>'
        f"<td>{escape(part.instance)}</td>"
        f"<td>{part.low / _GIB:.2f}</td><td>{part.likely / _GIB:.2f}</td><td>{part.high / _GIB:.2f}</td></tr>\n"
        for part in card_bar.parts
    )
    heads = "".join(f"<th>{head}</th>" for head in ("part", "instance", "low", "likely", "high, GiB"))
    return f"<table><thead><tr>{heads}</tr></thead><tbody>\n{rows}</tbody></table>"


def _words(one: Mapping[str, Any]) -> str:
    made = one["plan"]
    lines = [
        f"<h2>Instance {escape(str(one['name']))}</h2>",
        f'<p><span class="verdict">{escape(str(one["verdict"]))}</span>: {escape(str(one["reason"]))}</p>',
    ]
    if made:
        lines.append(
            f"<p>{escape(str(made['model']))} on {escape(str(made['engine']))} {escape(str(made['version']))}. Longest "
            f"context that fits: {made['largest_context']} tokens. Requests of {made['context']} tokens at once: "
            f"{made['concurrency']:.1f}.</p>"
        )
        chosen = {key: one[key] for key in ("context", "parallel") if one[key]} | dict(one["flags"])
        if chosen:
            words = ", ".join(f"{escape(str(name))} {escape(str(value))}" for name, value in chosen.items())
            lines.append(f"<p>Chosen: <code>{words}</code></p>")
        lines.append(_list(made["reasons"]))
    if one["verdict"] != "fits" and one["remedies"]:
        lines.append("<p>What would help, best first:</p>")
        lines.append(_list(one["remedies"]))
    return "\n".join(line for line in lines if line)


def _list(items: Sequence[str]) -> str:
    return "<ul>" + "".join(f"<li>{escape(str(item))}</li>" for item in items) + "</ul>" if items else ""
