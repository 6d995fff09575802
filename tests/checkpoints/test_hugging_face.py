"""transformers' files are read as transformers reads them, and it reads ours."""

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from flax.traverse_util import unflatten_dict
from safetensors.numpy import load_file, save_file

from gr_jax.checkpoints import (
    from_parameters,
    load_parameters,
    open_checkpoint,
    write_hugging_face,
    write_t5x_orbax,
)
from gr_jax.checkpoints._hugging_face_config import scales_logits
from gr_jax.errors import UserError
from gr_jax.models import decode_train
from tests.checkpoints import hf_reference as hf
from tests.checkpoints.conftest import CONFIGS, arrays_of, assert_holds, one_line, source_of

GOLDENS = [*hf.MODELS, "t5_1_1_sharded", "t5_1_0_bfloat16"]
TIED = ("t5_1_0", "t5_1_0_bfloat16", "umt5_one_table")

_logits = jax.jit(decode_train, static_argnums=0)


def logits(source, **changes) -> np.ndarray:
    """gr_jax's logits of `hf.SOURCE` and `hf.TARGET`."""
    config = dataclasses.replace(source.config, **changes)
    batch = {
        "encoder_input_tokens": np.array(hf.SOURCE),
        "encoder_segment_ids": np.ones_like(hf.SOURCE),
        "decoder_input_tokens": np.array(hf.TARGET),
        "decoder_segment_ids": np.ones_like(hf.TARGET),
    }
    return np.asarray(_logits(config, load_parameters(source, config), batch))


def assert_same_logits(source, theirs, **changes) -> None:
    theirs = np.asarray(theirs)[..., -source.config.output_vocab_size :]
    if source.record.get("model_type") == "umt5" and not source.config.logits_via_embedding:
        # transformers 5 scales umT5's logits as if its head were tied, also where it is not
        theirs = theirs * np.sqrt(source.config.emb_dim)
    np.testing.assert_allclose(logits(source, **changes), theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("name", GOLDENS)
def test_what_transformers_saves_gives_its_logits(hf_goldens, name, scan):
    theirs = json.loads((hf_goldens / "logits.json").read_text("utf-8"))["logits"][name]
    source = open_checkpoint(hf_goldens / name)
    assert source.config.logits_via_embedding == (name in TIED)
    assert source.config.relpos_per_layer == name.startswith("umt5")
    assert_same_logits(source, theirs, scan_layers=scan)


@pytest.mark.parametrize("name", GOLDENS)
def test_our_export_is_what_transformers_saves(hf_goldens, tmp_path, name):
    write_hugging_face(open_checkpoint(hf_goldens / name), tmp_path / "x")
    ours, theirs = load_file(tmp_path / "x" / "model.safetensors"), {}
    for file in (hf_goldens / name).glob("*.safetensors"):
        theirs |= load_file(file)
    if name not in TIED:  # the head that transformers 5 has of its table is written out
        theirs.setdefault("lm_head.weight", theirs["shared.weight"])
    if name == "t5_1_1_own_scaled":
        theirs["lm_head.weight"] *= np.float32(8**-0.5)
    assert ours.keys() == theirs.keys()
    for tensor in theirs:
        assert ours[tensor].dtype == theirs[tensor].dtype
        np.testing.assert_array_equal(ours[tensor], theirs[tensor], err_msg=tensor)
    config, saved = (
        json.loads((folder / "config.json").read_text("utf-8"))
        for folder in (tmp_path / "x", hf_goldens / name)
    )
    differ = {key for key in saved.keys() & config.keys() if saved[key] != config[key]}
    scale = {"scale_decoder_outputs"} if name == "t5_1_1_own_scaled" else set()
    assert differ <= {"tie_word_embeddings"} | scale  # transformers always says it is tied
    assert config["tie_word_embeddings"] == (name in TIED)
    # and what is written reads back as what was read, a head that equals the table too
    source = open_checkpoint(hf_goldens / name)
    assert_holds(open_checkpoint(tmp_path / "x"), {n: source.read(n) for n in source.leaves})


def test_shards_are_no_larger_than_asked(tmp_path):
    source = source_of(CONFIGS["t5_1_1"])
    write_hugging_face(source, tmp_path / "x", shard_bytes=2000)
    index = json.loads((tmp_path / "x" / "model.safetensors.index.json").read_text("utf-8"))
    files = sorted(tmp_path.glob("x/*.safetensors"))
    assert len(files) > 3 and {f.name for f in files} == set(index["weight_map"].values())
    assert index["metadata"]["total_size"] == source.nbytes
    for file in files:
        sizes = [tensor.nbytes for tensor in load_file(file).values()]
        assert sum(sizes) <= 2000 or len(sizes) == 1


def rewrite(folder: Path, change) -> None:
    """Saves the tensors of a folder again, after `change` has changed them."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


@pytest.fixture
def written(tmp_path, request):
    folder = tmp_path / "hf"
    write_hugging_face(source_of(CONFIGS[getattr(request, "param", "t5_1_1")]), folder)
    return folder


def change_config(folder: Path, change: dict[str, object]) -> None:
    config = json.loads((folder / "config.json").read_text("utf-8"))
    (folder / "config.json").write_text(json.dumps(config | change), "utf-8")


def test_the_header_says_whether_there_is_a_head_not_config_json(written):
    source = open_checkpoint(written)
    for tied in (True, False):
        change_config(written, {"tie_word_embeddings": tied})
        assert open_checkpoint(written).config == source.config
    (written / "config.json").unlink()
    assert open_checkpoint(written).leaves.keys() == source.leaves.keys()


@pytest.mark.parametrize("written", ["t5_1_0"], indirect=True)
def test_a_table_without_a_scale_is_an_output_layer_of_its_own(written):
    tied = open_checkpoint(written)
    change_config(written, {"scale_decoder_outputs": False})
    own = open_checkpoint(written)
    assert tied.config.logits_via_embedding and not own.config.logits_via_embedding
    table = own.read("token_embedder/embedding")
    np.testing.assert_array_equal(own.read("decoder/logits_dense/kernel"), table.T)
    (written / "config.json").unlink()
    assert open_checkpoint(written).config.logits_via_embedding  # as T5 1.0's


@pytest.mark.parametrize(
    ("own_head", "config", "scaled"),
    [
        # the published ones, by transformers 4: t5-small; T5 1.1, Flan and ByT5; mT5; umT5
        (False, {"model_type": "t5", "transformers_version": "4.27.0.dev0"}, True),
        (True, {"model_type": "t5", "tie_word_embeddings": False}, False),
        (True, {"model_type": "mt5", "tie_word_embeddings": False}, False),
        (True, {"model_type": "umt5", "tie_word_embeddings": False}, False),
        # others by transformers 4: T5's and umT5's own default is a tied head, mT5's is not
        (False, {"model_type": "umt5", "transformers_version": "4.57.1"}, True),
        (
            False,
            {"model_type": "mt5", "tie_word_embeddings": True, "transformers_version": "4.57.1"},
            True,
        ),
        # published ones saved again by transformers 5
        (
            False,
            {"model_type": "t5", "tie_word_embeddings": True, "scale_decoder_outputs": True},
            True,
        ),
        (
            True,
            {"model_type": "t5", "tie_word_embeddings": True, "scale_decoder_outputs": False},
            False,
        ),
        (True, {"model_type": "mt5", "tie_word_embeddings": True}, False),
        (True, {"model_type": "umt5", "tie_word_embeddings": True}, False),
        (False, {}, True),
        (True, {}, False),
    ],
)
def test_every_version_of_transformers_is_understood(own_head, config, scaled):
    assert scales_logits(config, own_head=own_head) == scaled


def test_aliases_of_the_table_are_tolerated_and_others_are_not(written):
    arrays = arrays_of(CONFIGS["t5_1_1"])

    def alias(tensors):
        tensors["encoder.embed_tokens.weight"] = tensors["shared.weight"].copy()
        tensors["decoder.embed_tokens.weight"] = tensors.pop("shared.weight")

    rewrite(written, alias)
    assert_holds(open_checkpoint(written), arrays)

    def differ(tensors):
        tensors["decoder.embed_tokens.weight"][-1, -1] += 1

    rewrite(written, differ)
    with pytest.raises(UserError, match=r"embed_tokens\.weight differ"):
        open_checkpoint(written)


@pytest.mark.parametrize("written", ["t5_1_0"], indirect=True)
def test_a_tied_head_that_was_written_out_is_tied(written):
    rewrite(written, lambda t: t.update({"lm_head.weight": t["shared.weight"].copy()}))
    assert open_checkpoint(written).config.logits_via_embedding


@pytest.mark.parametrize("written", ["docids", "docids_tied"], indirect=True)
def test_docid_models_are_one_vocabulary(written):
    tensors = load_file(written / "model.safetensors")
    config = json.loads((written / "config.json").read_text("utf-8"))
    assert config["docid_token_offset"] == config["decoder_start_token_id"] == 14
    assert config["eos_token_id"] == 15
    assert tensors["shared.weight"].shape == (config["vocab_size"], 10) == (23, 10)
    if "lm_head.weight" in tensors:
        assert not tensors["lm_head.weight"][:14].any() and tensors["lm_head.weight"][14:].all()
    (written / "config.json").write_text(json.dumps(config | {"docid_token_offset": 40}))
    with pytest.raises(UserError, match="docid_token_offset is 40, but shared"):
        open_checkpoint(written)


# --- damage ---------------------------------------------------------------------------------------


def test_a_cut_file_is_refused_in_one_line(written):
    file = written / "model.safetensors"
    content = file.read_bytes()
    for cut in (len(content) - 1, len(content) // 2, 100, 4, 0):
        file.write_bytes(content[:cut])
        assert f"{file}: not a whole safetensors file" in one_line(written)


def test_missing_shards_and_tensors_are_named(tmp_path):
    folder = tmp_path / "hf"
    write_hugging_face(source_of(CONFIGS["t5_1_1"]), folder, shard_bytes=2000)
    index = folder / "model.safetensors.index.json"
    shard = sorted(folder.glob("*.safetensors"))[1]
    shard.rename(folder / "elsewhere")
    message = one_line(folder)
    assert message.startswith(f"{shard}: missing, ")
    tensors = load_file(folder / "elsewhere")
    lost = tensors.popitem()[0]
    save_file(tensors, shard)
    assert f"{shard}: has no {lost}" in one_line(folder)
    index.write_text(index.read_text("utf-8")[:-20])
    assert f"{index}: damaged" in one_line(folder)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop("decoder.final_layer_norm.weight"), "has no decoder/decoder_norm/scale"),
        (
            lambda t: t.update({"pooler.weight": np.ones((2, 2), np.float32)}),
            "it has pooler.weight",
        ),
        (lambda t: t.pop("shared.weight"), "it has no shared.weight"),
        (lambda t: t.update({"shared.weight": t["shared.weight"][:, :3].copy()}), "makes it"),
        (lambda t: t.update({"shared.weight": np.ones((2, 2), np.int8)}), "is I8: only F64"),
    ],
)
def test_what_is_no_whole_t5_is_refused(written, change, words):
    rewrite(written, change)
    assert words in one_line(written)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"feed_forward_proj": "gelu"}, "feed_forward_proj is the exact GELU"),
        ({"feed_forward_proj": "gated-mish"}, "feed_forward_proj is gated-mish; gr-jax has"),
        ({"feed_forward_proj": "relu-gelu"}, "feed_forward_proj is relu-gelu; gr-jax has"),
        ({"feed_forward_proj": "relu"}, "is relu, but the tensors' layers are gated"),
        ({"feed_forward_proj": 3}, "feed_forward_proj is 3; it must be a function's name"),
        ({"layer_norm_epsilon": 1e-5}, "layer_norm_epsilon is 1e-05; gr-jax's T5 always has"),
        ({"dropout_rate": "0.1"}, "dropout_rate is '0.1'; it must be a number"),
        ({"dropout_rate": 1.0}, "dropout_rate is 1.0; it must be a number in"),
        ({"relative_attention_max_distance": "a"}, "max_distance is 'a'; it must be a whole"),
        ({"relative_attention_max_distance": 4}, "max_distance is 4; it must be more than half"),
        ({"docid_token_offset": "q"}, "docid_token_offset is 'q'; it must be a whole number"),
        ({"docid_token_offset": True}, "docid_token_offset is True; it must be a whole number"),
        ({"docid_token_offset": 14}, "docid_token_offset is 14, but shared"),
        ({"docid_fingerprint": 3}, "docid_fingerprint is 3; it must be text"),
        ({"tie_word_embeddings": "no"}, "tie_word_embeddings is 'no'; it must be true or false"),
        ({"scale_decoder_outputs": 1}, "scale_decoder_outputs is 1; it must be true or false"),
        ({"transformers_version": 5}, "transformers_version is 5; it must be text"),
        ({"model_type": "longt5"}, "model_type is 'longt5'; gr-jax reads t5, mt5 and umt5"),
        ({"model_type": ["t5"]}, r"model_type is \['t5'\]; gr-jax reads"),
        ({"num_heads": 7}, "num_heads is 7, but the tensors' is 3"),
        ({"d_kv": 3}, "d_kv is 3, but the tensors' is 4"),
        ({"num_layers": 2}, "num_layers is 2, but the tensors' is 1"),
        ({"vocab_size": 15}, "vocab_size is 15, but the tensors' is 14"),
    ],
    ids=str,
)
def test_a_wrong_config_json_is_one_line_that_names_the_field(written, change, words):
    change_config(written, change)
    with pytest.raises(UserError, match=words) as error:
        open_checkpoint(written)
    assert str(error.value).startswith(f"{written / 'config.json'}: ")
    assert "\n" not in str(error.value)


def test_a_config_json_that_is_no_object_is_damaged(written):
    for text in ("[]", "{", "3", '{"d_model": '):
        (written / "config.json").write_text(text)
        assert f"{written / 'config.json'}: damaged" in one_line(written)


def test_null_in_config_json_is_what_is_not_said(written):
    config = open_checkpoint(written).config
    change_config(written, {"num_decoder_layers": None, "dropout_rate": None})
    assert open_checkpoint(written).config == dataclasses.replace(config, dropout_rate=0.1)


@pytest.mark.parametrize(
    ("name", "family", "words"),
    [("t5_1_0", "mt5", "never scales a tied head"), ("umt5", "t5", "each layer has its position")],
)
def test_families_that_cannot_hold_a_model_refuse_it(tmp_path, name, family, words):
    with pytest.raises(UserError, match=words):
        write_hugging_face(source_of(CONFIGS[name]), tmp_path / "x", family=family)
    assert not list(tmp_path.iterdir())


# --- transformers, live ---------------------------------------------------------------------------


@pytest.mark.torch
def test_transformers_gives_our_logits_of_our_exports(run_torch, hf_goldens, tmp_path):
    exports = {}
    for name in GOLDENS:  # through another format, and in shards
        write_t5x_orbax(open_checkpoint(hf_goldens / name), tmp_path / f"{name}-t5x", scanned=True)
        family = hf.MODELS.get(name, {"model_type": "t5"})["model_type"]
        exports[name] = tmp_path / name
        write_hugging_face(
            open_checkpoint(tmp_path / f"{name}-t5x"),
            tmp_path / name,
            shard_bytes=6000,
            family=family,
        )
    for name in ("docids", "docids_tied", "umt5"):
        config = dataclasses.replace(CONFIGS[name], vocab_size=16, target_vocab_size=12)
        if name == "umt5":
            config = dataclasses.replace(CONFIGS[name], vocab_size=16)
        tree = unflatten_dict(arrays_of(config), sep="/")
        exports[f"own_{name}"] = tmp_path / f"own_{name}"
        write_hugging_face(from_parameters(tree), exports[f"own_{name}"])
    theirs = json.loads(run_torch("tests.checkpoints.hf_reference", "--logits", *exports.values()))
    for folder in exports.values():
        assert_same_logits(open_checkpoint(folder), theirs[str(folder)])
    umt5 = [str(exports["umt5"]), str(exports["own_umt5"])]
    printed = run_torch("tests.checkpoints.hf_reference", "--unscaled", "--logits", *umt5)
    for folder, unscaled in json.loads(printed).items():
        np.testing.assert_allclose(
            logits(open_checkpoint(folder)), unscaled, rtol=1e-4, atol=1e-4, err_msg=folder
        )


@pytest.mark.torch
def test_the_goldens_are_what_transformers_saves_now(run_torch, hf_goldens, tmp_path):
    run_torch("tests.checkpoints.hf_reference", "--goldens", tmp_path / "fresh.zip")
    shutil.unpack_archive(tmp_path / "fresh.zip", tmp_path)
    for name in GOLDENS:
        golden, fresh = open_checkpoint(hf_goldens / name), open_checkpoint(tmp_path / name)
        assert golden.config == fresh.config
        assert_holds(fresh, {n: golden.read(n) for n in golden.leaves})
    committed, now = (
        json.loads((folder / "logits.json").read_text("utf-8"))["logits"]
        for folder in (hf_goldens, tmp_path)
    )
    for name in GOLDENS:
        np.testing.assert_allclose(now[name], committed[name], rtol=1e-5, atol=1e-5)
