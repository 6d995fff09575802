"""Where a mixture comes from: our example files as SeqIO tasks, or a module that registers one."""

from __future__ import annotations

import dataclasses
import importlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, Self

from gr_jax.data._examples import ExampleSource, example_files
from gr_jax.docids import DocidMap
from gr_jax.errors import UserError
from gr_jax.files import atomic_file

_FILE = "mixture.json"


class MixtureSource(Protocol):
    """What `build_cache` reads; it travels to the processes that tokenise."""

    @property
    def name(self) -> str:
        """Of the mixture."""
        ...

    def register(self) -> Any:
        """Makes SeqIO of this process know the tasks, and returns its mixture."""
        ...

    def short(self, task: str) -> str:
        """What a SeqIO task is called in the token cache."""
        ...

    def examples(self, task: str) -> int | None:
        """Number of a task's examples, which are always the same; None if that is not known."""
        ...

    def caching_command(self, folder: str) -> str:
        """How to make the tasks' SeqIO caches in `folder`."""
        ...


@dataclasses.dataclass(frozen=True)
class RegisteredMixture:
    """A mixture or task of `text -> docid tokens` that is registered with SeqIO elsewhere.

    Attributes:
      name: SeqIO's.
      module: to import first, which registers it; None if that has been done.
    """

    name: str
    module: str | None = None

    def register(self) -> Any:
        """See `MixtureSource`.

        Raises:
          UserError: the module cannot be imported, or registers nothing of this name.
        """
        from gr_jax.data import _seqio  # TensorFlow

        if self.module:
            try:
                importlib.import_module(self.module)
            except ImportError as error:
                raise UserError(f"{self.module}: cannot be imported ({error})") from error
        return _seqio.registered_mixture(self.name)

    def short(self, task: str) -> str:
        """See `MixtureSource`: the same."""
        return task

    def examples(self, task: str) -> None:
        """See `MixtureSource`: a task may make what it likes of its source."""

    def caching_command(self, folder: str) -> str:
        """See `MixtureSource`."""
        module = self.module or "MODULE"
        return f"seqio_cache_tasks --tasks=... --module_import={module} --output_cache_dir={folder}"


@dataclasses.dataclass(frozen=True)
class ExampleMixture:
    """The example files of a directory: tasks `<name>_<source>` and the mixture `<name>` of them.

    Attributes:
      name: see above.
      directory: of the files.
      sources: the tasks and their rates; those without examples are left out.
      sentencepiece: the input vocabulary.
      target_vocab_size: number of docid tokens.
    """

    name: str
    directory: Path
    sources: Sequence[ExampleSource]
    sentencepiece: Path
    target_vocab_size: int

    @property
    def used(self) -> dict[str, ExampleSource]:
        """The sources that there are examples of, by the name of their SeqIO task."""
        return {f"{self.name}_{s.name}": s for s in self.sources if s.examples and s.rate > 0}

    def short(self, task: str) -> str:
        """See `MixtureSource`: the source's name."""
        return self.used[task].name

    def examples(self, task: str) -> int:
        """See `MixtureSource`."""
        return self.used[task].examples

    def caching_command(self, folder: str) -> str:
        """See `MixtureSource`."""
        return (
            f"GR_JAX_MODEL_DIR={self.directory.parent} seqio_cache_tasks --tasks={self.name}_.* "
            f"--module_import=gr_jax.tasks.model_dir --output_cache_dir={folder}"
        )

    def register(self) -> Any:
        """Registers the tasks (or registers them anew) and returns SeqIO's mixture.

        Raises:
          UserError: a file is missing.
        """
        from gr_jax.data import _seqio  # TensorFlow

        for task, source in self.used.items():
            _seqio.register_task(
                task,
                example_files(self.directory, source.name),
                sentencepiece=self.sentencepiece,
                target_vocab_size=self.target_vocab_size,
            )
        return _seqio.register_mixture(
            self.name, {task: source.rate for task, source in self.used.items()}
        )

    def save(self) -> None:
        """Notes beside the files what is in them, for `load`."""
        record: Mapping[str, Any] = {
            "mixture": self.name,
            "sources": [dataclasses.asdict(source) for source in self.sources],
        }
        with atomic_file(Path(self.directory) / _FILE) as temporary:
            temporary.write_text(json.dumps(record) + "\n", "utf-8")

    @classmethod
    def load(cls, model_dir: Path) -> Self:
        """The examples of a prepared model directory.

        Raises:
          UserError: it is not one.
        """
        record = Path(model_dir) / "examples" / _FILE
        try:
            header = json.loads(record.read_text("utf-8"))
            name, sources = header["mixture"], [ExampleSource(**s) for s in header["sources"]]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{record}: not a prepared model directory ({error})") from error
        return cls(
            name=name,
            directory=record.parent,
            sources=sources,
            sentencepiece=Path(model_dir) / "vocabulary" / "sentencepiece.model",
            target_vocab_size=DocidMap.load(Path(model_dir) / "docids").vocabulary.size,
        )


def register_prepared(model_dir: str | Path) -> str:
    """Registers the SeqIO tasks and the mixture of a prepared model directory.

    Args:
      model_dir: what `gr_jax.pipeline.prepare` filled.

    Returns:
      The mixture's name.

    Raises:
      UserError: the directory is not prepared.
    """
    return ExampleMixture.load(Path(model_dir)).register().name
