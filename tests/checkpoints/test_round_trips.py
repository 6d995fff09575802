"""Every format and layout to every other, bit for bit."""

import dataclasses

import jax
import numpy as np
import pytest
from flax.traverse_util import unflatten_dict
from hypothesis import given, settings
from hypothesis import strategies as st

from gr_jax.checkpoints import (
    fingerprint,
    from_parameters,
    open_checkpoint,
    write_hugging_face,
    write_t5x_legacy,
    write_t5x_orbax,
)
from gr_jax.checkpoints._canonical import canonical, scanned, stacked
from gr_jax.checkpoints._lazy import LazyArray, stack
from gr_jax.models._layout import stack_layers
from tests.checkpoints.conftest import (
    BFLOAT16,
    CONFIGS,
    T5_1_1,
    arrays_of,
    assert_holds,
    source_of,
)

WRITERS = {
    "hf": write_hugging_face,
    "hf-shards": lambda source, to: write_hugging_face(source, to, shard_bytes=2000),
    "t5x": write_t5x_legacy,
    "t5x-scanned": lambda source, to: write_t5x_legacy(source, to, scanned=True),
    "orbax": write_t5x_orbax,
    "orbax-scanned": lambda source, to: write_t5x_orbax(source, to, scanned=True),
}


@pytest.fixture(scope="module")
def first_generation(memory_folder):
    """Each model in each format, written from memory."""
    folder = memory_folder / "first"
    for model, config in CONFIGS.items():
        for name, write in WRITERS.items():
            write(source_of(config), folder / model / name)
    return folder


@pytest.mark.parametrize("name", WRITERS)
def test_what_is_written_is_read(first_generation, name):
    for model, config in CONFIGS.items():
        source = open_checkpoint(first_generation / model / name)
        assert_holds(source, arrays_of(config))
        assert source.config == config
        assert source.step == (None if "hf" in name else 3)
        assert source.layout == ("scanned" if "scanned" in name else "layers")
        assert fingerprint(source) == fingerprint(source_of(config))


@pytest.mark.parametrize("second", WRITERS)
@pytest.mark.parametrize("first", WRITERS)
def test_every_pair(first_generation, tmp_path, first, second):
    # the models take turns: reading gives the same whatever is read, which the test above shows
    pair = list(WRITERS).index(first) + list(WRITERS).index(second)
    model = list(CONFIGS)[pair % len(CONFIGS)]
    WRITERS[second](open_checkpoint(first_generation / model / first), tmp_path / model)
    assert_holds(open_checkpoint(tmp_path / model), arrays_of(CONFIGS[model]))


@pytest.mark.parametrize("name", WRITERS)
def test_bfloat16(tmp_path, name):
    WRITERS[name](source_of(T5_1_1, dtype=BFLOAT16), tmp_path / "x")
    assert_holds(open_checkpoint(tmp_path / "x"), arrays_of(T5_1_1, dtype=BFLOAT16))


@pytest.mark.parametrize("name", ["hf", "t5x-scanned", "orbax"])
def test_rounding_is_numpys(tmp_path, name):
    write = {"hf": write_hugging_face, "orbax": write_t5x_orbax}.get(name, write_t5x_legacy)
    options = {"scanned": True} if "scanned" in name else {}
    write(source_of(T5_1_1), tmp_path / "x", dtype=np.dtype(BFLOAT16), **options)
    rounded = {name: array.astype(BFLOAT16) for name, array in arrays_of(T5_1_1).items()}
    assert_holds(open_checkpoint(tmp_path / "x"), rounded)


@settings(max_examples=25, deadline=None)
@given(
    heads=st.integers(1, 4),
    head_dim=st.integers(1, 4),
    encoder=st.integers(1, 3),
    decoder=st.integers(1, 3),
    per_layer=st.booleans(),
    tied=st.booleans(),
    targets=st.one_of(st.none(), st.integers(2, 5)),
    data=st.data(),
)
def test_layouts_of_any_shape(heads, head_dim, encoder, decoder, per_layer, tied, targets, data):
    config = dataclasses.replace(
        T5_1_1,
        num_heads=heads,
        head_dim=head_dim,
        num_encoder_layers=encoder,
        num_decoder_layers=decoder,
        relpos_per_layer=per_layer and encoder + decoder > 2,
        logits_via_embedding=tied,
        target_vocab_size=targets,
    )
    arrays = arrays_of(config)
    source = from_parameters(unflatten_dict(arrays, sep="/"), config)
    lists = scanned(source.leaves, head_dim)
    for layout, leaves in (
        ("scanned", {n: stack(x, 1) if isinstance(x, list) else x for n, x in lists.items()}),
        ("stacked", stacked(source.leaves)),
    ):
        back, named, known_heads = canonical("x", leaves)
        assert named == layout and known_heads == (heads if layout == "scanned" else None)
        assert back.keys() == arrays.keys()
        for name, array in arrays.items():
            bounds = [data.draw(st.integers(0, n)) for n in array.shape]
            index = tuple(slice(0, b) for b in bounds)
            np.testing.assert_array_equal(back[name].read(index), array[index], err_msg=name)


def test_the_stacked_layout_is_the_models(config):
    tree = unflatten_dict(arrays_of(config), sep="/")
    theirs = stack_layers(tree)
    source = from_parameters(theirs)
    assert source.layout == "stacked"
    assert_holds(source, arrays_of(config))
    ours = unflatten_dict(
        {name: leaf.read() for name, leaf in stacked(source.leaves).items()}, sep="/"
    )
    jax.tree.map(np.testing.assert_array_equal, ours, jax.tree.map(np.asarray, theirs))


def test_equal_biases_of_layers_are_a_shared_one(tmp_path):
    arrays = dict(arrays_of(CONFIGS["umt5"]))
    shared = arrays_of(T5_1_1)
    for name in arrays:
        if name.endswith("rel_embedding"):
            arrays[name] = shared[f"{name.split('/')[0]}/relpos_bias/rel_embedding"]
    source = from_parameters(unflatten_dict(arrays, sep="/"))
    assert not source.config.relpos_per_layer
    assert source.leaves.keys() == shared.keys()
    arrays["decoder/layers_1/relpos_bias/rel_embedding"] = -arrays[
        "decoder/layers_1/relpos_bias/rel_embedding"
    ]
    source = from_parameters(unflatten_dict(arrays, sep="/"))
    assert source.config.relpos_per_layer
    assert_holds(source, arrays)


def test_a_fingerprint_sees_names_dtypes_and_every_byte():
    prints = {fingerprint(source_of(config)) for config in CONFIGS.values()}
    assert len(prints) == len(CONFIGS)
    assert fingerprint(source_of(T5_1_1, dtype=np.float16)) not in prints
    assert fingerprint(source_of(T5_1_1, step=9)) in prints
    arrays = dict(arrays_of(T5_1_1))
    arrays["decoder/logits_dense/kernel"] = arrays["decoder/logits_dense/kernel"].copy()
    arrays["decoder/logits_dense/kernel"].view(np.uint8)[-1, -1] ^= 1
    assert fingerprint(from_parameters(unflatten_dict(arrays, sep="/"))) not in prints


@pytest.mark.parametrize("name", WRITERS)
def test_arrays_in_many_chunks_and_blocks(tmp_path, monkeypatch, name):
    """What happens to tables of gigabytes, at the scale of bytes."""
    blocks = LazyArray.blocks
    monkeypatch.setattr(LazyArray, "blocks", lambda array, limit=None: blocks(array, 90))
    monkeypatch.setattr("gr_jax.checkpoints._t5x_write._CHUNK_BYTES", 90)
    WRITERS[name](source_of(T5_1_1), tmp_path / "x")
    source = open_checkpoint(tmp_path / "x")
    assert_holds(source, arrays_of(T5_1_1))
    part = source.read("token_embedder/embedding", [slice(3, 11), slice(2, 9)])
    wanted = arrays_of(T5_1_1)["token_embedder/embedding"][3:11, 2:9]
    np.testing.assert_array_equal(part, wanted)
    if name == "t5x":
        chunks = tmp_path.glob("x/checkpoint_3/target.token_embedder.embedding/*.*")
        assert len({chunk.name for chunk in chunks if chunk.name[0] != "."}) == 7
