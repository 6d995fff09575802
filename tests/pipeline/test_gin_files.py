"""Every gin file that comes with gr_jax is read, and gives the model that it promises."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

import gin
from gr_jax import RESOURCES, gin_config
from gr_jax.errors import UserError
from gr_jax.models import VARIANTS, T5Config
from gr_jax.pipeline import DataConfig
from gr_jax.pipeline._prepare import Prepared
from gr_jax.pipeline._run import _sized

FILES = sorted(str(path.relative_to(RESOURCES)) for path in Path(RESOURCES, "gin").rglob("*.gin"))
BEIR, VARIANT, POD = "gin/runs/beir.gin", "gin/models/variant.gin", "gin/runs/pod.gin"
PLACES = ('CORPUS = "corpus"', 'MODEL_DIR = "model"')


@pytest.fixture(autouse=True)
def clean_gin():
    yield
    gin.clear_config()


def model_of(*files: str, bindings=PLACES):
    """What `pipeline.run` is given as its `model`."""
    gin_config.parse(files, bindings)
    return cast(Any, gin.query_parameter("pipeline.run.model")).scoped_configurable_fn


def plain(config: T5Config) -> dict[str, Any]:
    return dataclasses.asdict(config)


def test_there_is_a_file_for_every_published_model():
    names = {Path(file).stem for file in FILES if file.startswith("gin/models/")}
    assert names == VARIANTS.keys() | {"variant"}


@pytest.mark.parametrize("name", VARIANTS)
def test_a_models_file_gives_the_published_model(name):
    file = f"gin/models/{name}.gin"
    config = model_of(BEIR, file)(vocab_size=300, target_vocab_size=20)
    expected = T5Config.from_name(
        name, 300, target_vocab_size=20, dropout_rate=0.0, dtype="bfloat16"
    )
    assert plain(config) == plain(expected)
    assert config.vocab_size == VARIANTS[name].get("vocab_size", 300)
    command, *lines = Path(RESOURCES, file).read_text("utf-8").splitlines()
    assert command.startswith("# python -m gr_jax.train ") and f"--gin_file={file} " in command
    assert len(lines) < 8


@pytest.mark.parametrize(
    "file", [f for f in FILES if not f.startswith(("gin/models/", "gin/t5x/", POD))]
)
def test_a_runs_file_gives_a_model(file):
    config = model_of(file)(vocab_size=300, target_vocab_size=20)
    assert (config.vocab_size, config.target_vocab_size) == (300, 20)
    assert config.emb_dim == 256


def test_fields_of_a_published_model_are_set_on_the_command_line():
    bindings = gin_config.rewrite_gin_args(
        ['--gin.T5Config.from_name.remat="full"', "--gin.DROPOUT_RATE=0.1"]
    )
    bindings = [*PLACES, *(b.removeprefix("--gin_bindings=") for b in bindings)]
    config = model_of(BEIR, "gin/models/mt5_small.gin", bindings=bindings)(vocab_size=300)
    assert (config.remat, config.dropout_rate, config.emb_dim) == ("full", 0.1, 512)


@pytest.mark.parametrize("name", [None, *(n for n in VARIANTS if n.startswith("t5_1_1_"))])
def test_a_pods_run_takes_any_size_after_it(name):
    files = [POD] if name is None else [POD, f"gin/models/{name}.gin"]
    config = model_of(*files, bindings=[*PLACES, "REMAT = 'minimal'"])(vocab_size=300)
    name = name or "t5_1_1_xxl"
    expected = T5Config.from_name(
        name, 300, dropout_rate=0.1, dtype="bfloat16", scan_layers=True, remat="minimal"
    )
    assert plain(config) == plain(expected)


def test_a_pods_run_is_evaluated_over_a_host():
    gin_config.parse([POD], [*PLACES, "MODEL_PARALLEL = 16"])
    run = gin.get_bindings("pipeline.run")
    trained, searched = run["trainer"].partitioning, run["evaluation"].partitioning
    assert (trained.model_parallel, trained.parameter_partitions) == (16, 2)
    assert (searched.model_parallel, searched.parameter_partitions) == (8, 1)


def test_the_shape_of_a_runs_own_model_is_not_the_published_models():
    assert gin_config_of(BEIR, "gin/models/t5_small.gin").count("emb_dim") == 0
    assert gin_config_of(BEIR).count("T5Config.emb_dim = 256") == 1


def gin_config_of(*files: str, bindings=PLACES) -> str:
    gin_config.parse(files, bindings)
    return gin.config_str()


@pytest.mark.parametrize("field", ["T5Config.remat", "models.T5Config.remat"])
def test_a_field_of_the_class_is_one_of_a_published_model_too(tmp_path, field):
    """On the command line and in a file, and in the config.gin that a run keeps of it."""
    files = (BEIR, "gin/models/mt5_small.gin")
    expected = T5Config.from_name(
        "mt5_small", 300, dropout_rate=0.0, dtype="bfloat16", remat="full", mlp_dim=96
    )
    late = [f"{field} = 'full'", "T5Config.mlp_dim = 96"]
    model = model_of(*files, bindings=[*PLACES, *late])
    assert plain(model(vocab_size=300)) == plain(expected)
    lines = [f"include {file!r}" for file in files]
    own = tmp_path / "own.gin"
    lines += ["from __gin__ import dynamic_registration", "from gr_jax import models"]
    own.write_text("\n".join([*lines, "models." + late[1], "models.T5Config.remat = 'full'"]))
    assert plain(model_of(str(own))(vocab_size=300)) == plain(expected)
    gin_config.save(tmp_path / "config.gin")
    assert plain(model_of(str(tmp_path / "config.gin"))(vocab_size=300)) == plain(expected)


def test_the_last_of_both_spellings_wins():
    both = ["T5Config.from_name.remat = 'minimal'", "T5Config.remat = 'full'"]
    for bindings, remat in ((both, "full"), (both[::-1], "minimal")):
        model = model_of(BEIR, "gin/models/t5_small.gin", bindings=[*PLACES, *bindings])
        assert model(vocab_size=300).remat == remat


@pytest.mark.parametrize(
    ("files", "bindings"),
    [
        ((BEIR,), ["T5Config.from_name.remat = 'full'"]),
        (("gin/models/t5_small.gin", BEIR), []),  # the run's file puts its own model in the place
    ],
)
def test_fields_of_a_published_model_without_one_are_refused(files, bindings):
    with pytest.raises(UserError, match=r"T5Config\.from_name\.\w+ is bound, but .* after the run"):
        gin_config.parse(files, [*PLACES, *bindings])


def test_a_field_that_is_none_is_one_line():
    bindings = [*PLACES, "T5Config.from_name.remad = 'full'"]
    model = model_of(BEIR, "gin/models/t5_small.gin", bindings=bindings)
    with pytest.raises(UserError, match="has no field 'remad': did you mean remat"):
        gin_config.call(model, vocab_size=300)
    misspelt = [*PLACES, "T5Config.remad = 'full'"]
    with pytest.raises(UserError, match="has no field 'remad': did you mean remat"):
        gin_config.call(
            model_of(BEIR, "gin/models/t5_small.gin", bindings=misspelt), vocab_size=300
        )
    with pytest.raises(UserError, match="VARIANT"):
        gin_config.call(model_of(BEIR, VARIANT), vocab_size=300)


@pytest.mark.parametrize(
    ("pieces", "sentencepiece", "rows"),
    [(32100, "t5.model", 32128), (40000, "other.model", 40064), (8000, None, 8064)],
)
def test_rows_of_the_published_table_stay_for_a_tokenizer_that_is_given(
    pieces, sentencepiece, rows
):
    prepared = SimpleNamespace(
        tokenizer=SimpleNamespace(vocab_size=pieces, words_only=sentencepiece is None),
        docid_map=SimpleNamespace(vocabulary=SimpleNamespace(size=50)),
        config=DataConfig(sentencepiece=sentencepiece),
    )
    model = model_of(BEIR, "gin/models/t5_1_1_small.gin")
    config = _sized(model, cast(Prepared, prepared))
    assert type(config) is T5Config
    assert (config.vocab_size, config.target_vocab_size) == (rows, 128)
    assert _sized(T5Config, cast(Prepared, prepared)).vocab_size == -(-pieces // 128) * 128
