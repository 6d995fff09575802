"""The report on the console."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gr_jax.evaluation._metrics import METRICS
from gr_jax.evaluation._report import SYSTEMS, Report, Split, verdict
from gr_jax.evaluation._search import SEARCH_NOTE

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


def print_report(report: Report, console: Console | None = None) -> None:
    """Prints a table, split by split and system by system, and what it says in sentences.

    On a terminal the best of each column within a split is bold; elsewhere the text is plain.

    Args:
        report: What to print.
        console: Where; standard output if not given.
    """
    from rich.console import Console
    from rich.measure import Measurement

    console = console or Console()
    table = _table(report)
    options = console.options.update(max_width=10_000)
    # A cut-off figure is worse than a line that the terminal wraps.
    width, console.width = console.width, Measurement.get(console, options, table).maximum
    try:
        console.print(table, crop=False)
    finally:
        console.width = width
    if report.splits:
        console.print(SEARCH_NOTE, markup=False, highlight=False, soft_wrap=True)
    for name, split in report.splits.items():
        console.print(verdict(name, split), markup=False, highlight=False, soft_wrap=True)


def _table(report: Report) -> Table:
    """Rows are splits and systems, columns are figures."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for heading in ("split", "system"):
        table.add_column(heading, no_wrap=True)
    for heading in (*METRICS, "ms/query", "index MB", "certified", "beam recall"):
        table.add_column(heading, justify="right", no_wrap=True)
    for name, split in report.splits.items():
        for system in SYSTEMS:
            first = system == next(iter(SYSTEMS))
            table.add_row(
                Text(name if first else ""),
                SYSTEMS[system],
                *_cells(report, split, system),
                end_section=not first,
            )
    return table


def _cells(report: Report, split: Split, system: str) -> list:
    """One system's figures, the best ones bold."""
    from rich.text import Text

    figures = split.figures(system)
    cells = [Text(f"{figures[m]:.3f}", _style(system in split.best(m))) for m in METRICS]
    fast = system in split.best("ms_per_query")
    small = report.index_bytes[system] == min(report.index_bytes.values())
    cells.append(Text(f"{figures['ms_per_query']:.2f}", _style(fast)))
    cells.append(Text(f"{report.index_bytes[system] / 1e6:.1f}", _style(small)))
    search = split.search if system == "gr_jax" else None
    for value in (search.certified, search.beam_recall) if search else (None, None):
        cells.append(Text("-" if value is None else f"{value:.3f}"))
    return cells


def _style(best: bool) -> str:
    """How a figure looks."""
    return "bold" if best else ""
