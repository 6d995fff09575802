"""The script that the memory test starts: converts a model in much less room than it takes.

    python limited_memory.py FOLDER {convert,eager}

`eager` reads the whole model first, as a converter would that is not lazy.
"""

import json
import resource
import sys
from pathlib import Path

from gr_jax.console import quiet_libraries

quiet_libraries()

from gr_jax.checkpoints import convert, fingerprint, open_checkpoint, parameter_shapes  # noqa: E402
from gr_jax.checkpoints._hugging_face import hugging_face_name, is_transposed  # noqa: E402
from gr_jax.models import T5Config  # noqa: E402

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


def data_bytes() -> int:
    """Private memory of this process: what RLIMIT_DATA limits."""
    status = Path("/proc/self/status").read_text("utf-8")
    return int(status.split("VmData:")[1].split()[0]) << 10


def main(folder: Path, how: str) -> None:
    size = write_zeros(folder / "large", MODEL)
    assert size > 3 * ROOM, size
    write_zeros(folder / "tiny", TINY)
    for to in ("t5x", "t5x-orbax"):  # threads and modules are there from here on
        convert(folder / "tiny", folder / f"tiny-{to}", to=to)
    limit = data_bytes() + ROOM
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    source = open_checkpoint(folder / "large")
    if how == "eager":
        held = [source.read(name) for name in source.leaves]
        print(len(held))
    print(fingerprint(source))
    for to in ("hf", "t5x", "t5x-orbax"):
        print(fingerprint(convert(folder / "large", folder / to, to=to)))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
