"""Write files so that a kill leaves the old one or the new one, never a part of one."""

import os
from contextlib import contextmanager, suppress


@contextmanager
def atomic_path(path):
    """Yield a path to write to; it takes the place of `path` when the block ends, and is removed if the block fails.

    Raises OSError, with what to do, where the disk is full or the folder cannot be written to.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        os.replace(partial, path)
    except OSError as error:
        raise OSError(
            f"{path} could not be written and is as it was ({error}); make room, or its folder writable, and run again"
        ) from error
    finally:
        with suppress(OSError):  # there is none, or the whole disk is read-only
            partial.unlink()
