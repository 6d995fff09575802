"""Hugging Face's T5 trained with torch: what gr_jax's training step is measured against.

A script for a Python that has torch and transformers: `python benchmarks/hugging_face_train.py
--serve` answers JSON lines, see `Trainer`.
"""

# pyright: reportMissingImports=false
# torch and transformers are not in the environment that gr_jax is checked in

from __future__ import annotations

import contextlib
import time
from typing import Any

import hugging_face as hf
import numpy as np


class Trainer:
    """One method per "op" of a request.

    {"op": "info"}
      -> versions and threads
    {"op": "load", "config": {...}, "model": NPZ, "threads": 2, "dtype": "float32" or "bfloat16",
     "device": "cpu" or "cuda", "compiled": false, "learning_rate": 1e-3, "b1": 0.9, "b2": 0.99}
      builds the model and its AdamW; bfloat16 is by autocast: parameters stay float32
    {"op": "step", "batch": NPZ}
      -> "ms" of one step, from arrays on the host to new parameters, and its "loss"; the npz has
      `source` and `target` [batch, length], 0 where there is nothing
    """

    OPS = ("info", "load", "step")

    def info(self, _request: dict[str, Any]) -> dict[str, Any]:
        import torch

        return {**hf.versions(), "threads": torch.get_num_threads()}

    def load(self, request: dict[str, Any]) -> dict[str, Any]:
        import torch

        torch.set_num_threads(request["threads"])
        with np.load(request["model"]) as file:
            model = hf.build_model(request["config"], dict(file), 0)
        self.device = request["device"]
        model = model.to(self.device).train()
        # fused: one pass over each parameter, torch's fastest
        self.optimizer = torch.optim.AdamW(
            model.parameters(),
            lr=request["learning_rate"],
            betas=(request["b1"], request["b2"]),
            weight_decay=0.0,
            fused=True,
        )
        self.model = torch.compile(model) if request["compiled"] else model
        self.bfloat16 = request["dtype"] == "bfloat16"
        return {"parameters": sum(p.numel() for p in model.parameters())}

    def step(self, request: dict[str, Any]) -> dict[str, Any]:
        import torch

        with np.load(request["batch"]) as file:
            source, target = file["source"].astype(np.int64), file["target"].astype(np.int64)
        start = time.perf_counter()
        cast = (
            torch.autocast(self.device, torch.bfloat16)
            if self.bfloat16
            else contextlib.nullcontext()
        )
        with cast:
            loss = self.model(
                input_ids=torch.from_numpy(source).to(self.device),
                attention_mask=torch.from_numpy(source != 0).to(self.device),
                labels=torch.from_numpy(np.where(target == 0, -100, target)).to(self.device),
            ).loss
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        hf.synchronize()
        return {"ms": 1e3 * (time.perf_counter() - start), "loss": float(loss.detach())}


if __name__ == "__main__":
    hf.serve(Trainer())
