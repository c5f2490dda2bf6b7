"""A headless Chromium that has the page open, driven by selenium; see `tests/test_page.py`."""

import base64
import shutil

from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains

FLAGS = (
    "headless=new no-sandbox disable-gpu no-first-run disable-background-networking disable-component-update "
    "disable-sync disable-quic"
)
RUN = """
const [code, encoded, done] = arguments, pixels = Float32Array.from(atob(encoded), (c) => c.charCodeAt(0) / 255);
const images = Array.from({ length: pixels.length / 784 }, (_, i) => pixels.slice(784 * i, 784 * (i + 1)));
eval("(async (images) => " + code + ")")(images).then(done, (error) => done(String(error)));
"""
READY = "new Promise((done) => setInterval(() => $('notice') && !document.querySelector('main').hidden || done()))"
PAINTED = "new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"


def launch(profile):
    """Return Chromium with an empty folder for its profile; it keeps a log of what it asks the network for."""
    options = webdriver.ChromeOptions()
    for flag in (*FLAGS.split(), f"user-data-dir={profile}"):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    return webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))


class Page:
    """The page in the browser, once it is ready, or says that it cannot be."""

    def __init__(self, browser, url):
        self.browser = browser
        browser.get_log("performance")  # forget what was before
        browser.get(url)
        self.run(READY)

    def run(self, code, images=None):
        """Return what an expression of JavaScript becomes, given `images`, an array of Float32Array."""
        pixels = b"" if images is None else (255 * images).round().byte().numpy().tobytes()
        return self.browser.execute_async_script(RUN, code, base64.b64encode(pixels).decode())

    def find(self, selector):
        return self.browser.find_element("css selector", selector)

    def text(self, selector):
        return self.find(selector).text

    def draw(self, stroke):
        """Draw a line through points by the mouse, and return the page's answer."""
        pad, mouse = self.find("#pad"), ActionChains(self.browser, duration=5)
        self.browser.execute_script("arguments[0].scrollIntoView({ block: 'center' })", pad)
        for x, y in stroke:
            mouse.move_to_element_with_offset(pad, x - 140, y - 140).click_and_hold()
        mouse.release().perform()
        self.run(PAINTED)
        return self.text("#answer")
