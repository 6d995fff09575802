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
    ],
    ids=str,
)
def test_mistakes_are_one_line_that_names_the_field(wrong):
    with pytest.raises(UserError) as error:
        T5Config(**({"vocab_size": 10} | wrong))
    [name] = wrong
    assert f"T5Config.{name} is" in str(error.value) and "\n" not in str(error.value)


def test_unknown_size_names_the_sizes():
    with pytest.raises(UserError, match="'tiny': choose one of small, base"):
        T5Config.from_size("tiny", 10)


def test_json_round_trip_is_equal_and_hashable():
    config = T5Config.from_size(
        "base", 100, target_vocab_size=30, mlp_activations=["relu"], dtype="bfloat16", num_heads=4
    )
    again = T5Config.from_json(config.to_json())
    assert again == config and hash(again) == hash(config)
    assert "\n" not in config.to_json()
    assert json.loads(config.to_json()) == dataclasses.asdict(config) | {
        "mlp_activations": ["relu"]
    }
    assert again.num_heads == 4 and again.emb_dim == 768 and again.output_vocab_size == 30
