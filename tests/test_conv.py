"""Convolutional networks: any image, any number of labels. M2 with them learns in `examples/`."""

from functools import partial

import pytest
import torch
from torch.testing import assert_close

from vae.conv import ConvNet, DeconvNet
from vae.models import SemiSupervisedVAE
from vae.networks import MLP, BernoulliDecoder, Classifier, Encoder

conv, deconv = partial(ConvNet, channels=(6, 8)), partial(DeconvNet, channels=(8, 6))


def m2(x_shape, num_classes):
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


def test_another_number_of_layers_is_another_number_of_halvings_and_leading_dimensions_stay_apart():
    encode = ConvNet((3, 20, 9), [8], 2, channels=(6, 7, 8))
    decode = DeconvNet(2, [8], (3, 20, 9), channels=(8, 7, 6))
    assert (encode.in_shape, decode.out_shape) == ((8, 3, 2), (8, 3, 2))
    images, codes = torch.rand(7, 6, 3, 20, 9), torch.randn(7, 6, 2)
    for network, rows, out_shape in ((encode, images, (2,)), (decode, codes, (3, 20, 9))):
        each = torch.stack([network(row) for row in rows.flatten(0, 1)])
        assert_close(network(rows), each.view(7, 6, *out_shape), rtol=1e-5, atol=1e-6)
        assert each.std(0).max() > 1e-3  # they differ


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
    first = model.encoder.network.convolutions[0]
    first.register_forward_hook(lambda layer, x, output: seen.append(len(output)))
    model.unlabeled_elbo(torch.rand(5, 3, 8, 8))
    assert seen == [5]
