"""The page on which one draws a digit and sees what M2 believes: docs/src, with models and images inside it.

One file, which asks for nothing else. Its weights are whole numbers of 8 bits, with a scale for each output of a layer.
"""

import base64
import copy
import gzip
import hashlib
import json
from pathlib import Path

import torch

from experiments import unseen
from vae.checkpoint import atomic_path
from vae.datasets import load_fashion_mnist, load_mnist
from vae.evaluation import error_rate
from vae.saving import load_pretrained

SOURCE, PAGE, NUM_CODES, EXAMPLES_PER_DIGIT = Path("docs/src"), Path("docs/index.html"), 2000, 5
M2 = ("encoder", "decoder", "classifier")
PARTS = {"m1-2d": ("decoder",), "m2-100": M2, "m2-naive": M2, "m2-2d": ("decoder",)}  # what the page has of each model
READERS = ("m2-100", "m2-naive")  # those that read what is drawn
NEAR = 0.4  # how far around a digit its name looks for others, on the plane of codes


def quantized(weight):
    """Return whole numbers in −127…127 (out, in) and scales (out, 1), whose product is close to `weight`."""
    scale = weight.abs().amax(1, keepdim=True).clamp(min=1e-30) / 127
    return (weight / scale).round().to(torch.int8), scale


def linear_layers(network):
    """Return the linear layers of an MLP, from input to output."""
    return [layer for layer in (network.input, *network.hidden, network.output) if isinstance(layer, torch.nn.Linear)]


@torch.no_grad()
def as_in_page(name, model):
    """Return a copy of `model` with the page's 8-bit weights."""
    rounded = copy.deepcopy(model)
    for layer in (layer for part in PARTS[name] for layer in linear_layers(getattr(rounded, part).network)):
        layer.weight.copy_(torch.mul(*quantized(layer.weight)))
    return rounded


def pack(header, arrays):
    """Return a line of JSON and the arrays in gzip, which has a checksum, in base64."""
    content = json.dumps(header).encode() + b"\n" + b"".join(array.contiguous().numpy().tobytes() for array in arrays)
    return base64.b64encode(gzip.compress(content, mtime=0)).decode()


@torch.no_grad()
def pack_model(name, model):
    """Return what the page has of `model`; weights are transposed, (in, out)."""
    networks, arrays = [], []
    for part in PARTS[name]:
        network = getattr(model, part).network
        layers, embedding = linear_layers(network), network.label_embedding
        for layer in layers:
            whole, scale = quantized(layer.weight)
            arrays += [whole.T, scale, layer.bias]
        arrays += [embedding.weight] if embedding else []
        sizes = [layers[0].in_features, *(layer.out_features for layer in layers)]
        shape = {"sizes": sizes, "numClasses": embedding.num_embeddings if embedding else 0}
        networks.append({"part": part, "activation": type(network.hidden[0]).__name__, **shape})
    prior = model.label_prior.logits.tolist() if hasattr(model, "label_prior") else None
    z_dim = model.encoder.z_dim
    return pack({"networks": networks, "zDim": z_dim, "logLabelPrior": prior}, [*arrays, unseen.noise(z_dim)])


def name_places(codes, labels):
    """Return, for each digit, that one of its codes (N, 2) which has most of its own and fewest others near it."""
    near, same = torch.cdist(codes, codes) < NEAR, labels == labels.unsqueeze(1)  # (N, N)
    purity = (near & same).sum(1) - (near & ~same).sum(1)
    own = labels == torch.arange(10).unsqueeze(1)  # (10, N)
    return codes[purity.where(own, -len(codes)).argmax(1)]


@torch.no_grad()
def pack_images(m1, images, labels):
    """Return codes and labels of the first test images, and pixels of some: a 0, a 1, …, a 9, another 0, …"""
    codes, near = m1.encoder(images[:NUM_CODES]).mean, labels[:NUM_CODES]
    examples = torch.stack([images[labels == digit][:EXAMPLES_PER_DIGIT] for digit in range(10)], 1).flatten(0, 1)
    header = {"numCodes": len(codes), "numExamples": len(examples)}
    return pack(header, [codes, near.byte(), name_places(codes, near), (255 * examples).round().byte()])


def measure(models, mnist):
    """Return what the page says of its readers, {placeholder: text}: thresholds, errors, and rows of a table."""
    readers = {name: as_in_page(name, models[name]) for name in READERS}
    limits = {name: unseen.threshold(m2, mnist) for name, m2 in readers.items()}
    rows = []
    for kind, images in unseen.kinds(mnist, load_fashion_mnist()).items():
        counts = ((unseen.bounds(m2, images) < limits[name]).sum() for name, m2 in readers.items())
        rows.append(f'<tr><th scope="row">{kind}</th>' + "".join(f"<td>{n:,}</td>" for n in counts) + "</tr>")
    errors = {f"{name}-error": f"{error_rate(m2.classify, *mnist.part('test')):.1f}" for name, m2 in readers.items()}
    return {f"{name}-threshold": f"{limit:.1f}" for name, limit in limits.items()} | errors | {"kinds": "\n".join(rows)}


def write(path=PAGE):
    """Write the page, of the models that come with this package and MNIST's test images."""
    models, mnist = {name: load_pretrained(name) for name in PARTS}, load_mnist()
    blocks = {"images": pack_images(models["m1-2d"], *mnist.part("test"))}
    blocks |= {name: pack_model(name, models[name]) for name in PARTS}
    html, css, js = ((SOURCE / f"page.{kind}").read_text("utf-8") for kind in ("html", "css", "js"))
    html = html.format(**measure(models, mnist))
    for kind, text in (("style", css), ("script", js)):  # the policy: nothing else may run, nothing may be asked for
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        html = html.replace(f"{kind}-src 'self'", f"{kind}-src 'sha256-{digest}'")
    scripts = [f"<script>{js}</script>"]
    scripts += [f'<script type="text/plain" id="{name}">{block}</script>' for name, block in blocks.items()]
    html = html.replace('<link rel="stylesheet" href="page.css">', f"<style>{css}</style>")
    with atomic_path(path) as partial:
        partial.write_text(html.replace('<script src="page.js"></script>', "\n".join(scripts)), "utf-8")
