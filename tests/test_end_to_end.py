"""The quick study for real: one store, each notebook in three ways, and nothing done twice."""

import json
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
LTKD = [sys.executable, "-m", "ltkd.cli"]
PAPERMILL = [sys.executable, "-m", "papermill"]
pytestmark = pytest.mark.end_to_end


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    """The quick study made once, as `make study` makes it."""
    folder = tmp_path_factory.mktemp("outputs")
    command = [*LTKD, "run", "params/quick.yaml", "--outputs", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=840)
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.splitlines()[-1] == str(folder / "quick" / "index.html")
    return folder


def snapshot(folder):
    return {p: p.stat().st_mtime_ns for p in sorted(folder.rglob("*")) if p.is_file()}


def test_the_study_is_whole(outputs):
    study = outputs / "quick"
    names = [path.stem for path in NOTEBOOKS]
    assert len(names) == 7
    for name in names:
        assert (study / "reports" / f"{name}.html").stat().st_size > 10_000
        manifest = json.loads((study / "reports" / f"{name}.manifest.json").read_text())
        assert manifest["data"]["title"] == "Digits-LT"
    assert len(list((study / "runs").iterdir())) == 71
    assert len(list((study / "teachers").iterdir())) == 1
    index = (study / "index.html").read_text()
    assert all(f"reports/{name}.html" in index for name in names)
    assert not [
        p for p in outputs.rglob("*") if p.suffix in {".part", ".lock"} or "failed" in p.name
    ]
    assert str(ROOT) not in index
    rows = (study / "runs.csv").read_text().splitlines()
    assert len(rows) == 1 + 1 + 40 + 25 + 20


def test_pages_ask_for_nothing_from_outside(outputs):
    for page in outputs.rglob("*.html"):
        text = page.read_text()
        assert not re.findall(r"""(?:src|href)=["']?(?:https?:)?//""", text), page
        assert "Content-Security-Policy" in text
        assert str(ROOT) not in text


def test_a_second_call_does_nothing_and_says_why(outputs):
    before, began = snapshot(outputs), resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    command = [*LTKD, "run", "params/quick.yaml", "--outputs", str(outputs)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
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
        notebook, timeout=300, resources={"metadata": {"path": ROOT / "notebooks"}}
    ).execute()
    assert snapshot(outputs / "quick" / "runs") == records


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_plain_papermill(outputs, path, tmp_path):
    out = tmp_path / "out.ipynb"
    done = subprocess.run(
        [*PAPERMILL, str(path), str(out), "-f", "params/quick.yaml", "--no-progress-bar"],
        cwd=ROOT, env=os.environ | {"LTKD_OUTPUTS": str(outputs)}, capture_output=True, text=True,
        timeout=300)  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "unknown parameter" not in done.stderr.lower()
    cells = nbformat.read(out, as_version=4).cells
    assert all(cell.execution_count for cell in cells if cell.cell_type == "code")


def test_plain_papermill_refuses_a_misspelt_parameter(outputs, tmp_path):
    done = subprocess.run(
        [*PAPERMILL, str(NOTEBOOKS[0]), str(tmp_path / "x.ipynb"), "-p", "seedz", "1"],
        cwd=ROOT, env=os.environ | {"LTKD_OUTPUTS": str(outputs)}, capture_output=True, text=True,
        timeout=300)  # fmt: skip
    assert done.returncode != 0
    assert "seedz: unknown key. Did you mean 'seeds'?" in done.stderr
