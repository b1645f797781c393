"""A real JupyterLab and a real Chromium, both started for the tests and ended by them.

Environment:
    LABSUPPORT_COLAB_PYTHON   python of the environment of constraints-colab.txt. It runs the kernel, and brings the
                              widget front end that belongs to ipywidgets 7.7 (jupyterlab_widgets 1.1, which works in
                              JupyterLab 4; version 3 knows ipywidgets 8 only). JupyterLab itself is that of the tests.
                              Unset: these tests are skipped.
    LABSUPPORT_SCREENSHOTS    folder for screenshots. Unset: none are kept.
    CI=true                   what is missing fails the tests instead of skipping them.
"""

from __future__ import annotations

import base64
import importlib.util
import json
import os
import re
import secrets
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import pytest
from PIL import Image

from labsupport.chromium import find_chromium

ROOT = Path(__file__).parents[2]
CHROMIUM_ARGUMENTS = [
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--force-device-scale-factor=1",
]  # fmt: skip
IN_CI = os.environ.get("CI", "").lower() in ("true", "1")


def missing(reason: str) -> None:
    """Skip on a developer's machine, fail in CI: there a test that does not run is a test that nobody runs."""
    if IN_CI:
        pytest.fail(f"CI must be able to run this: {reason}", pytrace=False)
    pytest.skip(reason)


@dataclass
class Lab:
    kernel: str  # "current" or "colab"
    url: str
    token: str
    folder: Path
    log: Path

    def address(self, notebook: str) -> str:
        """The notebook alone in a single-document window, in a workspace of its own."""
        workspace = secrets.token_hex(4)
        return f"{self.url}/doc/workspaces/{workspace}/tree/{notebook}?token={self.token}"


@pytest.fixture(scope="session", params=["current", pytest.param("colab", marks=[pytest.mark.colab, pytest.mark.slow])])
def lab(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """JupyterLab on a free port of this machine, with configuration, runtime and data folders of its own."""
    kernel_python, extensions = sys.executable, []
    if request.param == "colab":
        kernel_python = os.environ.get("LABSUPPORT_COLAB_PYTHON", "")
        if not kernel_python:
            missing("LABSUPPORT_COLAB_PYTHON is not set (python of the environment of constraints-colab.txt)")
        extensions = [f"--LabApp.extra_labextensions_path={_prefix(kernel_python)}/share/jupyter/labextensions"]
    if importlib.util.find_spec("jupyterlab") is None:
        missing("JupyterLab is not installed: pip install -e '.[lab]'")
    home = tmp_path_factory.mktemp("jupyter")
    folder = home / "notebooks"
    folder.mkdir()
    _kernelspec(home, request.param, kernel_python)

    port, token = _free_port(), secrets.token_hex(16)
    environment = os.environ | {
        "JUPYTER_CONFIG_DIR": str(home / "config"),
        "JUPYTER_RUNTIME_DIR": str(home / "runtime"),
        "JUPYTER_DATA_DIR": str(home / "data"),
        "JUPYTERLAB_SETTINGS_DIR": str(home / "settings"),
        "JUPYTERLAB_WORKSPACES_DIR": str(home / "workspaces"),
        "IPYTHONDIR": str(home / "ipython"),
        "LABSUPPORT_SMOLLM2": "0",  # chapters then run on `tiny` alone, whatever is cached
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")])),
    }
    command = [
        sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--ServerApp.root_dir={folder}",
        "--ServerApp.ip=127.0.0.1", f"--ServerApp.port={port}", "--ServerApp.port_retries=0",
        f"--IdentityProvider.token={token}", "--LabApp.expose_app_in_browser=True",
        "--LabApp.extension_manager=readonly", "--LabApp.news_url=None",
        "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
        # Should the tests be killed, it ends itself.
        "--MappingKernelManager.cull_idle_timeout=900", "--ServerApp.shutdown_no_activity_timeout=900", *extensions,
    ]  # fmt: skip
    _settings(home / "settings")
    log = home / "jupyter.log"
    with log.open("wb") as stream:
        server = subprocess.Popen(command, env=environment, stdout=stream, stderr=subprocess.STDOUT, cwd=folder)
    lab = Lab(request.param, f"http://127.0.0.1:{port}", token, folder, log)
    try:
        _wait_until_up(lab, server)
        yield lab
    finally:
        _shut_down(lab, server)


@pytest.fixture(scope="module")
def browser():
    """Ended with its file: until then playwright's event loop runs in this thread, where no other can."""
    executable = find_chromium()
    if executable is None:
        missing("no Chromium or Chrome on the PATH: apt-get install chromium")
    if importlib.util.find_spec("playwright") is None:
        missing("playwright is not installed: pip install -e '.[test]'")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=CHROMIUM_ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def page(browser):
    page = browser.new_page(viewport={"width": 1280, "height": 1000})
    page.set_default_timeout(120_000)
    yield page
    page.close()


def _settings(folder: Path) -> None:
    """No news, no questions, and every cell in the page at once, so that none is left out of the tests."""
    notebook = {"windowingMode": "none", "kernelShutdown": True}
    tracker = folder / "@jupyterlab" / "notebook-extension"
    tracker.mkdir(parents=True)
    (tracker / "tracker.jupyterlab-settings").write_text(json.dumps(notebook))
    notification = folder / "@jupyterlab" / "apputils-extension"
    notification.mkdir(parents=True)
    quiet = {"fetchNews": "false", "checkForUpdates": False, "doNotDisturbMode": True}
    (notification / "notification.jupyterlab-settings").write_text(json.dumps(quiet))


def _kernelspec(home: Path, name: str, python: str) -> None:
    folder = home / "data" / "kernels" / name
    folder.mkdir(parents=True)
    argv = [python, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    spec = {"argv": argv, "display_name": name, "language": "python", "metadata": {"debugger": False}}
    (folder / "kernel.json").write_text(json.dumps(spec))


def _prefix(python: str) -> str:
    command = [python, "-c", "import sys; print(sys.prefix)"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _wait_until_up(lab: Lab, server: subprocess.Popen, seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if server.poll() is not None:
            break
        try:
            urllib.request.urlopen(f"{lab.url}/api/status?token={lab.token}", timeout=5).close()
            return
        except (urllib.error.URLError, OSError):
            time.sleep(0.3)
    raise RuntimeError(f"JupyterLab did not come up:\n{lab.log.read_text()[-4000:]}")


def _shut_down(lab: Lab, server: subprocess.Popen) -> None:
    """Ask it to end, so that it ends its kernels; then end the one process that was started here."""
    request = urllib.request.Request(
        f"{lab.url}/api/shutdown", method="POST", headers={"Authorization": f"token {lab.token}"}
    )
    try:
        urllib.request.urlopen(request, timeout=10).close()
        server.wait(timeout=20)
    except (urllib.error.URLError, OSError, subprocess.TimeoutExpired):
        server.terminate()
        try:
            server.wait(timeout=10)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


# Heights of every picture in every animation frame, whether one was ever broken, and for each key press the
# milliseconds until the next new picture was decoded. (A picture's naturalWidth says nothing of blank frames: it is 0
# while the next one loads, and Chromium goes on painting the one before. `film` looks at what was painted.)
WATCH = """
() => {
  const state = {heights: {}, broken: 0, latencies: [], pressed: null, filming: false};
  window.labsupportWatch = state;
  const pictures = [...document.querySelectorAll('img.widget-image')];
  pictures.forEach((picture, index) => {
    state.heights[index] = [];
    picture.addEventListener('error', () => { state.broken += 1; });
    new MutationObserver(() => {
      const pressed = state.pressed;
      if (pressed === null) return;
      state.pressed = null;
      if (state.filming) return;  // taking every frame costs time of its own
      picture.decode().then(() => state.latencies.push(performance.now() - pressed)).catch(() => {});
    }).observe(picture, {attributes: true, attributeFilter: ['src']});
  });
  document.addEventListener('keydown', () => { state.pressed = performance.now(); }, true);
  const sample = () => {
    pictures.forEach((picture, index) => state.heights[index].push(picture.offsetHeight));
    requestAnimationFrame(sample);
  };
  requestAnimationFrame(sample);
  return pictures.length;
}
"""

DIGEST = """
async picture => {
  const bytes = await (await fetch(picture.src)).arrayBuffer();
  const hash = new Uint8Array(await crypto.subtle.digest('SHA-256', bytes));
  return [...hash].map(x => x.toString(16).padStart(2, '0')).join('');
}
"""

AT_END = """
handle => {
  const now = handle.getAttribute('aria-valuenow');
  return now === null ? parseFloat(handle.style.left) >= 100 : now === handle.getAttribute('aria-valuemax');
}
"""


class NotebookPage:
    """A notebook in a browser tab: run it, move its controls by keyboard, see what its pictures do."""

    SLIDERS = ".jp-OutputArea [role=slider], .jp-OutputArea .ui-slider-handle"  # ipywidgets 8, 7

    def __init__(self, page, lab: Lab) -> None:
        self.page, self.lab = page, lab

    def open(self, notebook: str) -> NotebookPage:
        """Open a notebook of the server's folder with the kernel of the environment under test."""
        path = self.lab.folder / notebook
        content = json.loads(path.read_text(encoding="utf-8"))
        content["metadata"]["kernelspec"] = {
            "name": self.lab.kernel, "display_name": self.lab.kernel, "language": "python",
        }  # fmt: skip
        path.write_text(json.dumps(content), encoding="utf-8")
        self.page.goto(self.lab.address(notebook))
        self.page.wait_for_selector(".jp-Notebook .jp-Cell")
        self.page.wait_for_function(
            "() => window.jupyterapp?.shell.currentWidget?.context?.sessionContext?.session?.kernel?.status === 'idle'"
        )
        return self

    def run_all(self, seconds: float = 300) -> None:
        """Run every cell and wait until all are done and the kernel is idle. Errors in cells do not raise here."""
        self.page.set_default_timeout(seconds * 1000)
        self.page.evaluate("() => window.jupyterapp.commands.execute('notebook:run-all-cells')")
        self.wait_idle()
        self.page.set_default_timeout(120_000)

    def wait_idle(self) -> None:
        self.page.wait_for_function(
            "() => window.jupyterapp.shell.currentWidget.context.sessionContext.session.kernel.status === 'idle'"
        )

    def errors(self) -> list[str]:
        """Texts of error outputs, of red lines under pictures, and of widgets that could not be shown."""
        red = ".jp-OutputArea-output[data-mime-type='application/vnd.jupyter.error'], [role=alert]:not(.Toastify *)"
        failed = ".jp-OutputArea-output:has-text('Error displaying widget'), .jupyter-widgets.jp-mod-error"
        return [text for text in self.page.locator(f"{red}, {failed}").all_inner_texts() if text.strip()]

    def digest(self, picture) -> str:
        """SHA-256 of a picture's bytes."""
        return picture.evaluate(DIGEST)

    def watch(self) -> int:
        """Begin to record; returns the number of pictures."""
        return self.page.evaluate(WATCH)

    def assert_steady(self) -> None:
        """Since `watch`, no picture was broken and none changed its height in any frame."""
        watched = self.page.evaluate("() => window.labsupportWatch")
        assert watched["broken"] == 0
        for index, heights in watched["heights"].items():
            assert len(heights) > 10, f"only {len(heights)} frames of picture {index} were seen"
            lowest, highest = min(heights), max(heights)
            assert lowest > 0.99 * highest > 0, f"picture {index} collapsed from {highest} to {lowest} px"

    def latencies(self) -> list[float]:
        """Milliseconds from each key press to the new picture, decoded."""
        return self.page.evaluate("() => window.labsupportWatch.latencies")

    @contextmanager
    def film(self, picture) -> Iterator[list[float]]:
        """While open, every painted frame is recorded; afterwards the list holds each frame's share of pixels of the
        picture's area that are not white. The page must not scroll meanwhile."""
        area = picture.bounding_box()
        raw: list[bytes] = []
        session = self.page.context.new_cdp_session(self.page)

        def keep(event: dict) -> None:
            raw.append(base64.b64decode(event["data"]))
            session.send("Page.screencastFrameAck", {"sessionId": event["sessionId"]})

        filming = "filming => { if (window.labsupportWatch) window.labsupportWatch.filming = filming; }"
        self.page.evaluate(filming, True)
        session.on("Page.screencastFrame", keep)
        session.send("Page.startScreencast", {"format": "jpeg", "quality": 80, "everyNthFrame": 1})
        inked: list[float] = []
        try:
            yield inked
            self.page.wait_for_timeout(300)
        finally:
            session.send("Page.stopScreencast")
            session.detach()
            self.page.evaluate(filming, False)
        width = self.page.viewport_size["width"]
        for data in raw:
            frame = Image.open(BytesIO(data)).convert("L")
            ratio = frame.width / width
            box = [
                round(ratio * x) for x in (area["x"], area["y"], area["x"] + area["width"], area["y"] + area["height"])
            ]
            inked.append(sum(frame.crop(tuple(box)).histogram()[:200]) / ((box[2] - box[0]) * (box[3] - box[1])))

    def sliders(self) -> list:
        return self.page.locator(self.SLIDERS).all()

    def press(self, control, key: str, seconds: float = 60) -> bool:
        """Focus a control and press a key. True once other bytes are shown as its picture, False if none came."""
        picture = self.picture_of(control)
        before, source = self.digest(picture), picture.get_attribute("src")
        control.scroll_into_view_if_needed()
        control.focus()
        self.page.keyboard.press(key)
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self.page.wait_for_timeout(20)
            if picture.get_attribute("src") != source:
                self.page.wait_for_timeout(20)  # the old one is released only now
                source = picture.get_attribute("src")
                if self.digest(picture) != before:
                    return True
        return False

    def nudge(self, slider) -> bool:
        """Move a slider one step to the right, or to the left if it stands at its end; True if a picture changed."""
        slider.scroll_into_view_if_needed()
        at_end = slider.evaluate(AT_END)
        return self.press(slider, "ArrowLeft" if at_end else "ArrowRight")

    def picture_of(self, control):
        """The picture of the Live that a control belongs to."""
        return control.locator("xpath=ancestor::*[contains(@class, 'widget-vbox')][1]").locator("img.widget-image")

    def label_of(self, control) -> str:
        row = control.locator("xpath=ancestor::*[contains(@class, 'widget-inline-hbox')][1]")
        return row.locator(".widget-label").first.inner_text()

    def executed_cells(self) -> int:
        prompts = self.page.locator(".jp-CodeCell .jp-InputPrompt").all_inner_texts()
        return sum(bool(re.fullmatch(r"\[\d+\]:", prompt.strip())) for prompt in prompts)

    def screenshot(self, name: str) -> None:
        if folder := os.environ.get("LABSUPPORT_SCREENSHOTS"):
            Path(folder).mkdir(parents=True, exist_ok=True)
            self.page.screenshot(path=Path(folder) / f"{name}.png")

    def screenshot_of_picture(self, index: int, name: str) -> None:
        """One Live as it is shown: controls, picture, caption."""
        if folder := os.environ.get("LABSUPPORT_SCREENSHOTS"):
            Path(folder).mkdir(parents=True, exist_ok=True)
            picture = self.page.locator("img.widget-image").nth(index)
            whole = picture.locator("xpath=ancestor::*[contains(@class, 'widget-vbox')][1]")
            whole.screenshot(path=Path(folder) / f"{name}.png")


@pytest.fixture(scope="module")
def notebook_page(page, lab: Lab) -> NotebookPage:
    return NotebookPage(page, lab)
