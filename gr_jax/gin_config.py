"""gin on the command line, with t5x's flags and habits.

`--gin_file=F` (repeatable), `--gin_search_paths=A,B`, `--gin_bindings='NAME = VALUE'` (repeatable),
`--gin.NAME=VALUE`, `--seqio_additional_cache_dirs=A,B` and `--dry_run`; of several processes,
`--multiprocess_gpu`, `--coordinator_address`, `--process_count`, `--process_index` and
`--initialization_timeout`. Later files and bindings win. An unknown binding is an error; for one of
t5x's, the error says what there is instead. A binding of `T5Config` is one of the run's model, be
it a published one. The library itself knows nothing of gin.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from absl import app, flags

from gr_jax import RESOURCES, _t5x_names, distributed
from gr_jax.console import guarded, print_error
from gr_jax.errors import UserError
from gr_jax.files import atomic_file


def define_flags() -> None:
    """Defines t5x's gin flags, once."""
    if "gin_file" in flags.FLAGS:
        return
    flags.DEFINE_multi_string("gin_file", None, "A gin file; may be given several times.")
    flags.DEFINE_list("gin_search_paths", None, "Folders to look for gin files in.")
    flags.DEFINE_multi_string(
        "gin_bindings", None, "A gin binding, NAME = VALUE; may be given several times."
    )
    flags.DEFINE_list(
        "seqio_additional_cache_dirs",
        None,
        "Folders with the tasks' SeqIO caches, which USE_CACHED_TASKS reads.",
    )
    flags.DEFINE_bool(
        "dry_run", False, "Check all that is given, print the configuration, write nothing."
    )
    flags.DEFINE_bool(
        "multiprocess_gpu",
        False,
        "Join the run's other processes; on Cloud TPUs and under srun that is done anyway.",
    )
    flags.DEFINE_string("coordinator_address", None, "HOST:PORT of process 0, the same for all.")
    flags.DEFINE_integer("process_count", None, "Number of processes.", lower_bound=1)
    flags.DEFINE_integer("process_index", None, "Which of them this is, from 0.", lower_bound=0)
    flags.DEFINE_integer(
        "initialization_timeout", 300, "Seconds to wait for the other processes.", lower_bound=1
    )


def rewrite_gin_args(args: Sequence[str]) -> list[str]:
    """t5x's shorthand: `--gin.NAME=VALUE` -> `--gin_bindings=NAME = VALUE`.

    Raises:
      UserError: `--gin.NAME` without a value.
    """

    def rewrite(arg: str) -> str:
        if not arg.startswith("--gin."):
            return arg
        name, equals, value = arg.removeprefix("--gin.").partition("=")
        if not equals:
            raise UserError(f"{arg}: give a value, as in {arg}=VALUE")
        return f"--gin_bindings={name} = {value}"

    return [rewrite(arg) for arg in args]


def parse(
    gin_files: Sequence[str], bindings: Sequence[str] = (), search_paths: Sequence[str] = ()
) -> None:
    """Reads files and bindings into gin, from a clean slate.

    gin files are looked for as given, in `search_paths`, and among those that gr_jax brings, so
    `gin/experiments/squad2k.gin` is found from a checkout and from an installed wheel alike.

    Raises:
      UserError: a file that is not there, a syntax error, an unknown name or parameter.
    """
    import gin

    gin.clear_config()
    from gin import config as gin_internals

    gin_internals._LOCATION_PREFIXES[:] = [""]  # gin only ever adds to them
    for folder in (*search_paths, str(RESOURCES)):
        gin.add_config_file_search_path(folder)
    try:
        with _fields_of_the_model():
            gin.parse_config_files_and_bindings(
                list(gin_files), [], skip_unknown=False, finalize_config=False
            )
            _check_macros(bindings, gin.config_str())
            gin.parse_config(list(bindings), skip_unknown=False)
        gin.finalize()
    except Exception as error:  # gin raises whatever the imports and constructors in a file raise
        line = _one_line(error)
        raise UserError(_t5x_names.explain(line) or line) from error


_CLASS, _NAMED = "T5Config", "T5Config.from_name"  # a run's model is one or the other


@contextlib.contextmanager
def _fields_of_the_model() -> Iterator[None]:
    """While gin reads, `T5Config.X` is a field of the model, be it the class or a published model.

    gin knows the two as two functions, and a binding of the one that is not called does nothing.
    So a `T5Config.X` that comes after `model = @T5Config.from_name` becomes
    `T5Config.from_name.X`, and the shape that a run's own file gave before goes, together with the
    model that it was of.

    Raises:
      UserError: fields of a published model where the model is not one.
    """
    from gin import config as gin_internals

    bind, named = gin_internals.bind_parameter, {}

    def bind_to_model(key: Any, value: Any) -> None:
        scope, selector, field = key
        if field == "model":
            named[scope, selector] = str(getattr(value, "selector", "")).endswith(_NAMED)
        if any(named.values()) and selector.split(".")[-1] == _CLASS:
            key = (scope, f"{selector}.from_name", field)
        bind(key, value)

    gin_internals.bind_parameter = bind_to_model
    try:
        yield
    finally:
        gin_internals.bind_parameter = bind
    bound = {selector: fields for (_, selector), fields in gin_internals._CONFIG.items()}
    published = [fields for selector, fields in bound.items() if selector.endswith(f".{_NAMED}")]
    if any(named.values()):
        for key in [k for k in gin_internals._CONFIG if k[1].endswith(f".{_CLASS}")]:
            del gin_internals._CONFIG[key]
    elif named and published:
        raise UserError(
            f"gin: {_NAMED}.{next(iter(published[0]))} is bound, but the model is no published "
            "one: give a gin/models/*.gin, after the run's own file"
        )


def _check_macros(bindings: Sequence[str], config: str) -> None:
    """Refuses a macro that no file knows: gin would take a misspelt one for a new one."""
    known = set(re.findall(r"^([A-Za-z_]\w*)\s*=", config, re.M))
    for name in sorted(known & _t5x_names.MACROS.keys()):
        if not _t5x_names.kept(_t5x_names.MACROS[name]):
            raise UserError(_t5x_names.refusal(f"gin: {name}", _t5x_names.MACROS[name]))
    known |= set(re.findall(r"%([A-Za-z_]\w*)", config))
    for binding in bindings:
        found = re.match(r"\s*([A-Za-z_]\w*)\s*=", binding)
        if found and found[1] not in known:
            if found[1] in _t5x_names.MACROS:
                answer = _t5x_names.MACROS[found[1]]
                raise UserError(_t5x_names.refusal(f"gin: {found[1]}", answer))
            near = difflib.get_close_matches(found[1], known, 1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(sorted(known))}"
            raise UserError(f"gin: no file has a macro {found[1]}: {hint}")


def call(function: Callable[..., Any], **overrides: Any) -> Any:
    """Calls `function` with the arguments that gin binds; `overrides` win.

    Raises:
      UserError: an argument that neither gives.
    """
    import gin

    configured = gin.get_configurable(function)
    try:
        return configured(**overrides)
    except UserError as error:  # gin has added where it was called from
        raise UserError(re.sub(r"\s*In call to configurable.*", "", str(error))) from error
    except (RuntimeError, ValueError, TypeError) as error:
        cause = _root(error)
        if isinstance(cause, UserError):
            raise cause from error
        text = str(error)
        if "Required bindings" in text or "No value" in text or "required" in text.split("\n")[0]:
            raise UserError(_one_line(error)) from error
        raise


def save(path: Path) -> None:
    """Writes the whole configuration as t5x's `config.gin`."""
    import gin

    with atomic_file(path) as temporary:
        temporary.write_text(gin.config_str(), "utf-8")


def operative() -> str:
    """What of the configuration was used so far, as gin text."""
    import gin

    return gin.operative_config_str()


def _root(error: BaseException) -> BaseException:
    while error.__cause__ is not None or error.__context__ is not None:
        error = error.__cause__ or error.__context__  # pyright: ignore[reportAssignmentType]
    return error


def _one_line(error: BaseException) -> str:
    """Gin's messages without their line breaks and object addresses."""
    root = _root(error)
    text = str(root) if isinstance(root, UserError) else str(error)
    text = re.sub(r"<[^<>]* at 0x[0-9a-f]+>", "", text)
    text = " ".join(text.split())
    if missing := re.match(r"(\w+)/macro\.value set to `%gin\.REQUIRED`", text):
        text = f'{missing[1]} is required: --gin.{missing[1]}=\\"...\\"'
    return f"gin: {text}" if not isinstance(root, UserError) else text


def run_main(main: Callable[..., int | None]) -> None:
    """Runs an entry point with t5x's flags; a user's mistake is one line and exit status 2."""
    define_flags()
    try:
        argv = rewrite_gin_args(sys.argv)
    except UserError as error:
        fail(error)
    app.run(functools.partial(_guarded, main), argv=argv, flags_parser=_parse_flags)


def _parse_flags(argv: list[str]) -> list[str]:
    try:
        return flags.FLAGS(argv)
    except flags.UnrecognizedFlagError as error:
        answer = _t5x_names.FLAGS.get(error.flagname)
        fail(UserError(_t5x_names.refusal(f"--{error.flagname}", answer)) if answer else error)
    except flags.Error as error:
        fail(error)


def _guarded(main: Callable[..., int | None], argv: list[str]) -> None:
    command = functools.partial(_run_with_flags, main, argv)
    sys.exit(guarded(command, stopped="stopped; the same command goes on from there"))


def _run_with_flags(main: Callable[..., int | None], argv: list[str]) -> int | None:
    if len(argv) > 1:
        raise UserError(f"unexpected argument {argv[1]!r}; flags look like --gin_file=FILE")
    if not flags.FLAGS.gin_file:
        raise UserError("give a configuration: --gin_file=gin/experiments/squad2k.gin")
    distributed.initialize(
        flags.FLAGS.coordinator_address,
        flags.FLAGS.process_count,
        flags.FLAGS.process_index,
        wanted=flags.FLAGS.multiprocess_gpu,
        timeout=flags.FLAGS.initialization_timeout,
    )
    bindings = flags.FLAGS.gin_bindings or []
    if folders := flags.FLAGS.seqio_additional_cache_dirs:
        bindings = [f"pipeline.DataConfig.cache_dirs = {tuple(folders)}", *bindings]
    parse(flags.FLAGS.gin_file, bindings, flags.FLAGS.gin_search_paths or ())
    return main(dry_run=flags.FLAGS.dry_run)


def fail(error: BaseException) -> NoReturn:
    """Prints one line and exits with status 2."""
    print_error(error)
    sys.exit(2)
