"""From a checkpoint to weights on devices, with a few arrays at a time in float32."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from gr_jax.checkpoints import saved_parameters
from gr_jax.errors import UserError
from gr_jax.models import InferenceWeights, Precision, T5Config, prepare_inference
from gr_jax.models._layout import LAYER_AXIS, scanned_name
from gr_jax.training import Partitioner

_HELD = 3  # arrays on the host: the kernels of queries, keys and values are one weight


class SavedParameters:
    """The parameters of a checkpoint, which stay there: weights are made of them when wanted."""

    def __init__(self, checkpoint: Path, model: T5Config, partitioner: Partitioner | None = None):
        """See `Index.load`.

        Raises:
          UserError: the model does not divide by the partitioner's mesh.
        """
        self._checkpoint, self._model = checkpoint, model
        self._shardings = None
        if partitioner is not None:
            layers = dataclasses.replace(model, scan_layers=False)
            self._shardings = flatten_dict(partitioner.parameters(layers), sep="/")

    def weights(self, precision: Precision) -> InferenceWeights:
        """See `prepare_inference`; beside the weights, the devices hold what one is made of.

        A scanned model has all layers of a kind in one array, which is read once for all of them.

        Raises:
          UserError: the checkpoint is damaged, or has gone.
        """
        leaves = saved_parameters(self._checkpoint)

        @functools.lru_cache(maxsize=_HELD)
        def whole(name: str) -> np.ndarray:
            if name not in leaves:
                raise UserError(f"{self._checkpoint}: damaged: it has no {name}")
            return leaves[name].read()

        def read(name: str) -> jax.Array:
            if name in leaves or not self._model.scan_layers:
                return self._place(name, whole(name))
            scanned, layer = scanned_name(name)
            return self._place(name, whole(scanned).take(layer, LAYER_AXIS))

        return prepare_inference(self._model, read, precision)

    def _place(self, name: str, array: np.ndarray) -> jax.Array:
        if self._shardings is None:
            return jax.device_put(array, jax.local_devices()[0])
        return jax.device_put(array, self._shardings[name])
