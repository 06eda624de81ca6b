"""A chapter and a page of exercises in JupyterLab, as a reader sees them."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = (
    "pretraining_and_adaptation.ipynb",
    "pretraining_and_adaptation_exercises.ipynb",
)
SECONDS = 180  # for a start on a busy machine


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """The address of a JupyterLab on copies of two notebooks, with its own settings."""
    pytest.importorskip("jupyterlab", reason="the extra lab is not installed")
    home = tmp_path_factory.mktemp("lab")
    for name in PAGES:
        (home / "chapters").mkdir(exist_ok=True)
        shutil.copy(ROOT / "chapters" / name, home / "chapters" / name)
    disabled = {"disabledExtensions": {"jupyterlab-myst": True}}  # it may be installed
    (home / "labconfig").mkdir()
    (home / "labconfig" / "page_config.json").write_text(
        json.dumps(disabled), encoding="utf-8"
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = [f"--port={port}", "--ServerApp.token=", f"--ServerApp.root_dir={home}"]
    options += ["--no-browser", "--allow-root"]
    options += [f"--LabApp.workspaces_dir={home / 'workspaces'}"]
    options += [f"--LabApp.user_settings_dir={home / 'settings'}"]
    options += [f"--LabApp.app_settings_dir={ROOT / 'tools' / 'lab'}"]
    names = ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR")
    environment = os.environ | dict.fromkeys(names, str(home))
    with open(home / "log", "w", encoding="utf-8") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", *options],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    address, end = f"http://127.0.0.1:{port}/lab", time.monotonic() + SECONDS
    while time.monotonic() < end and server.poll() is None:
        try:
            urllib.request.urlopen(address, timeout=5).close()
            break
        except OSError:
            time.sleep(0.5)
    assert server.poll() is None, (home / "log").read_text(encoding="utf-8")
    yield address
    server.terminate()
    server.wait()


def opened(browser, lab, name):
    """A tab with a notebook, once its kernel waits for it."""
    tab = browser.new_page(viewport={"width": 1280, "height": 1000})
    tab.set_default_timeout(SECONDS * 1000)
    tab.goto(f"{lab}/tree/chapters/{name}?reset")
    tab.wait_for_selector(".jp-RenderedMarkdown h1")
    tab.wait_for_selector(".jp-Notebook-ExecutionIndicator[data-status=idle]")
    return tab


def scrolled_to(tab, selector):
    """Scroll down to an element: JupyterLab makes cells when they come into view."""
    found = tab.locator(selector)
    for _ in range(200):
        if found.count():
            return found.first
        tab.evaluate(
            "document.querySelector('.jp-WindowedPanel-outer').scrollTop += 400"
        )
        tab.wait_for_timeout(100)
    raise AssertionError(f"{selector} is not in the notebook")


def changed(tab):
    return tab.locator(".lm-TabBar-tab.jp-mod-dirty").count()


def test_a_chapter(browser, lab):
    """It opens unchanged; code is folded, equations have a number, figures captions."""
    tab = opened(browser, lab, PAGES[0])
    assert changed(tab) == 0
    first = tab.locator(".jp-CodeCell")
    for i in range(3):  # what to install, parameters, setup
        assert first.nth(i).locator(".jp-InputPlaceholder").count() == 1
    scrolled_to(tab, ".jp-RenderedMarkdown p > strong:text-is('Figure.')")
    equation = scrolled_to(tab, "mjx-container:has(mjx-labels)")
    assert equation.locator("mjx-labels mjx-mtext").count() == 1
    tab.close()


def test_exercises(browser, lab):
    """Hints are folded, solutions are at the end and folded, links lead to chapters."""
    tab = opened(browser, lab, PAGES[1])
    assert changed(tab) == 0
    hint = scrolled_to(tab, ".jp-RenderedMarkdown details:has(mjx-container)")
    formula = hint.locator("mjx-container").first
    assert not formula.is_visible()
    hint.locator("summary").click()
    formula.wait_for()
    tab.locator(".jp-RenderedMarkdown a:text-is('Solution')").first.click()
    solution = tab.locator(".jp-MarkdownCell:has(h3:text-matches('^Solution of'))")
    solution.first.locator("text=cells hidden").wait_for()
    tab.evaluate("document.querySelector('.jp-WindowedPanel-outer').scrollTop = 0")
    tab.locator(".jp-RenderedMarkdown a:text-is('Pretraining and adaptation')").click()
    tab.wait_for_selector(f".lm-TabBar-tab.lm-mod-current:has-text('{PAGES[0]}')")
    tab.close()
