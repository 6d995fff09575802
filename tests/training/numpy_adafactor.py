"""Adafactor in plain NumPy float64, a matrix (or vector) of one layer at a time.

Written from Shazeer and Stern 2018 (arXiv:1804.04235), algorithms 4 and 5, and from t5x's defaults;
it shares no code with `gr_jax.training`.
"""

import math

import numpy as np


def decay_at(done, rate=0.8):
    """The decay of the step that follows `done` steps."""
    return 1 - (done + 1) ** -rate


def rms(x):
    return math.sqrt((x**2).sum() / x.size)


class Layer:
    """One parameter of one layer.

    `rows` tells which axis of a matrix is the row axis of the factored statistics; None keeps a
    second moment for each element.
    """

    def __init__(self, param, *, rows=None, beta1=None, scale=True, clip=1.0, weight_decay=0.0):
        self.param = np.asarray(param, np.float64)
        self.transposed = rows == 1
        self.factored = rows is not None
        shape = self.param.T.shape if self.transposed else self.param.shape
        self.r, self.c = np.zeros(shape[0]), np.zeros(shape[-1])
        self.v, self.m = np.zeros(self.param.shape), np.zeros(self.param.shape)
        self.beta1, self.scale, self.clip, self.weight_decay = beta1, scale, clip, weight_decay

    def step(self, gradient, learning_rate, decay):
        g = np.asarray(gradient, np.float64)
        if self.factored:
            g = g.T if self.transposed else g
            square = g**2 + 1e-30
            rows, columns = square.shape
            for i in range(rows):
                self.r[i] = decay * self.r[i] + (1 - decay) * sum(square[i]) / columns
            for j in range(columns):
                self.c[j] = decay * self.c[j] + (1 - decay) * sum(square[:, j]) / rows
            u = g / np.sqrt(np.outer(self.r, self.c) / self.r.mean())
            u = u.T if self.transposed else u
        else:
            self.v = decay * self.v + (1 - decay) * (g**2 + 1e-30)
            u = g / np.sqrt(self.v)
        if self.clip:
            u = u / max(1.0, rms(u) / self.clip)
        u = u * learning_rate
        if self.scale:
            u = u * max(1e-3, rms(self.param))
        if self.beta1 is not None:
            self.m = self.beta1 * self.m + (1 - self.beta1) * u
            u = self.m
        self.param = self.param - self.weight_decay * self.param - u
