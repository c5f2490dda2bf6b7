"""The explorer as its reader meets it, in JupyterLab in headless Chromium: run by `make browser-test`.

It needs Debian's packages chromium and chromium-driver and PyPI's selenium, and no network.
"""

import base64
import io
import json
import os
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import nbformat
import numpy as np
import PIL.Image
import pytest
import torch

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
Keys = webdriver.Keys
WebDriverException = pytest.importorskip("selenium.common").WebDriverException
pytestmark = pytest.mark.browser

CELL = """\
import torch
from experiments.explorer import PlaneExplorer
from vae.networks import BernoulliDecoder

torch.manual_seed(0)
decoder = BernoulliDecoder(2, (1, 28, 28), (32, 32))
codes = torch.rand(10, 2) * 4 - 2


def decode(z):
    return decoder(30 * z).mean  # an untrained decoder answers to far codes only


PlaneExplorer(decode, codes)
"""

# The picture in the cell's output as the browser has decoded it, in PNG; nothing until there is one.
PICTURE = """
const image = document.querySelector(".jp-OutputArea-output img");
if (!image?.complete) return null;
const canvas = document.createElement("canvas");
[canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
canvas.getContext("2d").drawImage(image, 0, 0);
return canvas.toDataURL().split(",")[1];
"""


def wait_for(condition, what):
    """Return the first true value of `condition()`; it may fail while the page is being drawn."""
    end = time.monotonic() + 120
    while time.monotonic() < end:
        with suppress(WebDriverException):
            if value := condition():
                return value
        time.sleep(0.1)
    pytest.fail(f"waited two minutes for {what}")


@pytest.fixture
def lab(tmp_path):
    """The address, with its token, of CELL as a notebook in a JupyterLab that has settings of its own and no news."""
    kernel = {"name": "python3", "display_name": "Python 3"}
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(CELL)], metadata={"kernelspec": kernel})
    nbformat.write(notebook, tmp_path / "explorer.ipynb")
    page = tmp_path / "JUPYTER_CONFIG_DIR" / "labconfig" / "page_config.json"
    page.parent.mkdir(parents=True)
    page.write_text('{"disabledExtensions": {"@jupyterlab/apputils-extension:announcements": true}}')
    folders = ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR")
    paths = [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    environment = {name: str(tmp_path / name) for name in folders} | {"PYTHONPATH": os.pathsep.join(paths)}
    flags = ["--no-browser", "--allow-root", "--ip=127.0.0.1", "--port=0", "--LabApp.extension_manager=readonly"]
    command = [sys.executable, "-m", "jupyterlab", *flags]
    with (
        open(tmp_path / "jupyterlab.log", "w") as log,
        subprocess.Popen(command, cwd=tmp_path, env=os.environ | environment, stdout=log, stderr=log) as server,
    ):
        try:
            running = wait_for(lambda: list(tmp_path.glob("JUPYTER_RUNTIME_DIR/jpserver-*.json")), "JupyterLab")
            description = json.loads(running[0].read_text())
            yield f"{description['url']}lab/tree/explorer.ipynb?token={description['token']}"
        finally:
            server.terminate()
            with suppress(subprocess.TimeoutExpired):
                server.wait(20)
            server.kill()  # told to stop while a kernel starts, it may never do so


@pytest.fixture
def browser(tmp_path):
    if not (shutil.which("chromium") and shutil.which("chromedriver")):
        pytest.skip("chromium or chromedriver is not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for flag in (
        *("headless", "no-sandbox", "disable-gpu", "window-size=1200,800", f"user-data-dir={tmp_path / 'chromium'}"),
        *("no-first-run", "disable-background-networking", "disable-component-update", "disable-sync", "disable-quic"),
    ):
        options.add_argument(f"--{flag}")
    driver = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
    yield driver
    driver.quit()


def test_the_image_follows_the_sliders_and_the_buttons(browser, lab):
    names = {}
    exec(CELL, names)
    decode, seven = names["decode"], [round(value, 2) for value in names["codes"][7].tolist()]

    def find(selector):
        return browser.find_elements("css selector", selector)

    def kernel_is_ready():
        browser.find_element("css selector", ".jp-CodeCell .cm-content").click()
        return "| Idle" in find("#jp-main-statusbar")[0].text

    def shows(z):
        """Whether the browser shows what the decoder says of z, up to rounding: one of 255 grays."""
        picture = wait_for(lambda: browser.execute_script(PICTURE), "a picture")
        grays = np.asarray(PIL.Image.open(io.BytesIO(base64.b64decode(picture))).convert("L")).astype(float)
        ink = decode(torch.tensor([z])).detach()[0, 0].numpy()
        return abs(grays - 255 * (1 - ink)).max() <= 1

    def check(act, z):
        """Whether `act` makes the browser show z, which it did not before, as an image and in numbers."""
        assert not shows(z)
        act()
        wait_for(lambda: shows(z), f"the image of z = {z}")
        assert [float(readout.text.replace("−", "-")) for readout in find(".widget-readout")] == z

    browser.get(lab)
    wait_for(kernel_is_ready, "the kernel")  # a cell that is run before is lost
    find(".jp-CodeCell .cm-content")[0].send_keys(Keys.SHIFT + Keys.ENTER)
    assert shows([0.0, 0.0])
    z1, z2 = find(".noUi-handle")
    check(lambda: z1.send_keys(3 * Keys.ARROW_RIGHT), [0.03, 0.0])
    check(lambda: z2.send_keys(5 * Keys.ARROW_DOWN), [0.03, -0.05])
    check(find(".jupyter-button")[7].click, seven)
    check(lambda: z1.send_keys(Keys.HOME), [-3.0, seven[1]])
