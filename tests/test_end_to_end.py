"""The quick study for real: one store, each notebook in three ways, and nothing done twice."""

import json
import math
import os
import re
import resource
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
LTKD = [sys.executable, "-m", "ltkd.cli"]
PAPERMILL = [sys.executable, "-m", "papermill"]
pytestmark = pytest.mark.end_to_end


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    """The quick study made once, as `make study` makes it."""
    folder = tmp_path_factory.mktemp("outputs")
    command = [*LTKD, "run", "params/quick.yaml", "--outputs", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=2400)
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.splitlines()[-1] == str(folder / "quick" / "index.html")
    return folder


def snapshot(folder):
    return {p: p.stat().st_mtime_ns for p in sorted(folder.rglob("*")) if p.is_file()}


def test_the_study_is_whole(outputs):
    study = outputs / "quick"
    names = [path.stem for path in NOTEBOOKS]
    assert len(names) == 9
    for name in names:
        assert (study / "reports" / f"{name}.html").stat().st_size > 10_000
        manifest = json.loads((study / "reports" / f"{name}.manifest.json").read_text())
        assert manifest["data"]["title"] == "Digits-LT"
    assert len(list((study / "runs").iterdir())) == 101
    assert len(list((study / "teachers").iterdir())) == 1
    index = (study / "index.html").read_text()
    assert all(f"reports/{name}.html" in index for name in names)
    assert not [
        p for p in outputs.rglob("*") if p.suffix in {".part", ".lock"} or "failed" in p.name
    ]
    assert str(ROOT) not in index
    rows = (study / "runs.csv").read_text().splitlines()
    assert len(rows) == 1 + 1 + 40 + 25 + 20 + 45
    curves = (study / "adjusted.csv").read_text().splitlines()
    assert len(curves) > 9 * 40  # of the part that the pages ask for: nine values of tau a run


def test_a_page_is_sixty_kilobytes_and_its_pictures(outputs):
    pages = [*outputs.rglob("*.html")]
    assert len(pages) == 9 + 2
    for page in pages:
        assert len(re.sub(r"data:image[^\"]*", "", page.read_text()).encode()) < 60_000, page
        for name in re.findall(r'<a download href="([^"]+)"', page.read_text()):
            assert (page.parent / name).stat().st_size > 50, name


def test_the_same_records_give_the_same_page(outputs):
    """All but the line on its making, and the manifest's seal over it."""
    report = outputs / "quick" / "reports" / "02_teachers.html"
    before = report.read_text()
    report.with_suffix(".manifest.json").unlink()
    command = [*LTKD, "run", "params/quick.yaml", "--outputs", str(outputs)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert "101 runs, 1 report made" in done.stdout
    facts = re.compile(r'<dl class="facts wide">.*?</dl>|<span>seal .*?</span>', re.S)
    assert facts.sub("", report.read_text()) == facts.sub("", before)


def test_pages_ask_for_nothing_from_outside(outputs):
    for page in outputs.rglob("*.html"):
        text = page.read_text()
        assert not re.findall(r"""(?:src|href)=["']?(?:https?:)?//""", text), page
        assert "Content-Security-Policy" in text
        assert str(ROOT) not in text


def test_a_second_call_does_nothing_and_says_why(outputs):
    before, began = snapshot(outputs), resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    command = [*LTKD, "run", "params/quick.yaml", "--outputs", str(outputs)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0
    assert "nothing to do: every run and report is up to date" in done.stdout
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - began < 30
    assert snapshot(outputs) == before


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_top_to_bottom_as_it_is(outputs, path, monkeypatch):
    monkeypatch.setenv("LTKD_OUTPUTS", str(outputs))
    records = snapshot(outputs / "quick" / "runs")
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(
        notebook, timeout=900, resources={"metadata": {"path": ROOT / "notebooks"}}
    ).execute()
    assert snapshot(outputs / "quick" / "runs") == records


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_plain_papermill(outputs, path, tmp_path):
    out = tmp_path / "out.ipynb"
    done = subprocess.run(
        [*PAPERMILL, str(path), str(out), "-f", "params/quick.yaml", "--no-progress-bar"],
        cwd=ROOT, env=os.environ | {"LTKD_OUTPUTS": str(outputs)}, capture_output=True, text=True,
        timeout=900)  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "unknown parameter" not in done.stderr.lower()
    cells = nbformat.read(out, as_version=4).cells
    assert all(cell.execution_count for cell in cells if cell.cell_type == "code")


def test_plain_papermill_refuses_a_misspelt_parameter(outputs, tmp_path):
    done = subprocess.run(
        [*PAPERMILL, str(NOTEBOOKS[0]), str(tmp_path / "x.ipynb"), "-p", "seedz", "1"],
        cwd=ROOT, env=os.environ | {"LTKD_OUTPUTS": str(outputs)}, capture_output=True, text=True,
        timeout=900)  # fmt: skip
    assert done.returncode != 0
    assert "seedz: unknown key. Did you mean 'seeds'?" in done.stderr


# What follows needs a browser, and stands last: playwright's event loop suffers no other beside it.


@pytest.fixture(scope="module")
def browser():
    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("no Chromium on this machine; Debian's: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        made = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield made
        made.close()


def pages(outputs):
    reports = sorted((outputs / "quick" / "reports").glob("*.html"))
    return [outputs / "index.html", outputs / "quick" / "index.html", *reports]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pages_in_a_browser(outputs, browser, scheme):
    import axe_playwright_python

    axe = (Path(axe_playwright_python.__file__).parent / "axe.min.js").read_text()
    context = browser.new_context(color_scheme=scheme)
    tab, said, asked = context.new_page(), [], []
    tab.on("console", lambda message: said.append(message.text))
    tab.on("pageerror", lambda error: said.append(str(error)))
    tab.on("request", lambda request: asked.append(request.url))
    assert len(pages(outputs)) == 11
    for path in pages(outputs):
        for width in (360, 768, 1280):
            tab.set_viewport_size({"width": width, "height": 900})
            tab.goto(path.as_uri())
            wide = tab.evaluate("document.documentElement.scrollWidth")
            assert wide <= width, f"{path.name} is {wide} pixels wide at {width}"
            broken = "[...document.images].filter(i => !i.complete || !i.naturalWidth).length"
            assert tab.evaluate(broken) == 0, path.name
        for fold in tab.locator("details.code").all()[:2]:
            code = fold.locator("pre").first
            assert not code.is_visible()
            fold.locator("summary").click()
            assert code.is_visible()
        tab.evaluate(axe)
        found = tab.evaluate("axe.run()")["violations"]
        assert not found, [(path.name, v["id"], v["nodes"][0]["html"]) for v in found]
    context.close()
    assert not said
    assert {url.split(":")[0] for url in asked} <= {"file", "data"}


@pytest.fixture(scope="module")
def lab(outputs, tmp_path_factory):
    """JupyterLab on a copy of the notebooks: (its address, the folder)."""
    folder = tmp_path_factory.mktemp("lab")
    for path in NOTEBOOKS:
        shutil.copy(path, folder)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "jupyter", "lab", "--no-browser", "--allow-root",
               "--ip=127.0.0.1", f"--port={port}", "--ServerApp.port_retries=0",
               "--IdentityProvider.token=", f"--notebook-dir={folder}"]  # fmt: skip
    own = {"LTKD_OUTPUTS": str(outputs), "JUPYTER_CONFIG_DIR": str(folder / ".config"),
           "JUPYTERLAB_SETTINGS_DIR": str(folder / ".settings"),
           "JUPYTERLAB_WORKSPACES_DIR": str(folder / ".workspaces")}  # fmt: skip
    with (folder / ".log").open("w") as log:
        server = subprocess.Popen(command, env=os.environ | own, stdout=log, stderr=log)
    address, began = f"http://127.0.0.1:{port}", time.monotonic()
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # whatever http_proxy is
    while True:
        try:
            direct.open(f"{address}/api", timeout=5)
            break
        except OSError:
            assert server.poll() is None, (folder / ".log").read_text()
            assert time.monotonic() - began < 180
            time.sleep(0.5)
    yield address, folder
    server.terminate()
    server.wait(20)


def run_all(tab, path):
    """Run All Cells from the menu, and wait until each has run; the cells as they were saved."""
    began, asked, ran = time.monotonic(), -math.inf, False
    while True:
        if not ran and time.monotonic() - asked > 45:  # a click that came too early is lost
            tab.get_by_role("menuitem", name="Run", exact=True).click()
            tab.wait_for_timeout(1000)
            tab.get_by_role("menuitem", name="Run All Cells", exact=True).click()
            asked = time.monotonic()
        tab.wait_for_timeout(1000)
        tab.keyboard.press("Control+s")
        tab.wait_for_timeout(1000)
        cells = [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"]
        if all(cell.execution_count for cell in cells):
            return cells
        ran = any(cell.execution_count for cell in cells)
        errors = [o for c in cells for o in c.outputs if o.output_type == "error"]
        assert not errors, errors
        assert time.monotonic() - began < 600, "cells are still running"


@pytest.mark.parametrize("name", ["03_distillation", "explore"])
def test_in_jupyterlab(lab, browser, name):
    address, folder = lab
    tab = browser.new_page(viewport={"width": 1280, "height": 1000})
    tab.goto(f"{address}/lab/tree/{name}.ipynb?reset")
    tab.locator(".jp-Notebook .jp-Cell").first.wait_for(timeout=180_000)
    ready = tab.locator('.jp-Notebook-ExecutionIndicator[data-status="idle"]').first
    ready.wait_for(timeout=180_000, state="attached")  # before that, Run would ask for a kernel
    cells = run_all(tab, folder / f"{name}.ipynb")
    assert not [o for c in cells for o in c.outputs if o.output_type == "error"]
    if name == "explore":
        slider = tab.locator(".widget-hslider", has_text="groups")
        slider.scroll_into_view_if_needed()
        picture = tab.locator(".widget-html img").first
        before = picture.get_attribute("src")
        handle = slider.locator(".noUi-handle")
        handle.focus()
        handle.press("ArrowRight")
        tab.wait_for_function(
            "old => document.querySelector('.widget-html img')?.src !== old",
            arg=before, timeout=30_000)  # fmt: skip
        assert slider.locator(".widget-readout").inner_text() == "4"
    tab.close()
