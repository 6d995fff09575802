"""Where a checkpoint lies: a directory here, or one in Google's or Amazon's object store."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import tensorstore as ts

from gr_jax.errors import UserError, damage

_BUCKETS = {"gs": "gcs", "s3": "s3"}


@dataclasses.dataclass(frozen=True)
class Folder:
    """A directory by path or by URL (`gs://bucket/path`, `s3://bucket/path`)."""

    url: str

    @property
    def is_remote(self) -> bool:
        """Whether it lies in an object store."""
        return "://" in self.url

    def kvstore(self, name: str = "") -> dict[str, Any]:
        """TensorStore's spec of the directory, or of one within it.

        Raises:
          UserError: a URL that is neither of the two.
        """
        inside = f"{name}/" if name else ""
        if not self.is_remote:
            return {"driver": "file", "path": f"{Path(self.url).absolute()}/{inside}"}
        scheme, _, rest = self.url.partition("://")
        bucket, _, path = rest.strip("/").partition("/")
        if scheme not in _BUCKETS or not bucket:
            raise UserError(f"{self.url}: only gs://BUCKET/PATH and s3://BUCKET/PATH can be read")
        path = f"{path}/" if path else ""
        return {"driver": _BUCKETS[scheme], "bucket": bucket, "path": f"{path}{inside}"}

    def read(self, name: str) -> bytes | None:
        """The content of a file in it; None where there is no such file.

        Raises:
          UserError: it cannot be reached.
        """
        with damage(f"{self.url}/{name}", "cannot be read"):
            store = ts.KvStore.open(self.kvstore()).result()
            found = store.read(name).result()
        return bytes(found.value) if found.state == "value" else None
