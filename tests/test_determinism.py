"""The same seed gives the same bits and figures in two programs, with one thread and with two."""

import os
import subprocess
import sys
from pathlib import Path

PROGRAM = """
import hashlib
import torch
from vae import plotting, workspace
from vae.data import MNIST, Batches, binarize
from vae.models import VAE
from vae.networks import BernoulliDecoder, Encoder
from vae.training import fit

images = torch.rand(1000, 784, generator=torch.Generator().manual_seed(0))
workspace.load_mnist = lambda: MNIST(images, *[torch.zeros(1)] * 5)
for threads in (1, 2):
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    vae = VAE(Encoder(784, 2, [200]), BernoulliDecoder(2, 784, [200]))
    batches = Batches(images, 200, torch.Generator().manual_seed(0), binarize)
    history = fit(lambda x: -vae.elbo(x).mean(), vae, batches, epochs=2, lr=1e-3)
    bits = b"".join(p.detach().numpy().tobytes() for p in vae.parameters())
    with torch.no_grad():
        means = vae.decoder(plotting.latent_grid(4)).mean
    png = workspace.Workspace().save(plotting.image_grid(means, columns=4), "manifold.png")
    print("found", threads, history, *(hashlib.md5(part).hexdigest() for part in (bits, png)))
"""


def start(folder):
    """Start the program, which says what parameters, history and figure it found with one thread, then with two."""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent), "MPLBACKEND": "Agg"}
    environment.pop("VAE_SMOKE", None)
    command = [sys.executable, "-c", PROGRAM]
    return subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True)


def test_the_same_seed_gives_the_same_bits_and_the_same_figure(tmp_path):
    programs = [start(tmp_path) for _ in range(2)]
    first, second = ([line for line in p.communicate(timeout=300)[0].splitlines() if "found" in line] for p in programs)
    assert len(first) == 2
    assert first == second
