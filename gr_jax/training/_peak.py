"""The peak of known accelerators: what model FLOPs utilisation is relative to."""

from __future__ import annotations

# Dense bfloat16 FLOP/s of one `jax.Device` by the beginning of its `device_kind`, the longest match
# counting. TPUs: cloud.google.com/tpu/docs (per chip; a chip of v4 and v5p is one device, one of
# TPU7x is two). GPUs: NVIDIA's data sheets, without sparsity.
_PEAKS = {
    "TPU v2": 22.5e12,  # a core; 45e12 a chip
    "TPU v3": 61.5e12,  # a core; 123e12 a chip
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v5p": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "TPU7x": 1153.5e12,  # half a chip of 2307e12
    "NVIDIA A100": 312e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA B200": 2250e12,
    "NVIDIA L4": 121e12,
    "Tesla V100": 125e12,  # float16: it has no bfloat16
    "Tesla T4": 65e12,  # float16
}


def peak_flops(device_kind: str) -> float | None:
    """Dense bfloat16 FLOP/s of a device, whatever precision it runs; None for an unknown one.

    Args:
      device_kind: as `jax.Device.device_kind` has it.
    """
    known = [kind for kind in _PEAKS if device_kind.startswith(kind)]
    return _PEAKS[max(known, key=len)] if known else None
