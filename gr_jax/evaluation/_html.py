"""The report as one self-contained page."""

import html
from collections.abc import Mapping, Sequence
from typing import Any

from gr_jax.evaluation._curves import Curve, draw_curve
from gr_jax.evaluation._metrics import METRICS
from gr_jax.evaluation._search import SEARCH_NOTE

_HEADINGS = {
    "hits@1": "Hits@1",
    "hits@10": "Hits@10",
    "mrr@10": "MRR@10",
    "ndcg@10": "nDCG@10",
    "recall@100": "Recall@100",
}

_STYLE = """
:root { color-scheme: light dark; --page: #f6f7f9; --card: #fff; --text: #1b1f24; --soft: #5b6570;
  --rule: #e1e5ea; --ours: #2563c9; --theirs: #9aa4b0; --band: #2563c933; --good: #17703a;
  --bad: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --page: #14171b; --card: #1d2126; --text: #e8ebef;
  --soft: #a0aab5; --rule: #323941; --ours: #6ea3ff; --theirs: #76828f; --band: #6ea3ff40;
  --good: #6fce93; --bad: #ff8f86; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 32px 24px 48px; max-width: 1160px; background: var(--page);
  color: var(--text); font: 15px/1.5 system-ui, "Segoe UI", "DejaVu Sans", sans-serif; }
h1 { margin: 0; font-size: 26px; letter-spacing: -.01em; }
h2 { margin: 0; font-size: 17px; }
.sub, .note { color: var(--soft); }
.sub { margin: 4px 0 24px; }
.note { margin: 8px 0 0; font-size: 13px; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(480px, 100%), 1fr));
  gap: 20px; margin-bottom: 20px; }
.card { background: var(--card); border: 1px solid var(--rule); border-radius: 10px;
  padding: 20px 22px; min-width: 0; overflow-x: auto; }
.card > .head { display: flex; justify-content: space-between; align-items: baseline; gap: 12px; }
.head span { color: var(--soft); font-size: 13px; }
table { width: 100%; border-collapse: collapse; margin-top: 12px;
  font-variant-numeric: tabular-nums; }
th, td { padding: 6px 0 6px 14px; text-align: right; white-space: nowrap; }
th:first-child, td:first-child { padding-left: 0; text-align: left; font-weight: 400; }
thead th { color: var(--soft); font-size: 13px; font-weight: 500;
  border-bottom: 1px solid var(--rule); }
tbody tr + tr > * { border-top: 1px solid var(--rule); }
.best { font-weight: 700; }
.gap, .range { font-size: 13px; }
.range { color: var(--soft); }
.good { color: var(--good); } .bad { color: var(--bad); }
.bars { width: 76px; }
.bars i { display: block; height: 6px; border-radius: 3px; margin: 2px 0; background: var(--ours); }
.bars i + i { background: var(--theirs); }
.key { display: inline-block; width: 9px; height: 9px; border-radius: 3px; margin-right: 6px;
  background: var(--ours); } .key.bm25 { background: var(--theirs); }
.curves { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(300px, 100%), 1fr));
  gap: 20px; margin-top: 14px; }
svg { display: block; width: 100%; height: auto; font: 11px system-ui, "DejaVu Sans", sans-serif; }
.grid { stroke: var(--rule); } .tick { fill: var(--soft); }
.axis { fill: var(--text); font-size: 12px; font-weight: 600; }
.curve { fill: none; stroke: var(--ours); stroke-width: 2; stroke-linejoin: round; }
.band { fill: var(--band); } .dot { fill: var(--ours); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 6px 24px; margin: 12px 0 0; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
code { font: 13px ui-monospace, "DejaVu Sans Mono", monospace; }
"""


def render_page(
    content: Mapping[str, Any], verdicts: Sequence[str], curves: Sequence[Curve]
) -> str:
    """Renders report.html: no script, nothing fetched, readable in light and dark.

    Args:
        content: What report.json holds.
        verdicts: One sentence for each split, in their order.
        curves: The training curves; may be empty.

    Returns:
        The whole page.
    """
    cards = "".join(
        _card(
            name,
            split,
            content["differences"][name],
            content["search"][name],
            content["index_bytes"],
            sentence,
        )
        for (name, split), sentence in zip(content["splits"].items(), verdicts, strict=True)
    )
    drawn = "".join(f"<div>{draw_curve(curve)}</div>" for curve in curves)
    training = (
        f'<div class="curves">{drawn}</div>' if drawn else '<p class="note">No training log.</p>'
    )
    summary = " · ".join(
        html.escape(part)
        for part in (
            f"{content['documents']:,} documents",
            f"{_short(content['parameters'])} parameters",
            f"{content['steps']:,} steps",
            content["device"],
        )
        if part
    )
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>gr_jax report</title><style>{_STYLE}</style></head><body>\n"
        f'<h1>Generative retrieval beside BM25</h1>\n<p class="sub">{summary}</p>\n'
        f'<div class="cards">{cards}</div>\n'
        f'<div class="cards"><section class="card"><h2>Training</h2>{training}</section></div>\n'
        f'<section class="card"><h2>Conditions</h2><dl>{_conditions(content)}</dl></section>\n'
        "</body></html>\n"
    )


def _card(
    name: str,
    split: Mapping[str, Any],
    differences: Mapping[str, Mapping[str, float]],
    search: Mapping[str, float | None] | None,
    index_bytes: Mapping[str, int],
    sentence: str,
) -> str:
    """One split: its table and its sentence."""
    rows = [
        _row(
            _HEADINGS[metric],
            split["gr_jax"][metric],
            split["bm25"][metric],
            ".3f",
            extra=_gap(split, metric, differences.get(metric))
            + _bars(split["gr_jax"][metric], split["bm25"][metric]),
        )
        for metric in METRICS
    ]
    speed = (split["gr_jax"]["ms_per_query"], split["bm25"]["ms_per_query"])
    size = (index_bytes["gr_jax"] / 1e6, index_bytes["bm25"] / 1e6)
    rows.append(_row("ms per query", *speed, ".2f", lower_is_better=True))
    rows.append(_row("index, MB", *size, ".1f", lower_is_better=True))
    rows += [_search_row(*figure) for figure in (search or {}).items()]
    interval = "<th>95 % interval</th>" if differences else "<th></th>"
    return (
        f'<section class="card"><div class="head"><h2>{html.escape(name)}</h2>'
        f"<span>{split['queries']:,} queries</span></div><table><thead><tr><th></th>"
        '<th><i class="key"></i>gr_jax</th><th><i class="key bm25"></i>BM25</th>'
        f"<th>difference</th>{interval}<th></th></tr></thead><tbody>{''.join(rows)}</tbody>"
        f'</table><p class="note">{html.escape(sentence)}</p>'
        + (f'<p class="note">{html.escape(SEARCH_NOTE)}</p>' if search else "")
        + "</section>"
    )


def _row(
    heading: str,
    ours: float,
    theirs: float,
    form: str,
    extra: str = "<td></td><td></td><td></td>",
    lower_is_better: bool = False,
) -> str:
    """A figure of both systems, the better one bold."""
    best = (min if lower_is_better else max)(ours, theirs)
    cells = "".join(
        f"<td{' class=best' if value == best else ''}>{value:{form}}</td>"
        for value in (ours, theirs)
    )
    return f"<tr><th>{heading}</th>{cells}{extra}</tr>"


def _search_row(name: str, value: float | None) -> str:
    """A figure of gr_jax's search; BM25 has no such thing."""
    text = "-" if value is None else f"{value:.3f}"
    heading = name.replace("_", " ")
    return f"<tr><th>{heading}</th><td>{text}</td><td>-</td><td></td><td></td><td></td></tr>"


def _gap(split: Mapping[str, Any], metric: str, difference: Mapping[str, float] | None) -> str:
    """The difference's two cells; coloured where the interval leaves out zero."""
    value = split["gr_jax"][metric] - split["bm25"][metric]
    if difference is None:
        return f'<td class="gap">{value:+.3f}</td><td></td>'
    tone = " good" if difference["low"] > 0 else " bad" if difference["high"] < 0 else ""
    return (
        f'<td class="gap{tone}">{value:+.3f}</td>'
        f'<td class="range">{difference["low"]:+.3f} to {difference["high"]:+.3f}</td>'
    )


def _bars(ours: float, theirs: float) -> str:
    """Two bars on a scale from 0 to 1."""
    bars = "".join(f'<i style="width:{value:.1%}"></i>' for value in (ours, theirs))
    return f'<td class="bars" aria-hidden="true">{bars}</td>'


def _conditions(content: Mapping[str, Any]) -> str:
    """What is needed to repeat the run, as a list of terms."""
    seconds = content["wall_seconds"]
    rows = {
        "command": f"<code>{html.escape(content['command'])}</code>",
        "seed": str(content["seed"]),
        "steps": f"{content['steps']:,}",
        "search": _search(content),
        "device": html.escape(content["device"]),
        **({"exposure": _exposure(content["exposure"])} if content["exposure"] else {}),
        "docid fingerprint": f"<code>{html.escape(content['docid_fingerprint'])}</code>",
        "wall-clock time": ", ".join(
            f"{html.escape(stage)} {_clock(value)}" for stage, value in seconds.items()
        ),
        "versions": html.escape(", ".join(f"{k} {v}" for k, v in content["versions"].items())),
    }
    return "".join(f"<dt>{term}</dt><dd>{value}</dd>" for term, value in rows.items())


def _search(content: Mapping[str, Any]) -> str:
    """How documents were ranked, in words."""
    beam = f"beam {content['beam']}"
    if content["certify"]:
        beam += ", wider where the ranking was not certainly exact"
    parts = [
        "every document scored" if content["exact"] else beam,
        f"scores: {content['score']}",
        f"precision: {content['precision'] or 'not known'}",
    ]
    return html.escape("; ".join(parts))


def _exposure(summary: Mapping[str, Any]) -> str:
    """How often training has seen the documents, in words."""
    figures = summary["total"]
    return (
        f"a document was seen {figures['min']:,} to {figures['max']:,} times, "
        f"median {figures['median']:,.0f}; {figures['never']:,} never"
    )


def _clock(seconds: float) -> str:
    """A duration for people: 8.5 s, 12 min 5 s, 3 h 20 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def _short(count: int) -> str:
    """A count for people: 950, 60.5 M."""
    for size, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.1f} {suffix}"
    return str(count)
