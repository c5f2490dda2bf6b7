"""The page in a headless Chromium, beside PyTorch with the page's 8-bit weights: `make browser-test`."""

import base64
import gzip
import json
import re
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from torch import nn

from experiments import page
from vae import BernoulliDecoder, Classifier, Encoder, SemiSupervisedVAE, load_mnist, load_pretrained
from vae.networks import MLP

pytestmark = pytest.mark.browser
ALL_LABELS = torch.arange(10).unsqueeze(1)  # (K, 1)
LEFT, UP = "\ue012", "\ue013"
ONE = [(142, 60), (138, 140), (134, 220)]  # strokes on a canvas of 280 × 280
SEVEN = [(75, 70), (120, 68), (200, 64), (185, 100), (160, 150), (145, 185), (130, 225)]
ZIGZAG = [(x, y) for i, y in enumerate(range(8, 280, 16)) for x in ((5, 275) if i % 2 else (275, 5))]
DAMAGED = "This file is damaged: fetch it again."
IMAGE = "new Promise((done) => Object.assign(new Image(), { onload: done, onerror: () => done(0), src: '/spy' }))"


@pytest.fixture(scope="module")
def models():
    return {name: load_pretrained(name) for name in page.PARTS} | {"smooth": smooth_m2()}


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


def smooth_m2():
    """Return an M2 of another architecture than those of the page."""
    network, hidden = partial(MLP, activation=nn.SiLU), (30, 20, 10)
    encoder = Encoder((1, 28, 28), 4, hidden, 10, network)
    decoder = BernoulliDecoder(4, (1, 28, 28), hidden, 10, network)
    prior = torch.arange(1.0, 11.0)
    return SemiSupervisedVAE(encoder, decoder, Classifier((1, 28, 28), 10, hidden, network), prior / prior.sum())


@pytest.mark.parametrize("name", ["m2-100", "m2-naive", "smooth"])
@torch.no_grad()
def test_beliefs_are_those_of_pytorch(opened, models, held_out, name):
    x, m2 = held_out[0][:100], page.dequantized("m2-100", models[name])
    block = json.dumps({"id": "tried", "textContent": page.pack_model("m2-100", models[name])})
    opened.run(f"void document.body.append(Object.assign(document.createElement('div'), {block}))")
    plain = "(b) => ({ ...b, pictures: b.pictures.map((p) => Array.from(p)) })"
    believe = f"(m2) => images.map((x) => beliefs(m2, x, seededNoise(m2.zDim))).map({plain})"
    found = opened.run(f"loadModel('tried').then({believe})", x)
    noise = torch.tensor(opened.run("Array.from(seededNoise(50))"))
    bounds = m2.elbo_given_noise(x, ALL_LABELS, noise[: m2.encoder.z_dim].expand(100, -1)).T  # (B, K)
    probs, entropy = m2.label_posterior(x).probs, m2.label_posterior(x).entropy()
    expected = {"probs": probs, "bounds": bounds, "entropy": entropy, "bound": (probs * bounds).sum(1) + entropy}
    for key, values in expected.items():
        assert_near([b[key] for b in found], values, rtol=1e-3 if "bound" in key else 0)
    pictures = m2.decoder(m2.encoder(x, m2.classify(x)).mean, ALL_LABELS).mean.flatten(2)  # (K, B, 784)
    assert_near([b["pictures"] for b in found], pictures.transpose(0, 1))
    assert noise.mean().abs() < 0.4 and 0.7 < noise.std() < 1.3


@pytest.mark.parametrize("name, y", [("m1-2d", None), ("m2-2d", 3)])
@torch.no_grad()
def test_decoded_pixels_are_those_of_pytorch(opened, models, name, y):
    z, label = torch.randn(100, 2), "undefined" if y is None else y
    decode = f"(z) => Array.from(decoder(model, Float32Array.from(z), {label}).mean)"
    found = opened.run(f"loadModel('{name}').then((model) => {z.tolist()}.map({decode}))")
    labels = None if y is None else torch.full((100,), y)
    assert_near(found, page.dequantized(name, models[name]).decoder(z, labels).mean.flatten(1))


def test_drawings_are_prepared_as_mnist_was(opened, held_out):
    images = held_out[0][:100].flatten(1)
    tenfold = "new Float32Array(78400).map((_, i) => x[28 * Math.floor(i / 2800) + Math.floor((i % 280) / 10)])"
    found = opened.run(f"images.map((x) => Array.from(prepare({tenfold}, 280)))", images)
    assert ((torch.tensor(found) - images).abs().amax(1) < 1e-5).float().mean() > 0.9


@torch.no_grad()
def test_numbers_shown_are_those_of_pytorch(opened, models, held_out):
    images, labels = held_out
    x = images[labels == 3][:1]
    opened.find("[aria-label='A test image of a 3']").click()
    noise = torch.tensor([opened.run("Array.from(seededNoise(50))")])
    for choice, name in (("naive", "m2-naive"), ("cured", "m2-100")):
        opened.find(f"input[value={choice}] + span").click()
        m2 = page.dequantized(name, models[name])
        posterior, bounds = m2.label_posterior(x), m2.elbo_given_noise(x, ALL_LABELS, noise)[:, 0]
        _, probs, shown = opened.numbers("#beliefs").view(10, 3).T
        assert_near(probs, 100 * posterior.probs[0], atol=0.06)
        assert_near(shown, bounds, atol=0.1)
        assert_near(opened.numbers("#bound"), posterior.probs @ bounds + posterior.entropy(), atol=0.1)


def test_drawn_digits_are_read(opened):
    assert opened.text("#answer").startswith("Nothing is drawn yet") and opened.text("#hint") == "Draw a digit here"
    assert opened.draw(ONE).startswith("M2 reads a 1") and not opened.find("#hint").is_displayed()
    opened.find("#clear").click()
    assert opened.text("#answer").startswith("Nothing is drawn yet")
    assert opened.draw(SEVEN).startswith("M2 reads a 7")
    assert opened.draw(ZIGZAG).startswith("Too much ink")


@pytest.mark.parametrize("plane, pictures", [("#plane", "#decoded"), ("#style-plane", "#flat canvas")])
def test_arrow_keys_move_the_planes(opened, plane, pictures):
    seen, readout = [], "#" + opened.find(plane).get_attribute("aria-describedby")
    for keys in ("", 9 * LEFT, 9 * UP):
        opened.find(plane).send_keys(keys)
        images = opened.run(f"Array.from(document.querySelectorAll('{pictures}'), (canvas) => canvas.toDataURL())")
        seen.append((images, opened.numbers(readout)[:2]))
    (images, start), (left, _), (up, end) = seen
    assert all(len({*three}) == 3 for three in zip(images, left, up, strict=True))
    assert len({*up}) == len(up)
    assert_near(end - start, torch.tensor([-0.9, 0.9]), atol=0.11)


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


@pytest.mark.parametrize("share, said", [(0.9, DAMAGED), (0.3, DAMAGED), (0.003, "If this sentence stays")])
def test_file_cut_short_is_told(browser, path, tmp_path, share, said):
    from selenium.webdriver.support.ui import WebDriverWait

    cut, content = tmp_path / "cut.html", path.read_bytes()
    cut.write_bytes(content[: int(share * len(content))])
    browser.get(cut.as_uri())
    assert WebDriverWait(browser, 30).until(lambda browser: said in browser.find_element("id", "notice").text)


@pytest.mark.parametrize("lacking", ["HTMLCanvasElement.prototype.getContext", "window.DecompressionStream"])
def test_old_browsers_are_told(browser, path, lacking):
    from tests.browser import Page

    script = browser.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": f"{lacking} = undefined"})
    said = Page(browser, path.as_uri()).text("#notice")
    browser.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", script)
    assert said.startswith("This browser")


def test_committed_page_is_made_of_these_weights(models):
    committed = page.PAGE.read_text("utf-8")
    assert (page.SOURCE / "page.js").read_text("utf-8") in committed and len(committed) < 6e6
    for name in page.PARTS:
        blocks = re.search(f'id="{name}">([^<]*)<', committed)[1], page.pack_model(name, models[name])
        assert len({gzip.decompress(base64.b64decode(block)) for block in blocks}) == 1
