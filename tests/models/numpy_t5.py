"""T5's forward pass in plain NumPy, written from the papers: one example, one position at a time.

Raffel et al. 2020 (arXiv:1910.10683, section 2.1 and the T5 1.1 release notes), Shazeer 2020
(arXiv:2002.05202: gated GELU), Zhang and Sennrich 2019 (arXiv:1910.07467: RMSNorm). It shares no
code and no vectorisation with `gr_jax.models`.
"""

import math

import numpy as np


def rms_norm(x, scale):
    """x [d] / root mean square, times scale: no mean, no bias."""
    return np.stack([row / math.sqrt((row**2).mean() + 1e-6) * scale for row in x])


def bucket(distance, *, bidirectional, buckets, furthest):
    """Bucket of one `key position - query position`, from the words of the paper.

    Small distances have a bucket each; from half of the (one-sided) buckets on, they grow
    logarithmically up to `furthest`, beyond which all share the last.
    """
    first = 0
    if bidirectional:
        buckets //= 2
        first = buckets if distance > 0 else 0
        distance = abs(distance)
    else:
        distance = max(-distance, 0)  # later positions are masked anyway
    exact = buckets // 2
    if distance < exact:
        return first + distance
    # buckets are equally wide in log(distance), from `exact` to `furthest`
    width = math.log(furthest / exact) / (buckets - exact)
    # the epsilon settles distances that stand exactly on a border
    return first + min(exact + int(math.log(distance / exact) / width + 1e-9), buckets - 1)


def gelu(x):
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def activated(name, x):
    return {"gelu": gelu, "relu": lambda x: np.maximum(x, 0), "linear": lambda x: x}[name](x)


def mlp(config, weights, x):
    if len(config.mlp_activations) == 1:
        hidden = activated(config.mlp_activations[0], x @ weights["wi"]["kernel"])
    else:
        hidden = 1.0
        for i, name in enumerate(config.mlp_activations):
            hidden = hidden * activated(name, x @ weights[f"wi_{i}"]["kernel"])
    return hidden @ weights["wo"]["kernel"]


def attention(config, weights, x, memory, allowed, bias):
    """`allowed(q, k)` says what may be seen; `bias(head, q, k)` is added; scores are not scaled."""
    size = config.head_dim
    query, key, value = (
        source @ weights[name]["kernel"]
        for name, source in (("query", x), ("key", memory), ("value", memory))
    )
    mixed = np.zeros((len(x), config.num_heads * size))
    for head in range(config.num_heads):
        mine = slice(head * size, (head + 1) * size)
        for q in range(len(x)):
            seen = [k for k in range(len(memory)) if allowed(q, k)]
            scores = np.array([query[q, mine] @ key[k, mine] + bias(head, q, k) for k in seen])
            weight = np.exp(scores - scores.max())
            mixed[q, mine] = (weight / weight.sum()) @ value[seen][:, mine]
    return mixed @ weights["out"]["kernel"]


def position_bias(config, stack, layer, *, bidirectional):
    """The bias of a layer, its own (umT5) or its stack's."""
    owner = layer if config.relpos_per_layer else stack
    table = owner["relpos_bias"]["rel_embedding"]

    def bias(head, q, k):
        return table[
            head,
            bucket(
                k - q,
                bidirectional=bidirectional,
                buckets=config.relpos_buckets,
                furthest=config.relpos_max_distance,
            ),
        ]

    return bias


def encode(config, params, tokens):
    """The encoder's output [length, d] of one unpadded source."""
    x = params["token_embedder"]["embedding"][tokens]
    p = params["encoder"]
    for i in range(config.num_encoder_layers):
        layer = p[f"layers_{i}"]
        bias = position_bias(config, p, layer, bidirectional=True)
        h = rms_norm(x, layer["pre_attention_layer_norm"]["scale"])
        x = x + attention(config, layer["attention"], h, h, lambda q, k: True, bias)
        x = x + mlp(config, layer["mlp"], rms_norm(x, layer["pre_mlp_layer_norm"]["scale"]))
    return rms_norm(x, p["encoder_norm"]["scale"])


def logits(config, params, source, target):
    """Logits [target length, vocabulary] of one unpadded pair; `target` is already shifted."""
    shared = config.target_vocab_size is None
    table = params["token_embedder" if shared else "target_embedder"]["embedding"]
    encoded = encode(config, params, source)
    x = table[target]
    p = params["decoder"]
    for i in range(config.num_decoder_layers):
        layer = p[f"layers_{i}"]
        bias = position_bias(config, p, layer, bidirectional=False)
        h = rms_norm(x, layer["pre_self_attention_layer_norm"]["scale"])
        x = x + attention(config, layer["self_attention"], h, h, lambda q, k: k <= q, bias)
        h = rms_norm(x, layer["pre_cross_attention_layer_norm"]["scale"])
        x = x + attention(
            config,
            layer["encoder_decoder_attention"],
            h,
            encoded,
            lambda q, k: True,
            lambda head, q, k: 0.0,
        )
        x = x + mlp(config, layer["mlp"], rms_norm(x, layer["pre_mlp_layer_norm"]["scale"]))
    x = rms_norm(x, p["decoder_norm"]["scale"])
    if config.logits_via_embedding:
        return x / math.sqrt(config.emb_dim) @ table.T
    return x @ p["logits_dense"]["kernel"]
