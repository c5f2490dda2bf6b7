"""The page in a headless Chromium, beside PyTorch with the page's 8-bit weights: `make browser-test`."""

import base64
import copy
import gzip
import json
import re
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch

from experiments import page
from vae import load_mnist, load_pretrained

pytestmark = pytest.mark.browser
ALL_LABELS = torch.arange(10).unsqueeze(1)  # (K, 1)
ONE = [(142, 60), (138, 140), (134, 220)]  # strokes on a canvas of 280 × 280
SEVEN = [(75, 70), (120, 68), (200, 64), (185, 100), (160, 150), (145, 185), (130, 225)]
ZIGZAG = [(x, y) for i, y in enumerate(range(8, 280, 16)) for x in ((5, 275) if i % 2 else (275, 5))]
IMAGE = "new Promise((done) => Object.assign(new Image(), { onload: done, onerror: () => done(0), src: '/spy' }))"


@pytest.fixture(scope="module")
def models():
    return {name: load_pretrained(name) for name in page.PARTS}


@pytest.fixture(scope="module")
def held_out():
    return load_mnist().part("test")


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("docs") / "index.html"
    page.write(path)
    return path


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    from tests.browser import launch  # selenium is there for these tests alone

    with launch(tmp_path_factory.mktemp("profile")) as driver:
        yield driver


@pytest.fixture
def opened(browser, path):
    from tests.browser import Page

    return Page(browser, path.as_uri())


def assert_near(found, expected, rtol=0.0, atol=1e-3):
    torch.testing.assert_close(torch.as_tensor(found), expected, rtol=rtol, atol=atol)


@pytest.mark.parametrize("name", ["m2-100", "m2-naive"])
@torch.no_grad()
def test_beliefs_are_those_of_pytorch(opened, models, held_out, name):
    x, m2 = held_out[0][:100], copy.deepcopy(models[name])
    for layer in (layer for part in page.M2 for layer in page.linear_layers(getattr(m2, part).network)):
        layer.weight.copy_(torch.mul(*page.quantized(layer.weight)))
    plain = "(b) => ({ ...b, pictures: b.pictures.map((p) => Array.from(p)) })"
    believe = f"(m2) => images.map((x) => beliefs(m2, x, seededNoise(m2.zDim))).map({plain})"
    found = opened.run(f"loadModel('{name}').then({believe})", x)
    noise = torch.tensor(opened.run("Array.from(seededNoise(50))"))
    bounds = m2.elbo_given_noise(x, ALL_LABELS, noise[: m2.encoder.z_dim].expand(100, -1)).T  # (B, K)
    probs, entropy = m2.label_posterior(x).probs, m2.label_posterior(x).entropy()
    expected = {"probs": probs, "bounds": bounds, "entropy": entropy, "bound": (probs * bounds).sum(1) + entropy}
    for key, values in expected.items():
        assert_near([b[key] for b in found], values, rtol=1e-3 if "bound" in key else 0)
    pictures = m2.decoder(m2.encoder(x, m2.classify(x)).mean, ALL_LABELS).mean.flatten(2)  # (K, B, 784)
    assert_near([b["pictures"] for b in found], pictures.transpose(0, 1))
    assert noise.mean().abs() < 0.4 and 0.7 < noise.std() < 1.3


def test_drawings_are_prepared_as_mnist_was(opened, held_out):
    images = held_out[0][:100].flatten(1)
    tenfold = "new Float32Array(78400).map((_, i) => x[28 * Math.floor(i / 2800) + Math.floor((i % 280) / 10)])"
    found = opened.run(f"images.map((x) => Array.from(prepare({tenfold}, 280)))", images)
    assert ((torch.tensor(found) - images).abs().amax(1) < 1e-5).float().mean() > 0.9


def test_drawn_digits_are_read(opened):
    assert opened.text("#answer").startswith("Nothing is drawn yet") and opened.text("#hint") == "Draw a digit here"
    assert opened.draw(ONE).startswith("M2 reads a 1") and not opened.find("#hint").is_displayed()
    opened.find("#clear").click()
    assert opened.text("#answer").startswith("Nothing is drawn yet")
    assert opened.draw(SEVEN).startswith("M2 reads a 7")
    assert opened.draw(ZIGZAG).startswith("Too much ink")


def test_page_asks_for_nothing(browser, path):
    from tests.browser import Page

    asked = []
    handler = type("Handler", (SimpleHTTPRequestHandler,), {"log_request": lambda self, *_: asked.append(self.path)})
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=path.parent)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        served = Page(browser, f"http://127.0.0.1:{server.server_port}/index.html")
        assert served.draw(SEVEN).startswith("M2 reads")
        events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
        assert served.run("fetch('/spy').catch(() => 0)") == served.run(IMAGE) == 0  # the policy forbids both
        server.shutdown()
    sent = {e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"}
    assert asked == ["/index.html"] and sent - {"data:,"} == {browser.current_url}


def test_committed_page_is_made_of_these_weights(models):
    committed = page.PAGE.read_text("utf-8")
    assert (page.SOURCE / "page.js").read_text("utf-8") in committed and len(committed) < 6e6
    for name in page.PARTS:
        blocks = re.search(f'id="{name}">([^<]*)<', committed)[1], page.pack_model(name, models[name])
        assert len({gzip.decompress(base64.b64decode(block)) for block in blocks}) == 1
