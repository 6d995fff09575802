"""What the memory tests start: programs with much less room than the model takes.

    python limited_memory.py FOLDER {convert,eager}
    python limited_memory.py FOLDER load COORDINATOR INDEX    one of two processes

`eager` reads the whole model first, as a converter would that is not lazy.
"""

import json
import resource
import sys
from pathlib import Path

from gr_jax.console import quiet_libraries

quiet_libraries()

import jax  # noqa: E402

from gr_jax import distributed  # noqa: E402
from gr_jax.checkpoints import (  # noqa: E402
    ParameterSource,
    convert,
    fingerprint,
    load_parameters,
    open_checkpoint,
    parameter_shapes,
)
from gr_jax.checkpoints._hugging_face import hugging_face_name, is_transposed  # noqa: E402
from gr_jax.models import T5Config  # noqa: E402
from gr_jax.training import Partitioner, make_mesh  # noqa: E402

ROOM = 60 << 20
MODEL = T5Config(
    vocab_size=4096,
    emb_dim=512,
    num_heads=8,
    head_dim=64,
    mlp_dim=4096,
    num_encoder_layers=4,
    num_decoder_layers=3,
)
TINY = T5Config(vocab_size=8, emb_dim=8, num_heads=2, mlp_dim=8, num_encoder_layers=1)


def write_zeros(folder: Path, config: T5Config) -> int:
    """A file of holes: it takes no room on the disk. Returns its size."""
    header, at = {}, 0
    for name, shape in parameter_shapes(config).items():
        size = 4
        for n in shape:
            size *= n
        header[hugging_face_name(name)] = {
            "dtype": "F32",
            "shape": shape[::-1] if is_transposed(name) else shape,
            "data_offsets": [at, at + size],
        }
        at += size
    folder.mkdir()
    text = json.dumps(header).encode()
    with (folder / "model.safetensors").open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        stream.truncate(8 + len(text) + at)
    return at


def limit_addresses(room: int) -> None:
    """Lets this process have `room` more bytes of addresses; files that it maps count too."""
    status = Path("/proc/self/status").read_text("utf-8")
    now = int(status.split("VmSize:")[1].split()[0]) << 10
    resource.setrlimit(resource.RLIMIT_AS, (now + room, now + room))


def write_models(folder: Path) -> None:
    size = write_zeros(folder / "large", MODEL)
    assert size > 3 * ROOM, size
    write_zeros(folder / "tiny", TINY)


def convert_all(folder: Path, how: str) -> None:
    for to in ("t5x", "t5x-orbax"):  # threads and modules are there from here on
        convert(folder / "tiny", folder / f"tiny-{to}", to=to)
    limit_addresses(ROOM)
    source = open_checkpoint(folder / "large")
    if how == "eager":
        held = [source.read(name) for name in source.leaves]
        print(len(held))
    print(fingerprint(source))
    for to in ("hf", "t5x", "t5x-orbax"):
        print(fingerprint(convert(folder / "large", folder / to, to=to)))


def load_half(folder: Path, coordinator: str, index: int) -> None:
    """Loads the half of the model that is this process's, with less room than the model takes."""
    distributed.initialize(coordinator, 2, index)
    partitioner = Partitioner(make_mesh(2))

    def load(source: ParameterSource):
        return load_parameters(source, source.config, partitioner.parameters(source.config))

    load(open_checkpoint(folder / "tiny"))
    source = open_checkpoint(folder / "large")
    limit_addresses(source.nbytes * 3 // 4)
    leaves = jax.tree.leaves(load(source))
    held = sum(shard.data.nbytes for leaf in leaves for shard in leaf.addressable_shards)
    try:
        whole = [source.read(name) for name in source.leaves]
    except MemoryError:
        whole = None
    print(json.dumps({"model": source.nbytes, "held": held, "all_fits": whole is not None}))


def main(folder: Path, how: str, *others: str) -> None:
    if how == "load":
        load_half(folder, others[0], int(others[1]))
        return
    convert_all(folder, how)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
