"""The sum over labels, vectorized and looped, against brute force."""

from functools import partial
from itertools import product

import pytest
import torch
from test_networks import DECODERS
from torch import nn
from torch.distributions import Categorical
from torch.nn.functional import logsigmoid
from torch.testing import assert_close

from vae.conv import DeconvNet
from vae.marginalization import marginalize, marginalize_loop, marginalize_topk
from vae.models import SemiSupervisedVAE
from vae.networks import MLP, BernoulliDecoder, Classifier, Encoder


def test_in_chunks_never_more_labels_at_a_time():
    seen = []

    def bound(y):
        seen.append(len(y))
        return (parameter * y).expand(-1, 5)

    parameter = torch.tensor(2.0, requires_grad=True)
    marginalize(bound, Categorical(torch.rand(5, 8)), chunk_size=3).sum().backward()
    assert seen[:3] == [3, 3, 2]  # and again, to compute the gradient
    assert sorted(seen[3:]) == [2, 3, 3]


def brute_force(model, x, noise):
    """−U(x) image by image and label by label: each image is alone, with one label."""
    values = []
    for row, of_row in zip(x.split(1), noise.split(1), strict=True):
        q = model.classifier(row).probs[0]
        bounds = torch.cat([model.elbo_given_noise(row, torch.tensor([k]), of_row) for k in range(len(q))])
        values.append((q * (bounds - q.log())).sum())
    return torch.stack(values)


@pytest.mark.parametrize(
    ("x_shape", "network", "num_classes"),
    [((6,), MLP, 7), ((2, 1, 3), MLP, 2), ((2, 5, 4), partial(DeconvNet, channels=(4, 3)), 3)],
    ids=["vector", "image", "convolutions"],
)
@pytest.mark.parametrize("decoder", DECODERS.values(), ids=DECODERS)
def test_unlabeled_elbo_and_its_gradients_equal_brute_force(decoder, x_shape, network, num_classes):
    """In training, for every decoder and every sum: no image's bound depends on the others in its batch."""
    encoder, classifier = Encoder(x_shape, 2, [8], num_classes), Classifier(x_shape, num_classes, [8])
    m2 = SemiSupervisedVAE(encoder, decoder(2, x_shape, [8], num_classes, network=network), classifier)
    m2.double().train()
    x, noise, weight = (torch.rand(4, *shape, dtype=torch.float64) for shape in (x_shape, (2,), ()))
    m2.noise = lambda x: noise

    def with_gradients(values):
        return values, *torch.autograd.grad((weight * values).sum(), list(m2.parameters()))

    expected = with_gradients(brute_force(m2, x, noise))
    in_chunks, topk = partial(marginalize, chunk_size=2), partial(marginalize_topk, k=num_classes - 1)
    for method in (marginalize, marginalize_loop, in_chunks, topk):
        assert_close(with_gradients(m2.unlabeled_elbo(x, method)), expected)


@pytest.mark.parametrize("method", [marginalize, marginalize_loop, partial(marginalize, chunk_size=3)])
def test_unlabeled_elbo_is_log_px_in_a_model_that_can_be_enumerated(method):
    """Images of 3 pixels that depend on the label alone, q(z|x, y) = p(z) and q(y|x) = p(y|x): the bound is tight."""
    m2 = SemiSupervisedVAE(Encoder(3, 2, [8], 4), BernoulliDecoder(2, 3, [8], 4), Classifier(3, 4, [8]))
    network = m2.decoder.network
    for silenced in (*m2.encoder.network.output.parameters(), network.input.weight):
        nn.init.zeros_(silenced)
    nn.init.normal_(network.label_embedding.weight, std=3)
    x = torch.tensor(list(product([0.0, 1.0], repeat=3)))  # all 8 images
    logits = network.output(network.hidden(network.input.bias + network.label_embedding.weight))  # (4, 3)
    log_joint = torch.stack([logsigmoid((2 * x - 1) * row).sum(1) for row in logits], 1) - torch.tensor(4.0).log()
    m2.classifier.forward = lambda x: Categorical(logits=log_joint)
    values = m2.unlabeled_elbo(x, method)
    assert_close(values, log_joint.logsumexp(1))
    assert_close(values.exp().sum(), torch.tensor(1.0))


def value_and_gradients(method, logits, weights):
    """Of Σ_y q(y) weights_y², one row at a time: the sum, and its gradients in the logits and in the weights."""
    leaves = [t.clone().requires_grad_() for t in (logits, weights)]
    value = method(lambda y: (leaves[1].gather(1, y.T) ** 2).T, Categorical(logits=leaves[0]))
    return value.detach().unsqueeze(1), *torch.autograd.grad(value.sum(), leaves)


@pytest.mark.parametrize("k", [1, 2, 4])
def test_topk_is_unbiased_in_value_and_gradient(k):
    """200,000 draws average to the exact sum, within 5 standard errors; with k = K − 1 nothing is left to chance."""
    logits, weights = torch.randn(2, 1, 5, dtype=torch.float64) * 2
    exact = value_and_gradients(marginalize, logits, weights)
    draws = value_and_gradients(partial(marginalize_topk, k=k), logits.expand(200_000, 5), weights.expand(200_000, 5))
    for reference, values in zip(exact, draws, strict=True):
        standard_error = values.std(0) / len(values) ** 0.5
        assert ((values.mean(0) - reference[0]).abs() <= 5 * standard_error + 1e-9).all()
        if k == 4:
            assert_close(values, reference.expand_as(values))
        else:
            assert values.std(0).max() > 1e-3  # it is an estimate: the test would not pass by mistake of the exact sum


def test_topk_sums_the_most_probable_labels():
    """So it is exact for bounds that are 0 at all other labels, whichever of those is drawn."""
    q = Categorical(logits=torch.randn(1000, 6))
    bounds = torch.zeros(1000, 6).scatter(1, q.logits.topk(2).indices, torch.randn(1000, 2))
    value = marginalize_topk(lambda y: bounds.gather(1, y.T).T, q, 2)
    assert_close(value, (q.probs * bounds).sum(1))


@pytest.mark.parametrize("k", [0, 5, -1])
def test_topk_needs_a_label_to_sum_and_one_to_draw(k):
    with pytest.raises(ValueError, match="1…4"):
        marginalize_topk(lambda y: y.float(), Categorical(torch.rand(3, 5)), k)


@pytest.mark.parametrize("method", [marginalize, marginalize_loop, partial(marginalize_topk, k=2)])
def test_a_sure_classifier_makes_no_denormal_gradients(method):
    """They would slow a CPU down tenfold; the value is that of the most probable label all the same."""
    logits, scale = torch.tensor([[0.0, -90.0, -95.0, -100.0]]).expand(6, 4), torch.ones(6)
    columns = torch.randn(4, requires_grad=True)
    value = method(lambda y: columns[y] * scale, Categorical(logits=logits))
    (gradient,) = torch.autograd.grad(value.sum(), columns)
    assert_close(value, columns[0].expand(6))
    assert gradient[0] == 6
    assert gradient[gradient != 0].abs().min() > 1e-30
