"""The sum over labels, vectorised and looped, against brute force."""

from functools import partial
from itertools import product

import pytest
import torch
from torch import nn
from torch.distributions import Categorical
from torch.nn.functional import logsigmoid
from torch.testing import assert_close

from vae.marginalization import marginalize, marginalize_loop, marginalize_topk
from vae.models import SemiSupervisedVAE
from vae.networks import BernoulliDecoder, Classifier, Encoder

exact = pytest.mark.parametrize("method", [marginalize, marginalize_loop, partial(marginalize, chunk_size=3)])


@exact
@pytest.mark.parametrize("num_classes", [2, 3, 10, 20])
def test_sum_over_labels_equals_brute_force(method, num_classes):
    probs, bounds = torch.rand(5, num_classes).softmax(1), torch.randn(5, num_classes)
    value = method(lambda y: bounds[torch.arange(5), y], Categorical(probs))
    brute = [sum(probs[b, k].item() * bounds[b, k].item() for k in range(num_classes)) for b in range(5)]
    assert_close(value, torch.tensor(brute))


def test_in_chunks_never_more_labels_at_a_time():
    seen = []

    def bound(y):
        seen.append(len(y))
        return (parameter * y).expand(-1, 5)

    parameter = torch.tensor(2.0, requires_grad=True)
    marginalize(bound, Categorical(torch.rand(5, 8)), chunk_size=3).sum().backward()
    assert seen[:3] == [3, 3, 2]  # and again, to compute the gradient
    assert sorted(seen[3:]) == [2, 3, 3]


def model(num_classes):
    return SemiSupervisedVAE(
        Encoder(6, 2, [8], num_classes), BernoulliDecoder(2, 6, [8], num_classes), Classifier(6, num_classes, [8])
    )


def brute_force(model, x, num_classes):
    """−U(x) image by image and label by label, from `labeled_elbo` with the noise that `unlabeled_elbo` draws."""
    values = []
    for b in range(len(x)):
        q = model.classifier(x).probs[b]
        for k in range(num_classes):
            torch.manual_seed(5)
            bound = model.labeled_elbo(x, torch.full((len(x),), k))[b]
            values.append(q[k] * (bound - q[k].log()))
    return torch.stack(values).view(len(x), num_classes).sum(1)


def gradients(model, values):
    return torch.autograd.grad(values.sum(), list(model.parameters()))


@exact
@pytest.mark.parametrize("num_classes", [2, 7])
def test_unlabeled_elbo_and_its_gradients_equal_brute_force(method, num_classes):
    m2, x = model(num_classes), torch.rand(4, 6).bernoulli()
    expected = brute_force(m2, x, num_classes)
    torch.manual_seed(5)
    values = m2.unlabeled_elbo(x, method)
    assert_close(values, expected)
    for gradient, reference in zip(gradients(m2, values), gradients(m2, expected), strict=True):
        assert_close(gradient, reference)


@exact
def test_unlabeled_elbo_is_log_px_in_a_model_that_can_be_enumerated(method):
    """Images of 3 pixels that depend on the label alone, q(z|x, y) = p(z) and q(y|x) = p(y|x): the bound is tight."""
    m2 = model(4)
    m2.encoder, m2.decoder = Encoder(3, 2, [8], 4), BernoulliDecoder(2, 3, [8], 4)
    for silenced in (*m2.encoder.network.rest.parameters(), m2.decoder.network.first.weight):
        nn.init.zeros_(silenced)
    nn.init.normal_(m2.decoder.network.label_column.weight, std=3)
    x = torch.tensor(list(product([0.0, 1.0], repeat=3)))  # all 8 images
    network = m2.decoder.network
    logits = network.rest(network.first.bias + network.label_column.weight)  # (4, 3)
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


@pytest.mark.parametrize("num_classes", [2, 7])
def test_topk_of_all_labels_but_one_is_the_exact_unlabeled_elbo(num_classes):
    m2, x = model(num_classes), torch.rand(4, 6).bernoulli()
    results = []
    for method in (marginalize, partial(marginalize_topk, k=num_classes - 1)):
        torch.manual_seed(5)
        values = m2.unlabeled_elbo(x, method)
        results.append((values, *gradients(m2, values)))
    for exact, estimate in zip(*results, strict=True):
        assert_close(estimate, exact)


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


@pytest.mark.parametrize("method", [marginalize, marginalize_loop, partial(marginalize_topk, k=2)])
def test_labels_are_where_the_classifier_is(method):
    def bound(labels):
        assert labels.device.type == "meta"
        return torch.zeros((*labels.shape[:-1], 6), device="meta")

    method(bound, Categorical(logits=torch.zeros(6, 4, device="meta"), validate_args=False))
