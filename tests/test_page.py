"""The page in a headless Chromium, beside PyTorch with the page's 8-bit weights: `make browser-test`."""

import json
import re
import threading
import time
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from PIL import Image

from experiments import page, unseen
from vae import load_mnist, load_pretrained

pytestmark = pytest.mark.browser
ALL_LABELS = torch.arange(10).unsqueeze(1)  # (K, 1)
ONE = [(142, 60), (138, 140), (134, 220)]  # strokes on a canvas of 280 × 280
SEVEN = [(75, 70), (120, 68), (200, 64), (185, 100), (160, 150), (145, 185), (130, 225)]
STAR = [(140, 20), (211, 237), (26, 103), (254, 103), (69, 237), (140, 20)]
FULL = [(x, y) for i, y in enumerate(range(8, 280, 16)) for x in ((5, 275) if i % 2 else (275, 5))]
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
def open_page(browser, path):
    from tests.browser import Page

    return partial(Page, browser, path.as_uri())


@pytest.fixture
def opened(open_page):
    return open_page()


def assert_near(found, expected, rtol=0.0, atol=1e-3):
    torch.testing.assert_close(torch.as_tensor(found), expected, rtol=rtol, atol=atol)


@pytest.mark.parametrize("name", ["m2-100", "m2-naive"])
@torch.no_grad()
def test_beliefs_are_those_of_pytorch(opened, models, held_out, name):
    x, m2 = held_out[0][:100], page.as_in_page(name, models[name])
    plain = "(b) => ({ ...b, pictures: b.pictures.map((p) => Array.from(p)) })"
    found = opened.run(f"loadModel('{name}').then((m2) => images.map((x) => beliefs(m2, x)).map({plain}))", x)
    noise = unseen.noise(m2.encoder.z_dim)
    bounds = m2.elbo_given_noise(x, ALL_LABELS, noise.expand(100, -1)).T  # (B, K)
    probs, entropy = m2.label_posterior(x).probs, m2.label_posterior(x).entropy()
    bound = (probs * bounds).sum(1) + entropy
    for key, values in {"probs": probs, "bounds": bounds, "entropy": entropy, "bound": bound}.items():
        assert_near([b[key] for b in found], values, rtol=1e-3 if "bound" in key else 0)
    assert_near(unseen.bounds(m2, x), bound)
    pictures = m2.decoder(m2.encoder(x, m2.classify(x)).mean, ALL_LABELS).mean.flatten(2)  # (K, B, 784)
    assert_near([b["pictures"] for b in found], pictures.transpose(0, 1))
    assert noise.mean().abs() < 0.4 and 0.7 < noise.std() < 1.3


def test_drawings_are_prepared_as_mnist_was(opened, held_out):
    images = held_out[0][:100].flatten(1)
    tenfold = "new Float32Array(78400).map((_, i) => x[28 * Math.floor(i / 2800) + Math.floor((i % 280) / 10)])"
    found = opened.run(f"images.map((x) => Array.from(prepare({tenfold}, 280)))", images)
    assert ((torch.tensor(found) - images).abs().amax(1) < 1e-5).float().mean() > 0.9


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("size", [(1280, 800), (390, 844)])
def test_pad_answer_and_ten_digits_are_seen_without_scrolling(open_page, size, dark):
    opened = open_page(size, dark)
    boxes = torch.tensor([opened.box(s) for s in ("#pad", "#undo", "#m2-100-answer", "#m2-100-styles")])
    assert (boxes >= 0).all() and (boxes[:, 2] <= size[0]).all() and (boxes[:, 3] <= size[1]).all()
    assert opened.run("document.documentElement.scrollWidth") <= size[0]
    assert boxes[0, 0] == pytest.approx(opened.box("h1")[0], abs=2)  # the pad begins where the text does
    shade = opened.run("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)")
    assert (max(shade) < 60) if dark else (min(shade) > 200)


def test_a_test_image_stands_there_until_one_draws_and_strokes_are_undone(opened):
    assert opened.text("#hint").startswith("A test image") and opened.text("#m2-100-answer").startswith("I read a 4")
    assert opened.draw(ONE).startswith("I read a 1") and opened.text("#hint") == "Your drawing"
    alone = opened.pixels("#pad"), opened.pixels("#m2-100-styles canvas")
    opened.draw([(60, 140), (220, 140)])
    assert opened.pixels("#pad") != alone[0] and opened.pixels("#m2-100-styles canvas") != alone[1]
    opened.click("#undo")
    assert (opened.pixels("#pad"), opened.pixels("#m2-100-styles canvas")) == alone
    opened.click("#undo")
    assert opened.text("#hint") == "Draw a digit here" and not any(opened.pixels("#pad"))
    assert opened.draw(SEVEN).startswith("I read a 7")
    opened.click("#clear")
    assert opened.text("#m2-100-answer") == "Draw a digit, and I will read it."
    assert not opened.find("#undo").is_enabled()
    opened.click("#examples button")
    assert opened.text("#m2-100-answer").startswith("I read a 0")


def test_a_second_finger_and_the_right_button_draw_nothing_and_some_browsers_bring_moves_one_by_one(opened):
    from tests.browser import PAINTED

    opened.run("PointerEvent.prototype.getCoalescedEvents = () => []")
    assert opened.draw(SEVEN).startswith("I read a 7")
    drawn = opened.pixels("#pad")
    opened.run("$('pad').setPointerCapture = () => 0")  # these pointers are not real
    left, top, *_ = opened.box("#pad")
    for other in ("isPrimary: false", "isPrimary: true, button: 2"):
        event = f"new PointerEvent('pointerdown', {{ clientX: {left + 20}, clientY: {top + 20}, {other} }})"
        opened.run(f"$('pad').dispatchEvent({event})")
    opened.run(PAINTED)
    assert opened.pixels("#pad") == drawn and opened.text("#hint") == "Your drawing"


def test_what_was_never_seen_is_said_as_often_as_the_page_says(opened, models):
    m2, mnist = page.as_in_page("m2-100", models["m2-100"]), load_mnist()
    limit = float(opened.find("#m2-100-threshold").get_attribute("value"))
    assert (unseen.bounds(m2, mnist.valid_images) < limit).sum() == pytest.approx(200, abs=10)  # of 10,000
    opened.click("summary")
    told = {row.rsplit(" ", 2)[0]: row.split()[-2] for row in opened.text(".kinds").splitlines()}
    digits, tangled = int(told["test images of digits: false alarms"]), int(told["scribbles, tangled"])
    assert digits == (unseen.bounds(m2, mnist.test_images[::10]) < limit).sum() < 30 and tangled > 700
    away = (torch.arange(28) - 13.5) ** 2
    disc = (away + away.unsqueeze(1) < 90).float().view(1, 1, 28, 28)
    assert unseen.bounds(m2, disc) > limit  # the page says that a filled disc passes
    assert opened.draw(STAR).startswith("I have never seen anything like this")
    opened.click("#clear")
    assert opened.draw(FULL).startswith("I read an 8")  # the page says that a pad full of ink passes, too


def test_two_models_answer_side_by_side_and_only_one_writes_ten_digits(opened):
    opened.draw(SEVEN)
    spread = {}
    for name in ("m2-100", "m2-naive"):
        assert opened.text(f"#{name}-answer").startswith("I ")
        pictures = [opened.pixels(f"#{name}-styles figure:nth-child({y + 1}) canvas") for y in range(10)]
        spread[name] = torch.tensor(pictures, dtype=torch.float).std(0).mean()
    assert spread["m2-100"] > 3 * spread["m2-naive"]
    tops = [opened.box(f"#{name}-answer")[1] for name in ("m2-100", "m2-naive")]
    assert tops[0] == tops[1]


def test_words_of_the_theory_are_folded(opened):
    words = ["q(y|x)", "−L(x, y)", "nats", "noise", "entropy"]
    assert not [word for word in words if word in opened.text("main")]
    opened.click("summary")
    assert all(word in opened.text("main") for word in words)


def test_a_number_is_written_in_the_style_and_saved(opened, browser, tmp_path):
    opened.draw(SEVEN)
    field = opened.find("#digits")
    field.send_keys("\ue009a\ue000\ue003")  # select all, and delete
    assert not any(opened.pixels("#number")) and not opened.find("#save").is_enabled()
    field.send_keys("7a-1 23456789012345")
    assert field.get_attribute("value") == "712345678901"  # letters go, and what is more than twelve
    browser.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)})
    opened.click("#save")
    saved = tmp_path / "712345678901.png"
    for _ in range(100):
        if not saved.exists():
            time.sleep(0.05)
    picture = torch.frombuffer(bytearray(Image.open(saved).convert("L").tobytes()), dtype=torch.uint8)
    assert_near(255 - picture.long(), torch.tensor(opened.pixels("#number")), atol=1)
    assert (picture < 60).any() and (picture == 255).any()


def test_a_finger_scrolls_past_the_plane_and_keys_and_clicks_move_on_it(open_page):
    opened = open_page((390, 844))
    for plane, readout in (("#plane", "#plane-z"), ("#style-plane", "#style-z")):
        before = opened.text(readout)
        assert opened.swipe_up(plane, 8) > 100 and opened.text(readout) == before
        assert opened.swipe_up(f"{plane} .cross", 22) == 0 and opened.text(readout) != before
        opened.click(plane)
        assert opened.text(readout).startswith("z = (0.0, 0.0)")
        opened.find(plane).send_keys("\ue014")  # the right arrow
        assert opened.text(readout).startswith("z = (0.1, 0.0)")


@torch.no_grad()
def test_names_on_the_plane_do_not_hide_each_other(models, held_out):
    labels = held_out[1][: page.NUM_CODES]
    codes = models["m1-2d"].encoder(held_out[0][: page.NUM_CODES]).mean
    assert torch.pdist(page.name_places(codes, labels)).min() > 0.5  # a letter's height, where 920 pixels are 8 wide


def test_page_asks_for_nothing(browser, path):
    from tests.browser import Page

    asked = []
    handler = type("Handler", (SimpleHTTPRequestHandler,), {"log_request": lambda self, *_: asked.append(self.path)})
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=path.parent)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        served = Page(browser, f"http://127.0.0.1:{server.server_port}/index.html")
        assert served.draw(SEVEN).startswith("I read")
        events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
        assert served.run("fetch('/spy').catch(() => 0)") == served.run(IMAGE) == 0  # the policy forbids both
        server.shutdown()
    sent = {e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"}
    assert asked == ["/index.html"]
    assert {url for url in sent if not url.startswith("data:")} == {browser.current_url}


def test_the_card_and_the_icon_are_the_pages_own():
    head = page.PAGE.read_text("utf-8").partition("<style>")[0]
    [card] = re.findall('property="og:image" content="([^"]*)"', head)
    assert Image.open(page.PAGE.parent / card).size == (2400, 1260)  # what cards are cut to
    assert re.search('rel="icon" href="data:image/svg', head) and "Draw one digit" in head
