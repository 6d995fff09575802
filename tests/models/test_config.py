import dataclasses
import json

import pytest

from gr_jax.errors import UserError
from gr_jax.models import T5Config


@pytest.mark.parametrize(
    "wrong",
    [
        {"vocab_size": 0},
        {"target_vocab_size": 0},
        {"emb_dim": 0},
        {"num_heads": -1},
        {"head_dim": 0},
        {"mlp_dim": 0},
        {"num_encoder_layers": -1},
        {"num_decoder_layers": -2},
        {"dropout_rate": 1.0},
        {"dropout_rate": -0.1},
        {"mlp_activations": ()},
        {"mlp_activations": ("gelu", "gleu")},
        {"dtype": "bf16"},
        {"relpos_buckets": 3},
        {"relpos_buckets": 2},
        {"relpos_max_distance": 16},
        {"remat": "some"},
    ],
    ids=str,
)
def test_mistakes_are_one_line_that_names_the_field(wrong):
    with pytest.raises(UserError) as error:
        T5Config(**({"vocab_size": 10} | wrong))
    [name] = wrong
    assert f"T5Config.{name} is" in str(error.value) and "\n" not in str(error.value)


def test_a_published_model_by_name():
    config = T5Config.from_name("byt5_small", target_vocab_size=30, dtype="bfloat16", num_heads=2)
    assert (config.num_encoder_layers, config.num_decoder_layers) == (12, 4)
    assert (config.vocab_size, config.target_vocab_size, config.num_heads) == (384, 30, 2)
    # padding rows stay, and a larger tokenizer has its rows
    sizes = [T5Config.from_name("t5_small", n).vocab_size for n in (32100, 32128, 32129)]
    assert sizes == [32128, 32128, 32129]
    assert T5Config.from_name("t5_tiny", 50).vocab_size == 50


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("t5_1_1_smal",), "unknown T5 't5_1_1_smal': did you mean t5_1_1_small"),
        (("gpt",), "unknown T5 'gpt': there are t5_tiny, t5_small"),
        (("umt5_large",), "unknown T5 'umt5_large'"),
        (("mt5_tiny",), "mt5_tiny has no vocabulary of its own: give vocab_size"),
    ],
)
def test_unknown_names_name_the_known_ones(arguments, message):
    with pytest.raises(UserError, match=message) as error:
        T5Config.from_name(*arguments)
    assert "\n" not in str(error.value)


def test_an_unknown_field_of_a_published_model_is_refused():
    with pytest.raises(UserError, match="no field 'dropout': did you mean dropout_rate"):
        T5Config.from_name("t5_small", dropout=0.1)


def test_json_round_trip_is_equal_and_hashable():
    config = T5Config.from_name(
        "t5_1_1_base", target_vocab_size=30, mlp_activations=["relu"], dtype="bfloat16", num_heads=4
    )
    again = T5Config.from_json(config.to_json())
    assert again == config and hash(again) == hash(config)
    assert "\n" not in config.to_json()
    assert json.loads(config.to_json()) == dataclasses.asdict(config) | {
        "mlp_activations": ["relu"]
    }
    assert again.num_heads == 4 and again.emb_dim == 768 and again.output_vocab_size == 30
