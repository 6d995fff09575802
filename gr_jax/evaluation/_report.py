"""What an experiment measured: a value, its JSON form, and one sentence per split."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from gr_jax.errors import UserError
from gr_jax.evaluation._curves import read_curves
from gr_jax.evaluation._html import render_page
from gr_jax.evaluation._metrics import METRICS, Difference, Qrels, bootstrap, per_query
from gr_jax.evaluation._runs import Run
from gr_jax.evaluation._search import SearchQuality
from gr_jax.files import atomic_file

SYSTEMS = {"gr_jax": "gr_jax", "bm25": "BM25"}
"""A system's key in the report -> its name for people."""

FIGURES = (*METRICS, "ms_per_query")
"""What is known of a system on a split."""

STAGES = ("docids", "train", "eval")
"""What took the wall-clock time."""


@dataclasses.dataclass(frozen=True)
class Split:
    """Two systems on the queries of one split.

    Attributes:
        queries: How many queries the split's judgements have.
        gr_jax: The generative retriever's figure for each of `METRICS` and "ms_per_query".
        bm25: The same of BM25.
        differences: gr_jax minus BM25 with its 95 % interval, for any of `METRICS`.
        search: What gr_jax's search may have missed; None if nobody looked.
    """

    queries: int
    gr_jax: Mapping[str, float]
    bm25: Mapping[str, float]
    differences: Mapping[str, Difference] = dataclasses.field(default_factory=dict)
    search: SearchQuality | None = None

    def __post_init__(self):
        for system in SYSTEMS:
            _check_keys(system, self.figures(system), FIGURES)

    def figures(self, system: str) -> Mapping[str, float]:
        """The figures of "gr_jax" or "bm25"."""
        return {"gr_jax": self.gr_jax, "bm25": self.bm25}[system]

    def best(self, figure: str) -> frozenset[str]:
        """The systems that have the best value of a figure: one, or both where they are equal."""
        values = {system: self.figures(system)[figure] for system in SYSTEMS}
        best = (min if figure == "ms_per_query" else max)(values.values())
        return frozenset(system for system, value in values.items() if value == best)


@dataclasses.dataclass(frozen=True)
class Report:
    """All that is told about one trained model, and all that is needed to repeat it.

    Attributes:
        documents: The size of the corpus.
        parameters: The size of the model.
        steps: How many steps it was trained.
        wall_seconds: The time that each of "docids", "train" and "eval" took.
        splits: The results, by the split's name.
        seed: The run's seed.
        command: The command line that made it.
        docid_fingerprint: The DocidMap's.
        beam: The width of the beam search.
        index_bytes: Of "gr_jax" and "bm25": the size of what answers queries.
        device: The machine, in words.
        versions: Library -> version.
        score: Over what the search normalises each step. Older reports have neither this nor what
            follows: the defaults are what held for them.
        precision: Of the model while it searched; None if not known.
        exact: Whether every document was scored, instead of a search.
        certify: Whether the beam grew where the ranking was not certainly exact.
        exposure: How often training has seen the documents, as `gr_jax.data.Exposure.summary`
            has it; None if not known.
    """

    documents: int
    parameters: int
    steps: int
    wall_seconds: Mapping[str, float]
    splits: Mapping[str, Split]
    seed: int
    command: str
    docid_fingerprint: str
    beam: int
    index_bytes: Mapping[str, int]
    device: str
    versions: Mapping[str, str]
    score: str = "full"
    precision: str | None = None
    exact: bool = False
    certify: bool = False
    exposure: Mapping[str, Any] | None = None

    def __post_init__(self):
        _check_keys("wall_seconds", self.wall_seconds, STAGES)
        _check_keys("index_bytes", self.index_bytes, tuple(SYSTEMS))

    def to_json(self) -> dict[str, Any]:
        """The content of report.json. Other tools read its first five keys: leave them be."""
        return {
            "documents": self.documents,
            "parameters": self.parameters,
            "wall_seconds": {stage: float(self.wall_seconds[stage]) for stage in STAGES},
            "steps": self.steps,
            "splits": {
                name: {
                    "queries": split.queries,
                    **{
                        system: {key: float(split.figures(system)[key]) for key in FIGURES}
                        for system in SYSTEMS
                    },
                }
                for name, split in self.splits.items()
            },
            "differences": {
                name: {key: dataclasses.asdict(value) for key, value in split.differences.items()}
                for name, split in self.splits.items()
            },
            "search": {
                name: dataclasses.asdict(split.search) if split.search else None
                for name, split in self.splits.items()
            },
            "seed": self.seed,
            "command": self.command,
            "beam": self.beam,
            "score": self.score,
            "precision": self.precision,
            "exact": self.exact,
            "certify": self.certify,
            "exposure": dict(self.exposure) if self.exposure else None,
            "docid_fingerprint": self.docid_fingerprint,
            "index_bytes": dict(self.index_bytes),
            "device": self.device,
            "versions": dict(self.versions),
        }


def read_report(path: Path) -> Report:
    """The `Report` whose `to_json` was written to `path`.

    Raises:
        UserError: The file is missing or damaged.
    """
    try:
        record = json.loads(Path(path).read_text("utf-8"))
        differences = record.pop("differences")
        search = record.pop("search", {})  # not in older reports
        splits = {
            name: Split(
                **split,
                differences={k: Difference(**v) for k, v in differences[name].items()},
                search=SearchQuality(**search[name]) if search.get(name) else None,
            )
            for name, split in record.pop("splits").items()
        }
        return Report(splits=splits, **record)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not a report of gr-jax ({error})") from error


def measure_split(
    qrels: Qrels,
    gr_jax: tuple[Run, float],
    bm25: tuple[Run, float],
    seed: int,
    search: SearchQuality | None = None,
) -> Split:
    """Evaluates both systems on one split, with bootstrap intervals of their differences.

    Args:
        qrels: The split's judgements.
        gr_jax: The generative retriever's run and its milliseconds per query.
        bm25: The same of BM25, as `BM25.rank` returns it.
        seed: The seed of the bootstrap.
        search: What gr_jax's search may have missed.

    Returns:
        The split's entry of a `Report`.
    """
    columns = []
    for run, _ in (gr_jax, bm25):
        rows = per_query(run, qrels).values()
        columns.append({key: np.asarray([row[key] for row in rows]) for key in METRICS})
    ours, theirs = columns
    return Split(
        queries=len(qrels),
        gr_jax=_means(ours) | {"ms_per_query": gr_jax[1]},
        bm25=_means(theirs) | {"ms_per_query": bm25[1]},
        differences={key: bootstrap(ours[key] - theirs[key], seed) for key in METRICS},
        search=search,
    )


def verdict(name: str, split: Split) -> str:
    """One honest sentence: who wins a split on hits@1, by how much, and who leads elsewhere."""
    ours, theirs = split.gr_jax["hits@1"], split.bm25["hits@1"]
    difference = split.differences.get("hits@1")
    if ours == theirs or (difference and not difference.is_clear):
        outcome = "too close to call"
    else:
        outcome = "gr_jax wins" if ours > theirs else "BM25 wins"
    interval = (
        f", 95 % interval {difference.low:+.3f} to {difference.high:+.3f}" if difference else ""
    )
    leads = [split.best(metric) for metric in METRICS]
    alone = {system: sum(lead == {system} for lead in leads) for system in SYSTEMS}
    return (
        f"{name} ({split.queries:,} queries): {outcome} on hits@1: "
        f"gr_jax {ours:.3f}, BM25 {theirs:.3f} "
        f"({ours - theirs:+.3f}{interval}). Of {len(METRICS)} metrics gr_jax leads on "
        f"{alone['gr_jax']}, BM25 on {alone['bm25']}."
    )


def write_report(
    report: Report, directory: str | Path, metrics_log: str | Path | None = None
) -> None:
    """Writes report.json and report.html; both are whole before either takes its name.

    Args:
        report: What to write.
        directory: Where, made if missing.
        metrics_log: The training log for the page's curves; `directory/train/metrics.jsonl` if
            not given. Without that file the page says that there is no log.

    Raises:
        UserError: If a line of the log is broken, or a file cannot be written.
    """
    directory = Path(directory)
    log = Path(metrics_log) if metrics_log else directory / "train" / "metrics.jsonl"
    content = report.to_json()
    page = render_page(
        content, [verdict(name, split) for name, split in report.splits.items()], read_curves(log)
    )
    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    with atomic_file(directory / "report.json") as part:
        part.write_text(text, encoding="utf-8", newline="\n")
        with atomic_file(directory / "report.html") as page_part:
            page_part.write_text(page, encoding="utf-8", newline="\n")


def _means(columns: Mapping[str, np.ndarray]) -> dict[str, float]:
    """The mean of each column."""
    return {key: float(np.mean(values)) for key, values in columns.items()}


def _check_keys(what: str, mapping: Mapping[str, Any], keys: tuple[str, ...]) -> None:
    """Refuses a mapping whose keys other tools would miss or not know."""
    if set(mapping) != set(keys):
        raise ValueError(f"{what} has the keys {sorted(mapping)}, not {sorted(keys)}")
