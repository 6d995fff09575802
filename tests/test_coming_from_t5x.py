"""docs/coming_from_t5x.md is true: its commands run, and every name in its tables exists."""

import json
import os
import re
import shlex
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from absl.testing import flagsaver

import gin
from gr_jax import RESOURCES, _t5x_names, gin_config, t5x
from gr_jax import eval as eval_main
from gr_jax import infer as infer_main
from gr_jax import train as train_main
from gr_jax.checkpoints import convert, load_parameters, open_checkpoint
from gr_jax.data import MixtureCache
from gr_jax.decoding import score_all
from gr_jax.docids import DocidMap
from gr_jax.errors import UserError
from gr_jax.models import T5Config, prepare_inference
from tests.pipeline.tiny import BINDINGS

DOC = RESOURCES / "docs" / "coming_from_t5x.md"
if not DOC.exists():
    pytest.skip("no docs beside an installed wheel", allow_module_level=True)
TEXT = DOC.read_text("utf-8")
MAINS = {"gr_jax.train": train_main, "gr_jax.eval": eval_main, "gr_jax.infer": infer_main}
BEIR, PLACES = "gin/runs/beir.gin", ('CORPUS = "corpus"', 'MODEL_DIR = "model"')
STEPS = 20


@pytest.fixture(autouse=True)
def clean_gin():
    yield
    gin.clear_config()


def table(heading: str) -> dict[str, str]:
    """The rows of the table of a section, without their backticks."""
    section = TEXT.split(f"## {heading}\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (.*?) \| (.*?) \|$", section.replace("`", ""), re.M)
    return dict(rows[1:])


def lines() -> list[str]:
    """The command lines, each as one line."""
    blocks: list[str] = re.findall(r"^```\n(.*?)^```", TEXT, re.M | re.S)
    return "".join(blocks).replace("\\\n", " ").splitlines()


def commands() -> list[list[str]]:
    """The command lines of ours, as a shell would split them but for variables."""
    return [shlex.split(line) for line in lines() if line.startswith("python -m gr_jax.")]


def commands_of_t5x() -> list[tuple[str, str]]:
    """The command lines of t5x: the name of the program, and its arguments."""
    program = r"python3? (?:-m t5x\.|\$\{T5X_DIR\}/t5x/)(\w+?)(?:_unfragmented|\.py)?\s+(-.*)"
    return [(found[1], found[2]) for line in lines() if (found := re.fullmatch(program, line))]


def run(arguments: list[str], places: dict[str, str], *, dry_run: bool = False) -> int:
    """A documented command, in this process, with a model and a run for tests."""
    for name, value in places.items():
        arguments = [argument.replace(name, value) for argument in arguments]
    python, flag, module, *rest = arguments
    assert (python, flag) == ("python", "-m")
    given = gin_config.rewrite_gin_args(rest)
    files = [x.removeprefix("--gin_file=") for x in given if x.startswith("--gin_file=")]
    bindings = [x.removeprefix("--gin_bindings=") for x in given if x.startswith("--gin_bindings=")]
    assert len(files) + len(bindings) + ("--dry_run" in given) == len(given)
    gin_config.parse(files, [*bindings, *BINDINGS, f"TRAIN_STEPS = {STEPS}"])
    return MAINS[module].main(dry_run=dry_run or "--dry_run" in given)


@pytest.fixture(scope="module")
def places(beir: Path, tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("t5x")
    return {
        "$MODEL_DIR": str(folder / "model"),
        "$OUTPUT": str(folder / "output"),
        "$CORPUS": str(beir),
        "checkpoint_2000": f"checkpoint_{STEPS // 2}",
    }


@pytest.fixture(scope="module")
def trained(places) -> Path:
    """The four documented commands of a run from scratch, one after the other."""
    finetune, dry, train, evaluate, infer = commands()
    assert finetune[2] == "gr_jax.train"
    model_dir = Path(places["$MODEL_DIR"])
    assert run(dry, places) == 0
    assert not model_dir.exists(), "a dry run wrote something"
    assert run(train, places) == 0
    before = {path: path.stat().st_mtime_ns for path in model_dir.rglob("*") if path.is_file()}
    for command in (evaluate, infer):
        assert run(command, places, dry_run=True) == 0
    assert not Path(places["$OUTPUT"]).exists(), "a dry run wrote something"
    for command in (evaluate, infer):
        assert run(command, places) == 0
    after = {path: path.stat().st_mtime_ns for path in model_dir.rglob("*") if path.is_file()}
    assert after == before
    return model_dir


def reply(module: str, arguments: list[str], capsys) -> str | None:
    """What `python -m gr_jax.MODULE ARGUMENTS`, dry, says to them; None where they are accepted."""
    small = [f"--gin_bindings={binding}" for binding in BINDINGS]
    gin_config.define_flags()
    capsys.readouterr()
    with flagsaver.flagsaver():
        try:
            given = gin_config.rewrite_gin_args([module, *arguments, *small, "--dry_run"])
            argv = gin_config._parse_flags(given)
            assert gin_config._run_with_flags(MAINS[module].main, argv) == 0
        except UserError as error:
            return str(error)
        except SystemExit as error:  # of flags
            assert error.code == 2
            return capsys.readouterr().err.strip().removeprefix("error: ")
    return None


def done_as_told(said: str, arguments: list[str], values: dict[str, str]) -> list[str]:
    """`arguments` as a user changes them who reads what is said of them; {} where nothing helps."""
    if asked := re.search(r'--gin\.([A-Z_]+)=\\"', said):
        return [*arguments, f'--gin.{asked[1]}="{values[asked[1]]}"']
    name = said.removeprefix("gin: ").split(" ")[0].removeprefix("--")
    ours = re.findall(r"gin/\w+/\w+\.gin", said)
    if name.endswith(".gin"):
        assert ours and all((RESOURCES / file).exists() for file in ours), said
        for file in (Path(values["PROJECT_DIR"]) / "t5_1_1_base_de_en.gin",):
            included = "".join(f"include '{file}'\n" for file in ours)
            file.write_text(file.read_text().replace(f"include 't5x-tmp/{name}'\n", included))
        at = [x.endswith(name) and x.startswith("--gin_file=") for x in arguments]
        rest = [x for x, theirs in zip(arguments, at, strict=True) if not theirs]
        files = [f"--gin_file={file}" for file in ours if any(at)]
        # a run's file first, as the page has it
        return [*files, *rest] if any("runs" in file for file in files) else [*rest, *files]
    if name == "TASK_FEATURE_LENGTHS":
        arguments = [*arguments, "--gin.pipeline.DataConfig.input_length=64"]
    theirs = tuple(f"{flag}{name}" for flag in ("--", "--gin."))
    return [x for x in arguments if x.partition("=")[0] not in theirs]


@pytest.mark.parametrize("number", range(len(commands_of_t5x())))
def test_t5xs_documented_commands_are_answered_until_they_run(
    number, trained, places, tmp_path, capsys
):
    module, text = commands_of_t5x()[number]
    module = f"gr_jax.{'train' if module == 'main' else module}"
    model = tmp_path / "new" if module == "gr_jax.train" else trained
    values = {
        "MODEL_DIR": str(model),
        "CORPUS": places["$CORPUS"],
        "QUERIES": f"{places['$CORPUS']}/queries.jsonl",
        "SENTENCEPIECE": str(trained / "vocabulary" / "sentencepiece.model"),
        "CHECKPOINT_PATH": str(trained / f"checkpoint_{STEPS}"),
        "PROJECT_DIR": str(tmp_path),
    }
    places = values | {"OUTPUT": "out", "TFDS_DATA_DIR": "tfds"}
    places |= {"EVAL_OUTPUT_DIR": "out", "INFER_OUTPUT_DIR": "out"}
    if "$CHECKPOINT" in text:
        convert(trained / f"checkpoint_{STEPS}", tmp_path / "t5x", to="t5x")
    places["CHECKPOINT"] = str(tmp_path / "t5x")
    text = re.sub(r"\$\{?(\w+)\}?", lambda m: places[m[1]], text)
    arguments = shlex.split(text.replace("checkpoint_1020000", f"checkpoint_{STEPS}"))
    (tmp_path / "t5_1_1_base_de_en.gin").write_text(
        "include 't5x-tmp/t5x/examples/t5/t5_1_1/examples/base_wmt_from_scratch.gin'\n"
        'MIXTURE_OR_TASK_NAME = "wmt_t2t_de_en_v003"\n'
    )
    answers = [*_t5x_names.FLAGS.values(), *_t5x_names.MACROS.values(), *files_of_the_page()]
    told: list[str] = []
    while (said := reply(module, arguments, capsys)) is not None:
        assert "\n" not in said
        said = said.replace("t5x-tmp/", "")
        wanted = re.search(r"--gin\.(CORPUS|MODEL_DIR|QUERIES|SENTENCEPIECE)=", said)
        assert wanted or said.endswith(tuple(a.removeprefix("none: ") for a in answers)), said
        changed = done_as_told(said, arguments, values)
        assert said not in told, "what it said does not help"
        told, arguments = [*told, said], changed
    assert told and not (tmp_path / "new").exists()


def files_of_the_page() -> list[str]:
    """What the page says there is for t5x's gin files, for every size."""
    sizes = ("tiny", "small", "base", "large", "xl", "xxl", "3b", "11b")
    answers = [answer.partition(";")[0] for answer in table("gin files").values()]
    return [answer.replace("SIZE", size) for answer in answers for size in sizes]


def test_the_documented_run(trained, places):
    output = Path(places["$OUTPUT"])
    report = json.loads((output / "report.json").read_text())
    assert report["steps"] == STEPS // 2, "CHECKPOINT_PATH is evaluated, not the newest"
    assert json.loads((trained / "report.json").read_text())["steps"] == STEPS
    assert (output / "runs" / "test.gr_jax.run").exists()
    assert len((output / "queries.infer.run").read_text().splitlines()) == 720


def test_the_documented_fine_tuning_is_accepted(trained, places, tmp_path, capsys):
    # t5x's format, which holds what a published checkpoint does
    source = convert(trained / f"checkpoint_{STEPS}", tmp_path / "t5x", to="t5x")
    assert source.format.startswith("t5x")
    more = {
        "$CHECKPOINT": str(tmp_path / "t5x"),
        "$SENTENCEPIECE": str(trained / "vocabulary" / "sentencepiece.model"),
        "$MODEL_DIR": str(tmp_path / "model"),
    }
    assert run(commands()[0], places | more, dry_run=True) == 0
    assert not (tmp_path / "model").exists()
    assert "DataConfig.sentencepiece = %SENTENCEPIECE" in capsys.readouterr().out
    with pytest.raises(UserError, match="nowhere"):
        run(commands()[0], places | more | {"$CHECKPOINT": "/nowhere"}, dry_run=True)


def test_t5xs_recipe_is_bound():
    block = TEXT.split("fine-tuning recipe is\n\n```\n")[1].split("```")[0]
    given = gin_config.rewrite_gin_args(shlex.split(block))
    bindings = [binding.removeprefix("--gin_bindings=") for binding in given]
    gin_config.parse([BEIR], [*PLACES, *bindings])
    from gr_jax.training import TrainConfig

    config = gin_config.call(TrainConfig)
    assert (config.optimizer.name, config.optimizer.clip_norm) == ("adafactor", None)
    assert config.loss_normalizing_factor == 233472
    assert config.schedule(0, 10) == config.schedule(9, 10) == 1e-3
    assert "INITIAL_OPTIMIZER = 'checkpoint'" in gin.config_str()


def test_tables_are_those_that_errors_are_made_of():
    flags = {name.removeprefix("--"): ours for name, ours in table("Flags").items()}
    assert flags == {k: v.replace("`", "") for k, v in _t5x_names.FLAGS.items()}
    assert table("Macros") == _t5x_names.MACROS
    assert table("Settings") == _t5x_names.SETTINGS
    assert table("Files") == _t5x_names.FILES
    assert table("Metrics") == _t5x_names.METRICS


def test_flags_are_taken_or_refused_by_name(beir, tmp_path):
    def entry(*arguments: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, "-m", "gr_jax.train", f"--gin_file={BEIR}", *arguments],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            check=False,
            timeout=120,
        )

    kept = [
        "--gin_search_paths=/nowhere", "--alsologtostderr", "--seqio_additional_cache_dirs=/a,/b",
        "--dry_run",
    ]  # fmt: skip
    assert {flag.split("=")[0] for flag in kept} <= {f"--{name}" for name in _t5x_names.FLAGS}
    done = entry(*kept, f'--gin.CORPUS="{beir}"', '--gin.MODEL_DIR="model"', "--gin.RANDOM_SEED=3")
    assert done.returncode == 0, done.stderr
    assert "TrainConfig.seed = %RANDOM_SEED" in done.stdout
    assert "RANDOM_SEED = 3" in done.stdout
    assert "DataConfig.cache_dirs = ('/a', '/b')" in done.stdout
    assert list(tmp_path.iterdir()) == []
    failed = entry("--tfds_data_dir=x")
    expected = "error: --tfds_data_dir of t5x is not there: no TFDS data is read"
    assert failed.returncode == 2 and failed.stderr.startswith(expected)
    assert len(failed.stderr.splitlines()) == 1


@pytest.mark.parametrize("name", [n for n, a in _t5x_names.FLAGS.items() if not _t5x_names.kept(a)])
def test_other_flags_are_refused_by_name(name, capsys):
    gin_config.define_flags()
    with pytest.raises(SystemExit, match="2"):
        gin_config._parse_flags(["train", f"--{name}=1"])
    reason = _t5x_names.FLAGS[name].removeprefix("none: ")
    assert capsys.readouterr().err.strip().endswith(reason)


@pytest.mark.parametrize("name", _t5x_names.MACROS)
def test_macros_are_bound_or_refused(name, tmp_path):
    answer = _t5x_names.MACROS[name]
    gin_config.parse([BEIR], PLACES)
    macros = set(re.findall(r"^(\w+) =", gin.config_str(), re.M))
    if _t5x_names.kept(answer):
        assert name in macros
        assert re.search(rf"= %{name}\b", gin.config_str())
        return
    assert name not in macros
    for ours in re.findall(r"\b[A-Z_]{4,}\b", answer.partition(";")[0]):
        assert ours in macros or ours == "JAX_DEFAULT_PRNG_IMPL"
    with pytest.raises(UserError, match=re.escape(answer.removeprefix("none: "))):
        gin_config.parse([BEIR], [*PLACES, f"{name} = 1"])
    file = tmp_path / "own.gin"
    file.write_text(f"include '{BEIR}'\n{name} = 1\n")
    with pytest.raises(UserError, match=f"{name} .*t5x"):
        gin_config.parse([str(file)], PLACES)


@pytest.mark.parametrize("name", _t5x_names.SETTINGS)
def test_settings_are_refused_with_ours_that_can_be_bound(name):
    answer = _t5x_names.SETTINGS[name]
    theirs = name + ".something" * (name.count(".") < 2) + ".more" * ("." not in name)
    with pytest.raises(UserError) as refused:
        gin_config.parse([BEIR], [*PLACES, f"scope/{theirs} = None"])
    assert str(refused.value).endswith(answer.removeprefix("none: "))
    if answer.startswith("none: "):
        return
    for ours in re.findall(r"\b[a-z]+(?:\.\w+){1,2}", answer):
        bound = f"{ours} = None"
        if ours.count(".") == 1:
            bound = f"{ours}.no_such_parameter = None"
        try:
            gin_config.parse([BEIR], [*PLACES, bound])
        except UserError as error:
            assert "doesn't have a parameter named 'no_such_parameter'" in str(error), bound


SIZES = ("small", "base", "large", "xl", "xxl")
BOTH = ("t5", "scalable_t5")
MODEL_FILES = {  # of t5x at cc342d4: those of all published checkpoints
    **{f"t5/t5_1_0/{size}": f"t5_{size.lower()}" for size in (*SIZES[:3], "3B", "11B")},
    **{f"{place}/t5_1_1/{size}": f"t5_1_1_{size}" for place in BOTH for size in SIZES},
    **{f"{place}/mt5/{size}": f"mt5_{size}" for place in BOTH for size in SIZES},
    **{f"t5/byt5/{size}": f"byt5_{size}" for size in SIZES},
    **{f"t5/{family}/tiny": f"{family}_tiny" for family in ("t5_1_1", "mt5", "byt5")},
    "t5/t5_1_0/tiny": "t5_tiny",
}


def answered(file: str) -> str:
    with pytest.raises(UserError) as refused:
        gin_config.parse([file])
    said = str(refused.value)
    assert said.startswith(f"gin: {file[file.index('t5x/') :]} is t5x's; here it is ")
    ours = said.partition("here it is ")[2]
    assert ours in files_of_the_page()
    for named in re.findall(r"gin/\w+/\w+\.gin", ours):
        assert (RESOURCES / named).exists(), named
    return ours


@pytest.mark.parametrize("file", MODEL_FILES)
def test_every_published_model_file_of_t5x_names_ours(file):
    ours = f"gin/models/{MODEL_FILES[file]}.gin"
    assert answered(f"t5x/examples/{file}.gin") == ours
    assert answered(f"/home/me/t5x/contrib/gpu/{file}.gin") == ours


@pytest.mark.parametrize(
    ("file", "ours"),
    [
        ("configs/runs/finetune", ""),
        ("examples/scalable_t5/umt5/pretrain_small", ", with gin/models/umt5_small.gin"),
        ("examples/scalable_t5/umt5/pretrain_xxl", ", with gin/models/umt5_xxl.gin"),
        ("examples/scalable_t5/umt5/pretrain_large", ", with a file of gin/models"),
        ("examples/t5/t5_1_1/examples/base_wmt_finetune", ", with gin/models/t5_1_1_base.gin"),
        ("examples/decoder_only/models/base", ", with a file of gin/models"),
        ("contrib/moe/x", ", with a file of gin/models"),
    ],
)
def test_gin_files_of_t5x_name_ours(file, ours):
    assert answered(f"/somewhere/t5x/{file}.gin") == f"gin/runs/beir.gin{ours}"


@pytest.mark.parametrize(
    ("binding", "asked"),
    [
        ("models.DecoderParams.num_decodes = 4", "models.DecoderParams"),
        ("decoding.beam_search.alpha = 0.6", "decoding"),
        ("models.EncoderDecoderModel.decode_fn = @decoding.beam_search", "decoding"),
        ("seqio.Evaluator.num_examples = 3", "seqio.Evaluator"),
        ("seqio.Evaluator.logger_cls = [@seqio.PyLoggingLogger, @seqio.JSONLogger]", "seqio"),
        ("inputs/seqio.Feature.vocabulary = None", "seqio"),
        ("network.Transformer.config = None", "network.Transformer"),
        ("infer.mode = 'score'", "infer_script.infer.mode"),
        ("infer.shard_id = 1", "infer_script.infer.shard_id"),
        ("OPTIMIZER = @optimizers.chain()", "optimizers"),
        (
            "models.EncoderDecoderModel.predict_batch_with_aux.num_decodes = 4",
            "models.EncoderDecoderModel.predict_batch_with_aux",
        ),
    ],
)
def test_names_of_t5xs_stock_files_are_answered(binding, asked):
    with pytest.raises(UserError) as refused:
        gin_config.parse([BEIR], [*PLACES, binding])
    assert str(refused.value).endswith(_t5x_names.SETTINGS[asked].removeprefix("none: "))


@pytest.mark.parametrize("binding", ["TrainConfig.stepps = 1", "pipeline.infer.cheese = 1"])
def test_names_that_are_nobodys_are_not_taken_for_t5xs(binding):
    with pytest.raises(UserError, match="doesn't have a parameter named"):
        gin_config.parse([BEIR], [*PLACES, binding])


def test_a_gin_file_that_imports_t5x(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "t5x", None)
    (tmp_path / "own.gin").write_text(
        "from __gin__ import dynamic_registration\nfrom t5x import utils\n"
    )
    with pytest.raises(UserError, match="t5x"):
        gin_config.parse([str(tmp_path / "own.gin")])


def test_files_are_written(trained, places):
    for ours in table("Files").values():
        if ours.startswith("none: "):
            continue
        pattern = ours.partition(";")[0].rstrip("/")
        for word, value in (("_N", f"_{STEPS}"), ("SPLIT", "test"), ("QUERIES", "queries")):
            pattern = pattern.replace(word, value)
        folders = (trained, Path(places["$OUTPUT"]))
        found = [path for folder in folders for path in folder.glob(pattern)]
        found += list(Path(places["$OUTPUT"]).glob(pattern.removeprefix("runs/")))
        assert found, pattern


def test_metrics_are_logged(trained):
    row = json.loads((trained / "train" / "metrics.jsonl").read_text().splitlines()[-1])
    ours = {a.partition(";")[0] for a in table("Metrics").values() if not a.startswith("none: ")}
    assert ours <= row.keys()
    section = (DOC.parent / "training.md").read_text("utf-8").split("\n## Metrics\n")[1]
    rows = re.findall(r"^\| `(\S+)` \|.*\| (.*?) \|$", section.split("\n## ")[0], re.M)
    documented = {name: theirs for name, theirs in rows if theirs.strip()}
    names = {name for name, _ in rows}
    tasks = [name.removeprefix("loss/") for name in row if name.startswith("loss/")]
    assert sorted(tasks) == ["index", "queries", "synthetic"]
    patterns = {re.sub(f"/({'|'.join(tasks)})$", "/TASK", name) for name in row}
    assert patterns - names == {"step"}, "a metric that training.md does not name"
    assert ours <= names
    # and t5x's names there are those here
    for name, theirs in documented.items():
        for found in re.findall("`([^`]+)`", theirs):
            assert table("Metrics")[found].partition(";")[0] == name


@pytest.mark.parametrize(
    ("checkpoint", "message"),
    [
        ("{model}/checkpoint_7", "no checkpoint of step 7; there are 10, 20"),
        ("/elsewhere/checkpoint_10", "not a checkpoint of"),
        ("{model}/checkpoint", "not a checkpoint of"),
    ],
)
def test_wrong_checkpoints_are_one_line(trained, beir, checkpoint, message):
    path = checkpoint.format(model=trained)
    for module, name in ((eval_main, "eval"), (infer_main, "infer")):
        more = [f'QUERIES = "{beir}/queries.jsonl"'] if name == "infer" else []
        gin_config.parse(
            [BEIR],
            [
                f'CORPUS = "{beir}"',
                f'MODEL_DIR = "{trained}"',
                f'CHECKPOINT_PATH = "{path}"',
                *more,
            ],
        )
        with pytest.raises(UserError, match=message):
            module.main()


def test_a_run_file_and_a_folder_for_it_are_one_too_many(trained, beir):
    gin_config.parse(
        [BEIR],
        [
            f'CORPUS = "{beir}"', f'MODEL_DIR = "{trained}"', f'QUERIES = "{beir}/queries.jsonl"',
            'RUN = "x.run"', 'INFER_OUTPUT_DIR = "x"',
        ],
    )  # fmt: skip
    with pytest.raises(UserError, match="INFER_OUTPUT_DIR"):
        infer_main.main()


def test_a_dry_run_refuses_another_corpus(trained, tmp_path):
    from tests.conftest import write_beir

    other = write_beir(tmp_path / "other", per_topic=3, seed=1)
    gin_config.parse([BEIR], [f'CORPUS = "{other}"', f'MODEL_DIR = "{trained}"', *BINDINGS])
    with pytest.raises(UserError, match="another corpus"):
        train_main.main(dry_run=True)


def test_a_missing_macro_is_named():
    with pytest.raises(UserError, match=r'MODEL_DIR is required: --gin\.MODEL_DIR=\\"'):
        gin_config.parse([BEIR], ['CORPUS = "corpus"'])


def test_converted_checkpoints_hold_the_same(trained, tmp_path):
    ours = open_checkpoint(trained / f"checkpoint_{STEPS}")
    theirs = convert(trained / f"checkpoint_{STEPS}", tmp_path / "x", to="t5x-orbax")
    assert ours.leaves.keys() == theirs.leaves.keys()
    assert {"target_embedder/embedding", "decoder/logits_dense/kernel"} <= theirs.leaves.keys()
    name = "encoder/layers_0/attention/query/kernel"
    np.testing.assert_array_equal(np.asarray(ours.leaves[name]), np.asarray(theirs.leaves[name]))


# --- t5x's own programs ---------------------------------------------------------------------------


class _EncoderDecoderModel:
    """The arguments of t5x's class of this name that gin/t5x binds."""

    def __init__(self, input_vocabulary, output_vocabulary, decode_fn, default_decoder_params):
        self.input_vocabulary, self.output_vocabulary = input_vocabulary, output_vocabulary
        self.decode_fn, self.decoder_params = decode_fn, default_decoder_params


class _DecoderParams:
    def __init__(self, return_all_decodes=False, num_decodes=1):
        self.return_all_decodes, self.num_decodes = return_all_decodes, num_decodes


class _DatasetConfig:
    def __init__(self, mixture_or_task_name=None, task_feature_lengths=None, split=None):
        self.name, self.lengths, self.split = mixture_or_task_name, task_feature_lengths, split


def _train(train_eval_dataset_cfg=1, infer_eval_dataset_cfg=1):
    return train_eval_dataset_cfg, infer_eval_dataset_cfg


def _infer(mode=None):
    return mode


@pytest.fixture
def stand_ins(monkeypatch):
    """Modules under t5x's names, with as much in them as gin/t5x binds."""
    contents: dict[str, dict[str, Any]] = {
        "t5x": {},
        "t5x.models": {
            "EncoderDecoderModel": _EncoderDecoderModel,
            "DecoderParams": _DecoderParams,
        },
        "t5x.utils": {"DatasetConfig": _DatasetConfig},
        "t5x_main": {"train": _train, "infer": _infer},
    }
    modules = {}
    for name, members in contents.items():
        module = modules[name] = types.ModuleType(name)
        module.__dict__.update(members, __path__=[])
        for member in members.values():
            monkeypatch.setattr(member, "__module__", name)
        monkeypatch.setitem(sys.modules, name, module)
    modules["t5x"].__dict__.update(models=modules["t5x.models"], utils=modules["t5x.utils"])
    monkeypatch.setitem(sys.modules, "__main__", modules["t5x_main"])
    return modules


@pytest.mark.parametrize("file", ["train", "infer"])
def test_gin_binds_our_tasks_and_our_search(trained, stand_ins, monkeypatch, tmp_path, file):
    import seqio

    monkeypatch.setenv("GR_JAX_MODEL_DIR", str(trained))
    monkeypatch.delitem(sys.modules, "gr_jax.tasks.model_dir", raising=False)
    run_of_t5x = tmp_path / "run.gin"  # what t5x's run files do with their macros
    run_of_t5x.write_text(
        "from __gin__ import dynamic_registration\nfrom t5x import utils\n"
        "utils.DatasetConfig:\n  mixture_or_task_name = %MIXTURE_OR_TASK_NAME\n"
        "  task_feature_lengths = %TASK_FEATURE_LENGTHS\n  split = 'test'\n"
    )
    gin.enter_interactive_mode()  # the module of another test's directory may be registered
    try:
        gin.clear_config()
        gin.add_config_file_search_path(str(RESOURCES))
        gin.parse_config_files_and_bindings([str(run_of_t5x), f"gin/t5x/{file}.gin"], [])
    finally:
        gin.exit_interactive_mode()
    model = gin.get_configurable(_EncoderDecoderModel)()
    data = gin.get_configurable(_DatasetConfig)()
    features = seqio.get_mixture_or_task(data.name).output_features
    assert model.input_vocabulary == features["inputs"].vocabulary
    assert model.output_vocabulary == features["targets"].vocabulary
    assert model.input_vocabulary != model.output_vocabulary
    assert (model.decoder_params.num_decodes, model.decoder_params.return_all_decodes) == (10, True)
    if file == "train":
        assert gin.get_configurable(_train)() == (None, None)
    else:
        assert gin.get_configurable(_infer)() == "predict_with_aux"
        assert data.split == "train"
    dataset = seqio.get_mixture_or_task(data.name).get_dataset(
        sequence_length=data.lengths, split="train", shuffle=False, num_epochs=1
    )
    example = next(iter(dataset.as_numpy_iterator()))
    assert 0 < len(example["inputs"]) <= data.lengths["inputs"]
    # the bound function has the docids, and answers in the room that the lengths leave
    size = features["targets"].vocabulary.vocab_size
    rows = {"x": np.zeros((2, 1), np.float32)}

    def logits(state):
        return np.zeros((2 * model.decoder_params.num_decodes, size), np.float32), state.cache

    sequences, scores = model.decode_fn(
        inputs=np.zeros((2, data.lengths["targets"]), np.int32),
        cache=rows,
        tokens_to_logits=logits,
        num_decodes=model.decoder_params.num_decodes,
    )
    assert sequences.shape == (2, 10, data.lengths["targets"])
    assert (np.asarray(scores) > t5x.NO_ANSWER).all()


@pytest.mark.interop
def test_t5x_trains_on_our_tasks_and_answers_with_our_docids(trained, tmp_path):
    path = f"{RESOURCES}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    env = {**os.environ, "GR_JAX_MODEL_DIR": str(trained), "XLA_FLAGS": "", "PYTHONPATH": path}

    def python(*arguments: str) -> subprocess.CompletedProcess:
        command = [sys.executable, *arguments]
        return subprocess.run(
            command, env=env, capture_output=True, text=True, check=False, timeout=500
        )

    # not in this process: t5x registers itself with gin, which tests before this have locked
    tried = python("-c", "import t5x.train, t5x.infer")
    if tried.returncode:
        pytest.skip(f"t5x cannot be imported: {tried.stderr.splitlines()[-1]}")

    def program(name: str, *arguments: str) -> None:
        done = python(
            "-m", f"t5x.{name}", f"--gin_search_paths={RESOURCES}",
            f"--gin_file=t5x/configs/runs/{'pretrain' if name == 'train' else name}.gin",
            "--gin_file=t5x/examples/t5/t5_1_1/tiny.gin", f"--gin_file=gin/t5x/{name}.gin",
            "--gin.DROPOUT_RATE=0.0", '--gin.network.T5Config.dtype="float32"', *arguments,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-4000:]

    model_dir, output = tmp_path / "t5x", tmp_path / "answers"
    program(
        "train", f'--gin.MODEL_DIR="{model_dir}"', "--gin.TRAIN_STEPS=2", "--gin.BATCH_SIZE=8",
        "--gin.train.eval_period=2", "--gin.utils.SaveCheckpointConfig.period=2",
    )  # fmt: skip
    before, after = (open_checkpoint(model_dir / f"checkpoint_{step}") for step in (0, 2))
    assert (before.step, after.step) == (0, 2)
    same = [n for n, x in after.leaves.items() if np.array_equal(x.read(), before.leaves[n].read())]
    assert not same, "training left these parameters as they were"
    program(
        "infer", f'--gin.CHECKPOINT_PATH="{model_dir}/checkpoint_2"',
        f'--gin.INFER_OUTPUT_DIR="{output}"',
        '--gin.utils.RestoreCheckpointConfig.dtype="float32"',
    )  # fmt: skip

    # t5x's answers are the best of all docids, by gr_jax's own model of t5x's checkpoint
    config = after.config
    assert isinstance(config, T5Config) and config.target_vocab_size is None
    weights = prepare_inference(config, load_parameters(after, config))
    docid_map = DocidMap.load(trained / "docids")
    known = [tuple(row[row > 0].tolist()) for row in docid_map.tokens]
    tasks = MixtureCache.load(trained / "cache").tasks
    assert {task.name for task in tasks} == {"index", "synthetic", "queries"}
    for task in tasks:
        (file,) = output.glob(f"gr_jax_{task.name}-predict_with_aux.jsonl-00000-of-00001")
        lines = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
        assert len(lines) == len(task)
        source = np.zeros((len(task), task.lengths("inputs", np.arange(len(task))).max()), np.int32)
        for i in range(len(task)):
            tokens = task.example("inputs", i)
            source[i, : len(tokens)] = tokens
        for line, scores in zip(lines, score_all(weights, docid_map, source, "full"), strict=True):
            of_docid = dict(zip(known, scores, strict=True))
            answers = [tuple(tokens[: tokens.index(1)]) for tokens in line["prediction"]]
            assert len(set(answers)) == 10 and set(answers) <= of_docid.keys()
            close: Any = {"rtol": 1e-4, "atol": 1e-4}
            np.testing.assert_allclose(
                line["aux"]["scores"], [of_docid[answer] for answer in answers], **close
            )
            # the beam is as wide as the first level has codes, so nothing is missed
            best = sorted(of_docid.values())[-10:]
            np.testing.assert_allclose(line["aux"]["scores"], best, **close)
