"""The layout of a model directory, and which of its stages are done.

MODEL_DIR/
  corpus/corpus.jsonl       the indexed documents, so that search and BM25 need nothing else
  docids/                   the DocidMap
  trie/ documents/          the same and the titles, as searches read them; made again if missing
  vocabulary/               the SentencePiece model
  examples/<task>-*.tsv     training examples as text
  cache/                    training examples as tokens
  seqio_cache/              the same as seqio_cache_tasks writes them, if it was asked to
  checkpoint_<step>/        Orbax
  train/                    TensorBoard events, metrics.jsonl, goodput.jsonl, traces
  runs/<split>.<system>.run TREC runs
  config.gin model-info.txt stages.json index.json report.json report.html
  train.lock                held by the process that trains here
"""

from __future__ import annotations

import contextlib
import datetime
import fcntl
import hashlib
import json
import os
import re
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from gr_jax import distributed
from gr_jax.corpus import Corpus, write_corpus
from gr_jax.errors import UserError
from gr_jax.files import NO_LOCKS, atomic_file, disk_errors, local_path

_CHECKPOINT = re.compile(r"checkpoint_(\d+)")


class Workspace:
    """A model directory.

    `stages.json` says which stages are done and with which settings; it is written after the stage
    is complete on disk, so a kill at any moment only means that a stage is done again.
    """

    def __init__(self, model_dir: str | Path):
        """Opens the directory; nothing is made yet.

        Raises:
          UserError: the path is a file or a URL, or its record cannot be read.
        """
        self.path = local_path(model_dir)
        for path in (self.path, *self.path.parents):
            if path.exists() and not path.is_dir():
                raise UserError(f"{path}: is a file; give a directory for the model")
        self.corpus = self.path / "corpus" / "corpus.jsonl"
        self.docids = self.path / "docids"
        self.trie = self.path / "trie"
        self.documents = self.path / "documents"
        self.sentencepiece = self.path / "vocabulary" / "sentencepiece.model"
        self.examples = self.path / "examples"
        self.cache = self.path / "cache"
        self.seqio_cache = self.path / "seqio_cache"
        self.runs = self.path / "runs"
        self.index = self.path / "index.json"
        self._lock = self.path / "train.lock"
        self._record = self.path / "stages.json"
        self._told: dict[str, Any] | None = None
        self._stages: dict[str, Any] = self._read()

    @property
    def record(self) -> dict[str, Any]:
        """What is done, as JSON: for `follow` in another process."""
        return self._stages

    def follow(self, record: dict[str, Any]) -> None:
        """Takes another process's word for what is done: from now on nothing is written here."""
        self._told = self._stages = record

    def _read(self) -> dict[str, Any]:
        if self._told is not None:
            return self._told
        try:
            return json.loads(self._record.read_text("utf-8"))
        except FileNotFoundError:
            return {}
        except (ValueError, OSError) as error:
            raise UserError(
                f"{self._record}: damaged ({error}); delete it to do all stages again"
            ) from error

    @contextlib.contextmanager
    def alone(self) -> Iterator[str]:
        """Keeps other trainers out of the directory; readers need not ask.

        Yields:
          What the directory now says of its holder; see `check_shared`.

        Raises:
          UserError: there is one already.
        """
        # The kernel lets go of the lock when the process ends, however it ends, so the file may
        # stay. NFS before 4 and some mounts of buckets know no locks, or keep them to one host.
        with contextlib.ExitStack() as held:
            path = self._lock
            with disk_errors(path):
                self.path.mkdir(parents=True, exist_ok=True)
                stream = held.enter_context(path.open("a+", encoding="utf-8"))
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                stream.seek(0)
                holder = stream.read().strip() or "another process"
                raise UserError(
                    f"{self.path}: {holder} is training here; wait for it or stop it, or give "
                    "another model directory"
                ) from error
            except OSError as error:
                if error.errno not in NO_LOCKS:
                    raise
            since = datetime.datetime.now(datetime.UTC).isoformat(" ")  # to the microsecond
            holder = f"process {os.getpid()} of {socket.gethostname()}, since {since},"
            with disk_errors(path):
                stream.truncate(0)
                stream.write(f"{holder}\n")
                stream.flush()
                os.fsync(stream.fileno())  # other hosts look for it
            yield holder

    def check_shared(self, holder: str) -> None:
        """Checks that this is the directory that another process has `alone`, which says `holder`.

        Raises:
          UserError: it is not, for as long as a network's file system may be behind.
        """

        def held() -> bool:
            return self._lock.exists() and self._lock.read_text("utf-8").strip() == holder

        distributed.wait_until(
            held, f"{self.path}: not the directory that process 0 has under this name"
        )

    @property
    def trained(self) -> bool:
        """Whether there is a complete checkpoint."""
        return any(_CHECKPOINT.fullmatch(path.name) for path in self.path.glob("checkpoint_*"))

    def seconds(self, stage: str) -> float:
        """How long a finished stage took; 0 for one that is not finished."""
        return float(self._stages.get(stage, {}).get("seconds", 0.0))

    def note(self, name: str, value: Any) -> None:
        """Remembers a fact about the run."""
        self._stages[name] = value
        self._write()

    def _write(self) -> None:
        with atomic_file(self._record) as temporary:
            temporary.write_text(json.dumps(self._stages, indent=2) + "\n", "utf-8")

    def noted(self, name: str) -> Any:
        """What `note` remembered, or None."""
        return self._stages.get(name)

    def step_of(self, checkpoint: str | None) -> int | None:
        """The step of `MODEL_DIR/checkpoint_<step>`; None, the newest, for None.

        Raises:
          UserError: the path is not one of this directory's checkpoints.
        """
        if checkpoint is None:
            return None
        path = local_path(checkpoint)
        found = _CHECKPOINT.fullmatch(path.name)
        if not found or path.parent.resolve() != self.path.resolve():
            raise UserError(
                f"{checkpoint}: not a checkpoint of {self.path}; CHECKPOINT_PATH is "
                "MODEL_DIR/checkpoint_<step>"
            )
        return int(found[1])

    def check(self, corpus: Corpus) -> None:
        """Refuses what `claim` refuses; writes nothing.

        Raises:
          UserError: the directory holds the index of another corpus, or something else.
        """
        self._stages = self._read()  # whoever was here in the meantime may have gone on
        held = self._stages.get("corpus")
        ours = (
            *(self.corpus, self.docids, self.trie, self.documents),
            *(self.sentencepiece, self.examples, self.cache),
        )
        if not held and (foreign := [p for p in ours if p.exists()]):
            raise UserError(
                f"{foreign[0]}: would be overwritten, and is not gr-jax's; "
                "give a model directory of its own"
            )
        if held and held["key"] != corpus.fingerprint:
            raise UserError(
                f"{self.path}: holds the index of another corpus ({held['name']}, "
                f"{held['documents']} documents); give another model directory"
            )

    def claim(self, corpus: Corpus) -> None:
        """Makes this the directory of `corpus`, and keeps a copy of its documents.

        Raises:
          UserError: see `check`.
        """
        self.check(corpus)
        if not self._stages.get("corpus"):
            self.note(
                "corpus",
                {
                    "key": corpus.fingerprint,
                    "name": corpus.name,
                    "documents": len(corpus),
                    "skipped": list(corpus.skipped),
                },
            )
        if self._told is None and not self.corpus.exists():
            write_corpus(corpus, self.corpus)

    @property
    def skipped(self) -> tuple[str, ...]:
        """Documents of the corpus that have no text and are not indexed."""
        return tuple(self._stages.get("corpus", {}).get("skipped", ()))

    def stage(
        self, name: str, settings: Mapping[str, Any], output: Path, build: Callable[[], None]
    ) -> str:
        """Runs `build`, unless it was done with the same settings and its output is still there.

        Args:
          name: of the stage.
          settings: all that its output depends on: JSON.
          output: what it writes.
          build: writes it.

        Returns:
          The stage's key, for the settings of the stages that build on it.

        Raises:
          UserError: a model was trained here with other settings, or the process that this one
            follows has others.
        """
        text = json.dumps(settings, sort_keys=True, default=str)
        key = hashlib.sha256(text.encode()).hexdigest()
        done = self._stages.get(name)
        if self._told is not None:
            if not done or done["key"] != key:
                raise UserError(
                    f"{self.path}: process 0 has other settings of the {name} stage; start the "
                    "same command on all hosts"
                )
            distributed.wait_until(
                output.exists, f"{output}: process 0 sees it and this host does not"
            )
            return key
        if done and done["key"] == key and output.exists():
            return key
        if done and done["key"] != key and self.trained:
            raise UserError(
                f"{self.path}: holds a model trained with other settings of its {name} stage; "
                "give another model directory, or delete this one"
            )
        if self._stages.pop(name, None):
            self._write()  # from here on the output may be of neither
        start = time.perf_counter()
        build()
        self.note(name, {"key": key, "seconds": round(time.perf_counter() - start, 3)})
        return key
