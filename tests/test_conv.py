"""Convolutional networks: any image, any number of labels, and the same sums over labels as with any other network."""

import math
from functools import partial

import pytest
import torch
from torch.testing import assert_close

from vae import objectives
from vae.conv import ConvNet, DeconvNet
from vae.data import SemiSupervisedBatches
from vae.evaluation import error_rate
from vae.marginalization import marginalize, marginalize_loop, marginalize_topk
from vae.models import VAE, SemiSupervisedVAE
from vae.networks import MLP, BernoulliDecoder, Classifier, Encoder
from vae.training import fit

conv, deconv = partial(ConvNet, channels=(6, 8)), partial(DeconvNet, channels=(8, 6))


def m2(x_shape, num_classes, conv=conv, deconv=deconv):
    encoder = Encoder(x_shape, 2, [8], num_classes, network=conv)
    decoder = BernoulliDecoder(2, x_shape, [8], num_classes, network=deconv)
    return SemiSupervisedVAE(encoder, decoder, Classifier(x_shape, num_classes, [8], network=conv))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("x_shape", [(3, 32, 32), (1, 29, 27), (3, 8, 5), (2, 1, 6)])
def test_images_of_any_size_come_back_in_shape_and_learn_from_all_parameters(x_shape, dtype):
    model, x = m2(x_shape, 4).to(dtype), torch.rand(5, *x_shape, dtype=dtype)
    assert model.reconstruct(x).shape == model.sample(5).shape == x.shape
    bound = model.unlabeled_elbo(x)
    assert (bound.shape, bound.dtype) == ((5,), dtype)
    bound.sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name


def test_another_number_of_layers_is_another_number_of_halvings():
    encode, decode = ConvNet((3, 20, 9), [8], 2, channels=(2, 3, 4)), DeconvNet(2, [8], (3, 20, 9), channels=(4, 3, 2))
    assert (encode.in_shape, decode.out_shape) == ((4, 3, 2), (4, 3, 2))
    assert decode(encode(torch.rand(7, 6, 3, 20, 9))).shape == (7, 6, 3, 20, 9)


@pytest.mark.parametrize("network", [MLP, conv, deconv])
def test_labels_pair_with_images_one_by_one_all_with_each_or_some_with_each(network):
    sizes, x = ((3, 8, 5), [8], 2), torch.rand(6, 3, 8, 5)
    if network is deconv:
        sizes, x = (2, [8], (3, 8, 5)), torch.randn(6, 2)
    network = network(*sizes, num_classes=4)
    each = torch.stack([network(x, torch.full((6,), k)) for k in range(4)])  # (4, 6, …)
    assert_close(network(x, torch.arange(4).unsqueeze(1)), each)
    y = torch.randint(4, (2, 6))
    assert_close(network(x, y), each[y, torch.arange(6)])
    with torch.autocast("cpu", torch.bfloat16):
        assert network(x, y).dtype == torch.float32  # densities need it
    assert (each[0] - each[1]).abs().amax(tuple(range(1, each.dim() - 1))).min() > 1e-4  # every label counts


@pytest.mark.parametrize("num_classes", [2, 100])
def test_convolutions_run_once_per_image_whatever_the_number_of_labels(num_classes):
    model, seen = m2((3, 8, 8), num_classes), []
    hook = model.encoder.network.convolutions[0].register_forward_hook(
        lambda _, inputs, output: seen.append(len(output))
    )
    model.unlabeled_elbo(torch.rand(5, 3, 8, 8))
    hook.remove()
    assert seen == [5]


def test_a_hundred_classes_of_color_images_have_one_bound_by_every_sum_with_its_gradient():
    thin = partial(ConvNet, channels=(2, 2)), partial(DeconvNet, channels=(2, 2))
    model, x = m2((3, 32, 32), 100, *thin).double(), torch.rand(2, 3, 32, 32, dtype=torch.float64)
    sums = marginalize_loop, partial(marginalize, chunk_size=30), partial(marginalize_topk, k=99)
    results = []
    for method in (marginalize, *sums):
        torch.manual_seed(1)
        values = model.unlabeled_elbo(x, method)
        results.append((values, *torch.autograd.grad((values * torch.tensor([1, 2])).sum(), list(model.parameters()))))
    for result in results[1:]:
        assert_close(result, results[0])


def test_the_importance_weighted_bound_of_images_is_made_of_single_samples():
    vae = VAE(Encoder((3, 9, 8), 2, [8], network=conv), BernoulliDecoder(2, (3, 9, 8), [8], network=deconv)).double()
    x, drawn = torch.rand(5, 3, 9, 8, dtype=torch.float64), []
    vae.decoder.register_forward_hook(lambda _, inputs, likelihood: drawn.extend(inputs))
    value, posterior = vae.importance_weighted_bound(x, 4), vae.encoder(x)
    (z,) = drawn.copy()  # (4, 5, 2)
    one_by_one = [
        objectives.importance_weighted_bound(x, sample, posterior, vae.decoder(sample), vae.prior)
        for sample in z.split(1)
    ]
    assert value.shape == (5,)
    assert_close(value, torch.stack(one_by_one).logsumexp(0) - math.log(4))


def test_a_small_m2_learns_to_tell_two_classes_of_color_images_apart_and_to_draw_them():
    """A bright left or right half in some color: 8 images have a label, 64 have none."""

    def draw(num):
        y = torch.arange(num) % 2
        bright = torch.arange(32).ge(16) == y.view(num, 1, 1, 1)  # the right half for 1
        return bright * (0.4 + 0.5 * torch.rand(num, 3, 1, 1)) + 0.1 * torch.rand(num, 3, 32, 32), y

    model, (x, y), (unseen, labels) = m2((3, 32, 32), 2), draw(72), draw(200)
    batches = SemiSupervisedBatches(x[:8], y[:8], x[8:], 8, 16, torch.Generator().manual_seed(0))

    def loss(batch):
        x, y, x_unlabeled = batch
        sizes = {"num_labeled": batches.num_labeled, "num_unlabeled": batches.num_unlabeled}
        log_q = model.label_posterior(x).log_prob(y)
        bounds = model.labeled_elbo(x, y), model.unlabeled_elbo(x_unlabeled)
        return -objectives.m2_objective(*bounds, log_q, alpha=72 * 3 * 32 * 32 / 10, **sizes)

    fit(loss, model, batches, epochs=12, lr=1e-2)
    assert error_rate(model.classify, unseen, labels) < 2
    with torch.no_grad():
        left, right = model.sample(50, labels[:50], mean=True).chunk(2, dim=-1)
    drawn = (left.mean((1, 2, 3)) < right.mean((1, 2, 3))).long()
    assert (drawn == labels[:50]).float().mean() > 0.85
