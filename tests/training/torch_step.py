"""Two training steps of Hugging Face's T5 with torch's AdamW: what gr_jax's step is compared with.

A script for a Python that has torch and transformers, from the root of the repository:

    python -m tests.training.torch_step tests/training/torch_goldens.json

Without torch it can be imported: `make_pairs` and the settings are how gr_jax's side gets the same.
"""

# pyright: reportMissingImports=false

import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import hugging_face as hf

STEPS = 2
ADAMW = {"lr": 1e-2, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.1}


def make_pairs() -> tuple[np.ndarray, np.ndarray]:
    """Sources [6, 20] and targets [6, 7], 0-padded at the end."""
    rng = np.random.default_rng([hf.SEED, 3])
    source = hf.parity_queries()
    targets = rng.integers(1, 150, (len(source), 7))
    lengths = np.array([7, 1, 3, 7, 5, 2])
    return source, np.where(np.arange(7) < lengths[:, None], targets, 0)


def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, np.ndarray]:
    """Leaves by t5x's names."""
    leaves = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            leaves |= flat(value, f"{prefix}{name}/")
        else:
            leaves[prefix + name] = np.asarray(value, np.float64)
    return leaves


def summary(leaves: dict[str, np.ndarray]) -> dict[str, list[float]]:
    """Norm, sum and one entry of each leaf, to seven digits."""
    return {
        name: [float(f"{x:.7g}") for x in (math.sqrt((leaf**2).sum()), leaf.sum(), leaf.flat[-1])]
        for name, leaf in leaves.items()
    }


def torch_steps(name: str) -> dict[str, Any]:
    """Losses, the first gradient and how far the parameters went, of one model."""
    import torch

    shape = hf.MODELS[name]
    weights = hf.make_weights(shape, hf.SEED)
    model = hf.build_model(shape, weights, hf.SEED)  # in eval mode: without dropout
    optimizer = torch.optim.AdamW(model.parameters(), **ADAMW)
    source, targets = (torch.from_numpy(np.asarray(x, np.int64)) for x in make_pairs())
    start = torch.zeros_like(targets[:, :1])
    losses, first = [], {}
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = model(
            input_ids=source,
            attention_mask=(source > 0).long(),
            decoder_input_ids=torch.cat([start, targets[:, :-1]], dim=1),
            labels=torch.where(targets > 0, targets, -100),
        ).loss
        loss.backward()
        losses.append(float(f"{loss.item():.7g}"))
        first = first or {n: p.grad.numpy().copy() for n, p in model.named_parameters()}
        optimizer.step()
    moved = {n: p.detach().numpy() - weights[n] for n, p in model.named_parameters()}
    return {
        "losses": losses,
        "gradient": summary(flat(hf.t5x_tree(shape, first))),
        "moved": summary(flat(hf.t5x_tree(shape, moved))),
    }


if __name__ == "__main__":
    text = json.dumps({name: torch_steps(name) for name in hf.MODELS}, separators=(",", ":"))
    Path(sys.argv[1]).write_text(text.replace('],"', '],\n"') + "\n", encoding="utf-8")
