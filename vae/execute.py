"""Run notebooks top to bottom with live output, and rewrite them when they succeed: python -m vae.execute NOTEBOOK…"""

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError
from nbformat.reader import NotJSONError
from traitlets.config import Config

from vae.files import atomic_path
from vae.workspace import Workspace

WIDGET = "application/vnd.jupyter.widget-view+json"


class LiveClient(NotebookClient):
    """A notebook client that also prints what cells print, while they run."""

    def process_message(self, message, cell, cell_index):
        """Echo text output, then do as any client does."""
        if message["msg_type"] == "stream":
            sys.stdout.write(message["content"]["text"])
            sys.stdout.flush()
        return super().process_message(message, cell, cell_index)


def execute(path, folder):
    """Run the notebook at `path` and write it, with its outputs, to `folder`; on an error nothing is written."""
    print(f"\n=== {path}", flush=True)
    notebook = nbformat.read(path, as_version=4)
    with TemporaryDirectory() as sockets:  # instead of network ports, which the kernel would warn of
        config = Config(KernelManager={"transport": "ipc", "ip": f"{sockets}/kernel"})
        settings = {"record_timing": False, "coalesce_streams": True, "store_widget_state": False}
        LiveClient(notebook, config=config, **settings).execute()
    for output in (output for cell in notebook.cells for output in cell.get("outputs", ())):
        output.get("data", {}).pop(WIDGET, None)  # it needs this kernel; the text beside it stays
    notebook.metadata = {"kernelspec": notebook.metadata["kernelspec"], "language_info": {"name": "python"}}
    with atomic_path(folder / path.name) as partial:
        nbformat.write(notebook, partial)


def main(paths):
    """Run each notebook; what runs on less than the full MNIST goes to the preview folder, not over the original."""
    workspace = Workspace()
    folder = workspace.folder if workspace.note else Path()
    for path in map(Path, paths):
        try:
            execute(path, folder)
        except (CellExecutionError, DeadKernelError, NotJSONError) as error:
            sys.exit(f"{path} failed and is unchanged:\n{error}")
    print(f"\nNotebooks written to {folder.absolute()}, figures to {workspace.folder.absolute()}")


if __name__ == "__main__":
    main(sys.argv[1:])
