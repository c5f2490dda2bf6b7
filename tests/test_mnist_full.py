"""The real MNIST: run by `pytest -m full_mnist` where the four files are."""

import pytest
import torch

from vae.data import Batches, binarize, load_mnist
from vae.models import VAE
from vae.networks import BernoulliDecoder, Encoder
from vae.training import evaluate_mean, fit

pytestmark = pytest.mark.full_mnist


@pytest.fixture(scope="module")
def mnist():
    return load_mnist()


def test_the_files_hold_the_mnist_that_everyone_knows(mnist):
    assert [len(mnist.train_images), len(mnist.valid_images), len(mnist.test_images)] == [50_000, 10_000, 10_000]
    labels = torch.cat([mnist.train_labels, mnist.valid_labels])
    assert torch.bincount(labels).tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert mnist.test_labels[0] == 7
    mean = torch.cat([mnist.train_images, mnist.valid_images]).mean().item()
    assert mean == pytest.approx(0.1307, abs=5e-5)  # the constant of every normalisation, to its four digits
    assert mnist.complete


def test_a_small_vae_learns_mnist_in_three_epochs(mnist):
    model = VAE(Encoder(784, 2, [200, 200]), BernoulliDecoder(2, 784, [200, 200]))
    generator = torch.Generator().manual_seed(0)
    valid = binarize(mnist.valid_images, generator)
    batches = Batches(mnist.train_images, 200, generator, transform=binarize)
    fit(lambda x: -model.elbo(x).mean(), model, batches, epochs=3, lr=2e-3)
    elbo = evaluate_mean(model.elbo, valid)
    assert -170 < elbo < -130  # nats; two latents cannot do much better however long they train
