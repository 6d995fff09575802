"""A run small enough for tests: its parts, and the same as gin bindings."""

import functools
from typing import Any

from gr_jax import docids, models, pipeline, queries, training

STEPS = 100


def settings(**trainer: Any) -> dict[str, Any]:
    """Arguments of `pipeline.train` but for directory and corpus."""
    return {
        "docids": docids.HierarchicalKMeans(levels=2),
        "queries": queries.SyntheticQueries(per_document=20),
        "data": pipeline.DataConfig(batch_size=64, vocab_size=300, row_length=64),
        "model": functools.partial(
            models.T5Config,
            emb_dim=32,
            num_heads=2,
            head_dim=16,
            mlp_dim=64,
            num_encoder_layers=1,
            num_decoder_layers=1,
            dropout_rate=0.0,
            embedding_init=0.1,
        ),
        "trainer": training.TrainConfig(
            **(
                {
                    "steps": STEPS,
                    "optimizer": training.Optimizer("muon", embedding_rate=3.0, output_rate=2.0),
                    "schedule": training.Schedule(base=1e-2, warmup_steps=5),
                    "save_period": 20,
                    "log_period": 10,
                    "ema_decay": 0.9,
                }
                | trainer
            )
        ),
    }


BINDINGS = (
    "docids.HierarchicalKMeans.levels = 2",
    "queries.SyntheticQueries.per_document = 20",
    "pipeline.DataConfig.batch_size = 64",
    "pipeline.DataConfig.vocab_size = 300",
    "models.T5Config.emb_dim = 32",
    "models.T5Config.num_heads = 2",
    "models.T5Config.head_dim = 16",
    "models.T5Config.mlp_dim = 64",
    "models.T5Config.num_encoder_layers = 1",
    "models.T5Config.num_decoder_layers = 1",
    "models.T5Config.dtype = 'float32'",
    "training.Schedule.base = 1e-2",
    "training.Schedule.warmup_steps = 5",
    "training.TrainConfig.save_period = 10",
    "training.TrainConfig.log_period = 10",
)
