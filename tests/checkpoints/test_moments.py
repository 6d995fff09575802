"""Optimizer state from layout to layout, and onto devices: exact, or refused in one line."""

import dataclasses
import re
from typing import Any

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from gr_jax.checkpoints import (
    LazyArray,
    convert,
    from_parameters,
    load_optimizer_state,
    write_t5x_legacy,
)
from gr_jax.errors import UserError
from gr_jax.models import T5Config
from gr_jax.models._layout import stack_layers
from gr_jax.training import Adafactor, Optimizer, Partitioner, make_mesh, moment_shardings
from tests.checkpoints.conftest import arrays_of

# kernels that t5x factors in every layout, no two sides alike
MODEL = T5Config(
    vocab_size=9,
    emb_dim=130,
    num_heads=2,
    head_dim=64,
    mlp_dim=132,
    num_encoder_layers=1,
    num_decoder_layers=2,
    relpos_buckets=8,
    relpos_per_layer=True,
)
ADAFACTOR = Optimizer("adafactor", clip_norm=None, adafactor=Adafactor(beta1=0.9))


def tree_of(config: T5Config) -> Any:
    tree = unflatten_dict(arrays_of(dataclasses.replace(config, scan_layers=False)), sep="/")
    return stack_layers(tree) if config.scan_layers else tree


def by_path(tree: Any) -> dict[str, Any]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    text = lambda k: str(getattr(k, "key", getattr(k, "idx", getattr(k, "name", k))))  # noqa: E731
    return {"/".join(map(text, path)): leaf for path, leaf in leaves}


def state_of(config: T5Config, optimizer: Optimizer = ADAFACTOR) -> Any:
    """Random moments; those of a stack are those of the layers, by their sizes alone."""
    init = optimizer.make().init
    rng = np.random.default_rng(0)

    def random(leaf):
        if leaf.shape in ((), (1,)):  # counts, and moments that are not kept
            return np.full(leaf.shape, leaf.shape == (), leaf.dtype)
        return rng.standard_normal(leaf.shape).astype(leaf.dtype)

    apart = dataclasses.replace(config, scan_layers=False)
    layers = jax.tree.map(random, jax.eval_shape(init, tree_of(apart)))
    if not config.scan_layers:
        return layers
    known = by_path(layers)
    shapes = jax.eval_shape(init, tree_of(config))

    def stacked(name: str, leaf) -> np.ndarray:
        if name in known:
            return known[name]
        name = re.sub(r"(encoder|decoder)/\1/", r"\1/layers_{}/", name)
        depth = 1 if "encoder/layers" in name else 2
        if leaf.shape == (1,):
            return known[name.format(0)]
        fields = ("v_row", "v_col") if "v_row" in name or "v_col" in name else ("",)
        for field in fields:
            other = re.sub("v_row|v_col", field, name) if field else name
            parts = [known[other.format(i)] for i in range(depth)]
            for axis in (1, 0):
                if axis <= parts[0].ndim and np.stack(parts, axis).shape == leaf.shape:
                    return np.stack(parts, axis)
        raise AssertionError(name)

    flat = [stacked(name, leaf) for name, leaf in by_path(shapes).items()]
    return jax.tree.unflatten(jax.tree.structure(shapes), flat)


def t5x_names(state: Any) -> dict[str, np.ndarray]:
    return {
        f"state/param_states/{name}/{field}": np.asarray(x)
        for field in ("m", "v", "v_row", "v_col")
        for name, x in flatten_dict(getattr(state, field), sep="/").items()
    }


def with_heads(names: dict[str, np.ndarray], heads: int, kv: int) -> dict[str, np.ndarray]:
    """scalable_t5's state without scan, by t5x's rules: a row is the embedding axis."""
    out = dict(names)
    for name, x in names.items():
        kernel, field = name.rsplit("/", 1)
        if "attention/" not in name or x.shape == (1,):
            continue
        if field in ("v_row", "v_col"):  # ours are named by the shorter side: here heads * kv
            x = names[f"{kernel}/{'v_col' if field == 'v_row' else 'v_row'}"]
            out[name] = x if field == "v_row" else x.reshape(heads, kv)
        elif "/out/" in name:
            out[name] = x.reshape(heads, kv, -1)
        else:
            out[name] = x.reshape(-1, heads, kv)
    return out


def source_with(names: dict[str, np.ndarray], layout: str, config: T5Config = MODEL):
    leaves = {name: LazyArray.of(x) for name, x in names.items()}
    source = from_parameters(tree_of(config), config, step=1)
    return dataclasses.replace(source, format="t5x", optimizer=leaves, layout=layout)


def load(source, config: T5Config, optimizer: Optimizer = ADAFACTOR, **options) -> Any:
    params = jax.eval_shape(lambda: tree_of(config))
    state = jax.eval_shape(optimizer.make().init, params)
    placed = Partitioner(make_mesh(1)).parameters(config)
    return load_optimizer_state(
        source, config, state, moment_shardings(state, params, placed), **options
    )


def assert_equal(found: Any, wanted: Any) -> None:
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    jax.tree.map(np.testing.assert_array_equal, found, wanted)


def test_heads_of_scalable_t5_without_layers():
    """Also where embedding and heads * kv are of one size, in which nothing tells them apart."""
    wanted = state_of(MODEL)
    names = with_heads(t5x_names(wanted), MODEL.num_heads, MODEL.head_dim)
    assert_equal(load(source_with(names, "heads"), MODEL), wanted)


def test_heads_that_were_factored_whatever_their_size_are_refused_truthfully():
    small = dataclasses.replace(MODEL, emb_dim=10, head_dim=3)
    names = t5x_names(state_of(small))
    kernel = "state/param_states/encoder/layers_0/attention/out/kernel"
    names |= {f"{kernel}/v": np.zeros(1), f"{kernel}/v_row": np.ones(10)}
    names[f"{kernel}/v_col"] = np.ones((2, 3))
    with pytest.raises(UserError, match=r"v/encoder/layers_0/attention/out/kernel.*'fresh'") as e:
        load(source_with(names, "heads", small), small)
    assert "\n" not in str(e.value) and "min_dim_size" not in str(e.value)


@pytest.mark.parametrize("scan", [False, True])
def test_from_either_layout_to_either_of_a_run(scan):
    for run_scan in (False, True):
        given = dataclasses.replace(MODEL, scan_layers=scan)
        config = dataclasses.replace(MODEL, scan_layers=run_scan)
        names = t5x_names(state_of(given))
        source = source_with(names, "stacked" if scan else "layers")
        found, wanted = load(source, config), state_of(config)
        assert_equal(found, wanted)


@pytest.mark.parametrize("scan", [False, True])
def test_adamw_across_layouts(scan):
    optimizer = Optimizer("adamw")
    state = state_of(dataclasses.replace(MODEL, scan_layers=scan), optimizer)
    names = {f"opt_state/{name}": x for name, x in by_path(state).items()}
    source = dataclasses.replace(
        source_with(names, "stacked" if scan else "layers"), format="gr-jax"
    )
    config = dataclasses.replace(MODEL, scan_layers=not scan)
    found, wanted = load(source, config, optimizer), state_of(config, optimizer)
    assert_equal(found, wanted)


@pytest.mark.parametrize("rows", [5, 12])
def test_a_table_of_another_size(rows):
    """Cut, its moments are its first rows'; of one that grows they are new."""
    table = "token_embedder"
    state = state_of(MODEL)
    source = source_with(t5x_names(state), "layers")
    config = dataclasses.replace(MODEL, vocab_size=rows)
    params = tree_of(MODEL) | {table: {"embedding": np.zeros((rows, MODEL.emb_dim))}}
    abstract = jax.eval_shape(ADAFACTOR.make().init, params)
    shardings = moment_shardings(
        abstract, params, jax.tree.map(lambda _: Partitioner(make_mesh(1)).replicated, params)
    )
    resized = ("token_embedder/embedding",)
    if rows > MODEL.vocab_size:
        config = dataclasses.replace(config, logits_via_embedding=False)
    found = load_optimizer_state(source, config, abstract, shardings, resized=resized)
    v = np.asarray(state.v[table]["embedding"])
    wanted = v[:rows] if rows < MODEL.vocab_size else np.zeros((rows, MODEL.emb_dim))
    np.testing.assert_array_equal(found.v[table]["embedding"], wanted)


@pytest.mark.parametrize("to", ["t5x", "t5x-orbax"])
def test_there_and_back_through_t5xs_scanned_layout(tmp_path, to):
    names = t5x_names(state_of(MODEL))
    write_t5x_legacy(source_with(names, "layers"), tmp_path / "a", optimizer=True)
    scanned = convert(tmp_path / "a", tmp_path / "b", to=to, scanned=True, optimizer=True)
    out = "state/param_states/decoder/decoder/self_attention/out/kernel"
    assert scanned.optimizer[f"{out}/v_col"].shape == (2, 2, 64)
    assert scanned.optimizer[f"{out}/v_row"].shape == (2, 130)
    assert scanned.optimizer[f"{out}/m"].shape == (2, 2, 64, 130)
    back = convert(tmp_path / "b", tmp_path / "c", to="t5x", optimizer=True)
    assert back.optimizer.keys() == names.keys()
    for name, x in names.items():
        np.testing.assert_array_equal(back.optimizer[name].read(), x, err_msg=name)
