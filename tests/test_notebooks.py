"""papermill made safe: whole reports or none, parameters as data, no kernel left behind."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from hashlib import sha256
from pathlib import Path

import nbformat
import psutil
import pytest

from ltkd.files import MANIFEST
from ltkd.notebooks import NotebookResult, execute, execute_all

PYTHON = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}


def notebook(path: Path, *cells: str, parameters: str = "gamma = 10.0\nnote = ''\n") -> Path:
    first = nbformat.v4.new_code_cell(parameters, id="parameters")
    first.metadata.tags = ["parameters"]
    rest = [nbformat.v4.new_code_cell(text, id=f"code-{i}") for i, text in enumerate(cells)]
    title = nbformat.v4.new_markdown_cell("# A question?\n\nIts first paragraph.", id="title")
    nbformat.write(nbformat.v4.new_notebook(metadata=PYTHON, cells=[title, first, *rest]), path)
    return path


def printed(result: NotebookResult) -> str:
    cells = nbformat.read(result.report, as_version=4).cells
    return "".join(o.text for c in cells for o in c.get("outputs", []) if "text" in o)


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_success_leaves_report_and_page_and_runs_beside_the_notebook(tmp_path: Path) -> None:
    source = notebook(tmp_path / "01_a{b}.ipynb", "import os\nprint(gamma, os.getcwd())")
    result = execute(source, {"gamma": 100.0}, tmp_path / "reports")
    assert result.ok, result.error
    assert printed(result) == f"100.0 {tmp_path}\n"
    assert names(tmp_path / "reports") == ["01_a{b}.html", "01_a{b}.ipynb"]
    assert Path.cwd() != tmp_path


def test_failure_keeps_last_good_report_and_success_clears_the_failed_copy(tmp_path: Path) -> None:
    source = notebook(tmp_path / "nb.ipynb", "assert gamma < 50, 'too\\n large'", "print('end')")
    reports = tmp_path / "reports"
    assert execute(source, {"gamma": 1.0}, reports).ok
    good = (reports / "nb.ipynb").read_bytes(), (reports / "nb.html").read_bytes()

    result = execute(source, {"gamma": 99.0}, reports)
    assert not result.ok
    assert result.error_name == "AssertionError"
    assert result.report == reports / "nb.failed.ipynb"
    for part in [
        "cell 4 of 5 (In [3])",
        "    | assert gamma < 50",
        "AssertionError: too",
        "kept: ",
    ]:
        assert part in result.error
    assert "\x1b" not in result.error
    assert "papermill-error" not in result.report.read_text()
    assert "This run failed" in (reports / "nb.failed.html").read_text()
    assert ((reports / "nb.ipynb").read_bytes(), (reports / "nb.html").read_bytes()) == good

    assert execute(source, {"gamma": 1.0}, reports).ok
    assert names(reports) == ["nb.html", "nb.ipynb"]


def test_the_manifest_that_a_notebook_carries_is_stored_beside_its_report(tmp_path: Path) -> None:
    sealed = {"notebook": "nb", "data": {"title": "Digits-LT"}, "seal": "0123456789abcdef"}
    code = f"from IPython.display import display\ndisplay({{{MANIFEST!r}: {sealed!r}}}, raw=True)"
    reports = tmp_path / "reports"
    assert execute(notebook(tmp_path / "nb.ipynb", code), {}, reports).ok
    stored = json.loads((reports / "nb.manifest.json").read_text())
    pages = {n: sha256((reports / n).read_bytes()).hexdigest() for n in ("nb.ipynb", "nb.html")}
    assert stored == sealed | {"files": pages}
    page = (reports / "nb.html").read_text()
    assert "Digits-LT" in page
    assert "nb.manifest.json" in page


def test_a_cell_that_exits_quietly_is_a_failure(tmp_path: Path) -> None:
    source = notebook(tmp_path / "nb.ipynb", "raise SystemExit(0)", "print('never')")
    result = execute(source, {}, tmp_path / "reports")
    assert not result.ok
    assert result.error_name == "SystemExit"
    assert not (tmp_path / "reports/nb.ipynb").exists()


def test_a_dead_kernel_is_a_result(tmp_path: Path) -> None:
    cell = "import os\nos.write(2, b'out of memory')\nos._exit(9)"
    result = execute(notebook(tmp_path / "nb.ipynb", cell), {}, tmp_path / "reports")
    assert (result.ok, result.error_name) == (False, "DeadKernelError")
    assert "cell 3 of 3" in result.error
    assert "    | import" in result.error
    assert result.seconds < 30


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        (
            {"gama": 3},
            r"nb.ipynb: unknown parameter 'gama' = 3. Did you mean 'gamma'\?.*gamma, note",
        ),
        ({"helper": 3}, r"unknown parameter 'helper' = 3. Allowed: gamma"),
        ({"note": Path("x")}, r"parameter note = .*is a PosixPath; allowed are"),
        ({"note": [1, {2: "x"}]}, r"parameter note\[1\]: key 2 is a int; quote it"),
        ({"note": {"a": (1, 2)}}, r"parameter note\.a = \(1, 2\) is a tuple"),
    ],
)
def test_wrong_parameters_are_refused_before_anything_starts(
    tmp_path: Path, parameters: dict[str, object], message: str
) -> None:
    # `helper` is assigned, but below the top level: no parameter.
    text = "gamma = 1.0\nnote: dict = dict(\n    a=1,\n)\nif gamma:\n    helper = 2"
    source = notebook(tmp_path / "nb.ipynb", parameters=text)
    with pytest.raises(ValueError, match=message):
        execute(source, parameters, tmp_path / "reports")
    with pytest.raises(ValueError, match=message):
        execute_all([source], parameters, tmp_path / "reports")
    assert not (tmp_path / "reports").exists()


def test_values_arrive_as_data_never_as_code(tmp_path: Path) -> None:
    harm = tmp_path / "harm"
    attack = f"__import__('os').mkdir({str(harm)!r})"
    value = {
        "plain": attack,
        "quotes": f'"; {attack} #',
        "triple": f'\'\'\'"""\\"; {attack}',
        "lines": "a\nb\r\n\tc\\n\u2028\x00 ü ",
        f'key"; {attack} #': [None, True, -0.0, 1e-300, 10**30, [], {}],
        "braces": "{gamma} %s $x$ {{",
    }
    body = "import json\nprint(json.dumps([gamma, note], sort_keys=True))"
    source = notebook(tmp_path / "nb.ipynb", body)
    result = execute(source, {"gamma": math.nan, "note": value}, tmp_path / "reports")
    assert result.ok, result.error
    gamma, note = json.loads(printed(result))
    assert math.isnan(gamma)
    assert note == value
    assert not harm.exists()


def test_the_same_work_gives_the_same_bytes(tmp_path: Path) -> None:
    body = "import sys\nprint({'b', 'a', 'c'})\nprint('x', file=sys.stderr)\nprint('y')\n{'k': 1}"
    source = notebook(tmp_path / "nb.ipynb", body)
    made = []
    for folder in ("one", "two"):
        assert execute(source, {"gamma": 2.0}, tmp_path / folder).ok
        made.append((tmp_path / folder / "nb.ipynb").read_bytes())
    assert made[0] == made[1]
    for volatile in (b"papermill", b"start_time", b"iopub", str(tmp_path).encode()):
        assert volatile not in made[0]


def test_all_run_in_order_of_names_beside_each_other_and_one_failure_stops_none(
    tmp_path: Path,
) -> None:
    # Each waits for the other's file: it ends only when both run at a time.
    wait = "import time, pathlib\n"
    meet = "pathlib.Path('{0}').touch()\nwhile not pathlib.Path('{1}').exists(): time.sleep(0.05)"
    b = notebook(tmp_path / "b.ipynb", wait + meet.format("b", "a"), "1 / 0")
    a = notebook(tmp_path / "a.ipynb", wait + meet.format("a", "b"))
    c = notebook(tmp_path / "c.ipynb", "import os\nprint(os.environ['OMP_NUM_THREADS'])")
    end = time.monotonic() + 60
    results = execute_all(
        [c, b, a], {}, tmp_path / "reports", jobs=4, stop=lambda: time.monotonic() > end
    )
    assert [(r.notebook.name, r.ok) for r in results] == [
        ("a.ipynb", True), ("b.ipynb", False), ("c.ipynb", True)
    ]  # fmt: skip
    assert results[1].error_name == "ZeroDivisionError"
    assert printed(results[2]) == "1\n"


def test_stop_ends_what_runs_and_leaves_it_out(tmp_path: Path) -> None:
    touch = "import pathlib, time\npathlib.Path('began').touch()\n"
    a = notebook(tmp_path / "a.ipynb", "1")
    b = notebook(tmp_path / "b.ipynb", touch + "time.sleep(90)")
    c = notebook(tmp_path / "c.ipynb", "1")
    results = execute_all([a, b, c], {}, tmp_path / "out", stop=(tmp_path / "began").exists)
    assert [(r.notebook.name, r.ok) for r in results] == [("a.ipynb", True)]
    assert names(tmp_path / "out") == ["a.html", "a.ipynb"]


SCRIPT = """
import signal, sys
from pathlib import Path
from ltkd.notebooks import execute, execute_all
signal.signal(signal.SIGINT, signal.default_int_handler)  # a suite started with & ignores it
source, reports = Path(sys.argv[1]), Path(sys.argv[2])
execute_all([source], {}, reports) if sys.argv[3] == "all" else execute(source, {}, reports)
"""


@pytest.mark.parametrize(
    ("how", "sent"),
    [("one", signal.SIGKILL), ("one", signal.SIGINT), ("all", signal.SIGINT)],
)
def test_no_kernel_outlives_the_parent_and_half_a_report_is_never_seen(
    tmp_path: Path, how: str, sent: signal.Signals
) -> None:
    body = (
        "import os, pathlib, subprocess, time\n"
        "child = subprocess.Popen(['sleep', '90'])\n"
        "pathlib.Path('pids').write_text(f'{os.getpid()} {child.pid}')\ntime.sleep(90)"
    )
    source, reports = notebook(tmp_path / "nb.ipynb", body), tmp_path / "reports"
    command = [sys.executable, "-c", SCRIPT, str(source), str(reports), how]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as parent:
        pids = tmp_path / "pids"
        until(lambda: pids.exists() and len(pids.read_text().split()) == 2, 60)  # a kernel's start
        kernel, child = map(int, pids.read_text().split())
        assert os.getpgid(kernel) == kernel
        assert [n for n in names(reports) if not n.startswith(".")] == []
        parent.send_signal(sent)
        parent.wait(20)
        assert parent.returncode != 0
    try:
        until(lambda: not alive(kernel))
        if sent == signal.SIGINT:
            until(lambda: not alive(child))
            assert names(reports) == []
    finally:
        for pid in (kernel, child):
            if alive(pid):
                os.kill(pid, signal.SIGKILL)


def alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def until(true: object, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not true():  # type: ignore[operator]
        assert time.monotonic() < end, "not in time"
        time.sleep(0.05)


def test_library_imports_no_papermill_at_the_top() -> None:
    code = "import sys, ltkd.notebooks, ltkd.report.page; print(*sys.modules)"
    command = [sys.executable, "-c", code]
    loaded = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert not {"papermill", "nbconvert", "nbformat", "torch", "matplotlib"} & set(loaded)
