"""Write files so that a kill leaves the old one or the new one, never a part of one."""

import os
from contextlib import contextmanager


@contextmanager
def atomic_path(path):
    """Yield a path to write to; it takes the place of `path` when the block ends, and is removed if the block fails."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
