"""A headless Chromium that has the page open, driven by selenium; see `tests/test_page.py`.

`python -m tests.browser` writes docs/page.png, the page with a drawing, as README and preview cards show it.
"""

import base64
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

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
STILL = """
new Promise((done) => {
  let last = null;
  const timer = setInterval(() => (scrollY === last ? done(clearInterval(timer)) : (last = scrollY)), 100);
})"""


TWO = [
    (95, 110),
    (110, 75),
    (145, 58),
    (180, 72),
    (190, 105),
    (170, 145),
    (130, 185),
    (95, 212),
    (140, 208),
    (200, 216),
]


def launch(profile):
    """Return Chromium with an empty folder for its profile; it keeps a log of what it asks the network for."""
    options = webdriver.ChromeOptions()
    for flag in (*FLAGS.split(), f"user-data-dir={profile}"):
        options.add_argument(f"--{flag}")
    options.add_experimental_option("prefs", {"download.default_directory": str(profile)})
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    return webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))


class Page:
    """The page in the browser, once it is ready, or says that it cannot be."""

    def __init__(self, browser, url, size=(1280, 800), dark=False, pixel_ratio=1):
        self.browser, (width, height) = browser, size
        screen = {"width": width, "height": height, "deviceScaleFactor": pixel_ratio, "mobile": width < 600}
        theme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [theme]})
        browser.get_log("performance")  # forget what was before
        browser.get(url)
        self.run(READY)

    def run(self, code, images=None):
        """Return what an expression of JavaScript becomes, given `images`, an array of Float32Array."""
        pixels = b"" if images is None else (255 * images).round().byte().numpy().tobytes()
        return self.browser.execute_async_script(RUN, code, base64.b64encode(pixels).decode())

    def find(self, selector):
        return self.browser.find_element("css selector", selector)

    def click(self, selector):
        self.find(selector).click()

    def text(self, selector):
        return self.find(selector).text

    def box(self, selector):
        """Return where an element lies in the window: left, top, right, bottom."""
        sides = "({ left, top, right, bottom }) => [left, top, right, bottom]"
        return self.run(f"({sides})(document.querySelector('{selector}').getBoundingClientRect())")

    def pixels(self, selector):
        """Return the ink of a canvas, numbers in 0…255, row by row."""
        data = "c.getContext('2d').getImageData(0, 0, c.width, c.height).data.filter((_, i) => i % 4 === 3)"
        return self.run(f"((c) => Array.from({data}))(document.querySelector('{selector}'))")

    def draw(self, stroke):
        """Draw a line through points by the mouse, and return the page's answer."""
        pad, mouse = self.find("#pad"), ActionChains(self.browser, duration=5)
        self.browser.execute_script("arguments[0].scrollIntoView({ block: 'center' })", pad)
        for i, (x, y) in enumerate(stroke):
            mouse.move_to_element_with_offset(pad, x - 140, y - 140)
            if i == 0:
                mouse.click_and_hold()
        mouse.release().perform()
        self.run(PAINTED)
        return self.text("#m2-100-answer")

    def swipe_up(self, selector, x):
        """Move a finger up from the middle of an element, `x` pixels right of its edge; return how far that scrolls."""
        self.browser.execute_script("arguments[0].scrollIntoView({ block: 'center' })", self.find(selector))
        self.run(STILL)
        left, top, _, bottom = self.box(selector)
        before = self.run("scrollY")
        for kind, up in (("touchStart", 0), *(("touchMove", 10 * i) for i in range(1, 16)), ("touchEnd", None)):
            points = [] if up is None else [{"x": left + x, "y": (top + bottom) / 2 - up}]
            self.browser.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
        self.run(STILL)
        return self.run("scrollY") - before


def write_picture():
    """Write a picture of the page with a drawn 2, of the size that preview cards are cut to."""
    with TemporaryDirectory() as profile, launch(profile) as browser:
        page = Page(browser, Path("docs/index.html").absolute().as_uri(), size=(1200, 630), pixel_ratio=2)
        page.draw(TWO)
        browser.execute_script("scrollTo(0, 0); document.documentElement.style.overflow = 'hidden'")  # no scroll bar
        Path("docs/page.png").write_bytes(browser.get_screenshot_as_png())


if __name__ == "__main__":
    write_picture()
