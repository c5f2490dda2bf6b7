"""Run notebooks top to bottom with live output, and rewrite them when they succeed."""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError
from traitlets.config import Config

from experiments import UserError
from experiments.notebook import Workspace
from vae.checkpoint import atomic_path


class LiveClient(NotebookClient):
    """A notebook client that also prints what cells print, while they run."""

    def process_message(self, message, cell, cell_index):
        """Echo text output, then do as any client does."""
        if message["msg_type"] == "stream":
            sys.stdout.write(message["content"]["text"])
            sys.stdout.flush()
        return super().process_message(message, cell, cell_index)


def read(path):
    """Return the notebook at `path`. UserError if it is none."""
    try:
        return nbformat.read(path, as_version=4)
    except Exception as error:  # a damaged file can fail in any way
        raise UserError(f"{path} is not a notebook ({error})") from error


def execute(path, notebook, folder):
    """Run the notebook, read from `path`, and write it, with its outputs, to `folder`; on an error write nothing."""
    print(f"\n=== {path}", flush=True)
    # Sockets instead of network ports, which the kernel would warn of; their paths must be short, whatever TMPDIR is.
    with TemporaryDirectory(dir="/tmp") as sockets:
        config = Config(KernelManager={"transport": "ipc", "ip": f"{sockets}/kernel"})
        settings = {"record_timing": False, "coalesce_streams": True, "store_widget_state": False}
        LiveClient(notebook, config=config, **settings).execute()
    notebook.metadata = {"kernelspec": notebook.metadata["kernelspec"], "language_info": {"name": "python"}}
    with atomic_path(folder / path.name) as partial:
        nbformat.write(notebook, partial)


def run(paths):
    """Run each notebook; what runs on less than the full MNIST goes to the preview folder, not over the original."""
    notebooks = {path: read(path) for path in map(Path, paths)}  # all of them, before any runs
    workspace = Workspace()
    for path, notebook in notebooks.items():
        try:
            execute(path, notebook, workspace.folder if workspace.note else path.parent)
        except (CellExecutionError, DeadKernelError) as error:
            sys.exit(f"{path} failed and is unchanged:\n{error}")
    where = workspace.folder.absolute() if workspace.note else "their places"
    print(f"\nNotebooks written to {where}, figures to {workspace.folder.absolute()}")
