"""papermill, made safe: strict parameters, reports that are whole or absent, no kernel left behind.

A notebook gets its parameters as papermill writes them and runs headless, by nbclient, in a kernel
of its own, of this very interpreter. Only when every cell ran does it become the report. After a
failure the last good report stays as it was and the failed copy stands beside it.
"""

import ast
import json
import math
import os
import signal
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .files import sha256, write_atomic
from .params import nearest

MANIFEST = "application/vnd.ltkd.manifest+json"  # the output that carries a notebook's manifest

_LINES = 60  # of a traceback: the end of a terminal's output should still fit a screen or two
_LIVE: set[Any] = set()  # managers of the kernels now running, for a quick end on Ctrl-C


@dataclass(frozen=True)
class NotebookResult:
    """What came of one notebook: the report when ``ok``, else the failed copy and why."""

    notebook: Path
    ok: bool
    report: Path  # executed .ipynb: <stem>.ipynb, or <stem>.failed.ipynb
    seconds: float
    error_name: str = ""  # exception class raised in the notebook, such as "ValueError"
    error: str = ""  # failing cell, its source, its traceback: for the end of the terminal output


def execute(
    notebook: Path,
    parameters: Mapping[str, Any],
    reports: Path,
    *,
    timeout: float | None = None,
    env: Mapping[str, str] | None = None,
    halted: Callable[[], bool] = lambda: False,
) -> NotebookResult:
    """Run ``notebook`` with ``parameters``; leave <stem>.ipynb and <stem>.html in ``reports``.

    ``timeout`` is in seconds for the whole notebook; ``env`` is added to the kernel's environment.
    A failing cell, a dead kernel and a timeout come back as a result with ``ok`` false. An unknown
    parameter or a value that is not plain data is a ValueError before anything starts. Where
    ``halted`` turned true meanwhile, a broken kernel was ended by us: that is raised, not reported.
    """
    import nbformat
    from papermill.translators import translate_parameters

    from .report import page

    started = time.monotonic()
    notebook, reports = Path(notebook).resolve(), Path(reports).resolve()
    made = nbformat.read(notebook, as_version=4)
    place = _check_parameters(notebook, made, parameters)
    if parameters:
        code = translate_parameters("python3", "python", parameters)
        cell = nbformat.v4.new_code_cell(code, id="injected-parameters")
        cell.metadata.tags = ["injected-parameters"]
        made.cells.insert(place + 1, cell)
    reports.mkdir(parents=True, exist_ok=True)
    report, failed = (reports / f"{notebook.stem}{kind}.ipynb" for kind in ("", ".failed"))
    at, error, said = _run(made, notebook.parent, timeout, env or {})
    seconds = time.monotonic() - started
    if error:
        if halted():
            raise error
        name, text = _account(notebook, made.cells, at, error, said)
        write_atomic(failed, nbformat.writes(made) + "\n")
        with suppress(Exception):  # the text and the failed notebook say it already
            write_atomic(failed.with_suffix(".html"), page.html(made, failed, manifest=None))
        return NotebookResult(notebook, False, failed, seconds, name, f"{text}\n\nkept: {failed}")
    shown = [output.get("data", {}) for cell in made.cells for output in cell.get("outputs", [])]
    manifest = next((data[MANIFEST] for data in shown if MANIFEST in data), None)
    html = page.html(made, report, manifest=manifest)
    write_atomic(report, nbformat.writes(made) + "\n")
    write_atomic(report.with_suffix(".html"), html)
    if manifest is not None:  # last: a report is up to date when its manifest says so
        pages = {path.name: sha256(path) for path in (report, report.with_suffix(".html"))}
        text = json.dumps(manifest | {"files": pages}, indent=1) + "\n"
        write_atomic(report.with_suffix(".manifest.json"), text)
    for stale in (failed, failed.with_suffix(".html")):
        stale.unlink(missing_ok=True)
    return NotebookResult(notebook, True, report, seconds)


def _run(
    notebook: Any, folder: Path, timeout: float | None, env: Mapping[str, str]
) -> tuple[int | None, Exception | None, str]:
    """Run the cells in ``folder``, in a kernel of this very interpreter; the outputs go into them.

    Returns the cell it came to, the exception that ended it there, and what the kernel's process
    printed past its notebook: a crash speaks only there.
    """
    from jupyter_client import AsyncKernelManager
    from jupyter_client.kernelspec import KernelSpecManager
    from jupyter_core.utils import ensure_event_loop
    from nbclient import NotebookClient

    deadline = time.monotonic() + (timeout or 0)
    at, error = None, None
    with tempfile.TemporaryDirectory(prefix="ltkd-") as scratch:
        # Sockets in a folder of ours rather than ports that the whole machine can reach;
        # their paths have a limit of about a hundred characters.
        ipc = {"transport": "ipc", "ip": f"{scratch}/k"} if len(scratch) < 80 else {}
        manager = AsyncKernelManager(
            # No folders: one that the user once installed as "python3" may be of another Python.
            kernel_spec_manager=KernelSpecManager(kernel_dirs=[]),
            connection_file=f"{scratch}/kernel.json",
            **ipc,
        )
        client: Any = NotebookClient(
            notebook,
            km=manager,
            timeout_func=lambda _: timeout and max(1, math.ceil(deadline - time.monotonic())),
            coalesce_streams=True,
            record_timing=False,
            raise_on_iopub_timeout=True,
        )
        client.reset_execution_trackers()
        # No start-up files or hash seeds of the user's: the same records, the same bytes.
        own = {"IPYTHONDIR": scratch, "PYTHONHASHSEED": "0"}
        options = {"cwd": str(folder), "env": {**os.environ, **own, **env}, "cleanup_kc": True}
        log = Path(scratch, "kernel.log")
        _LIVE.add(manager)
        try:
            with log.open("wb") as out, client.setup_kernel(stdout=out, stderr=out, **options):
                for at, cell in enumerate(notebook.cells):
                    client.execute_cell(cell, at)
                info = client.wait_for_reply(client.kc.kernel_info())
                notebook.metadata["language_info"] = info["content"]["language_info"]
        except Exception as exception:
            error = exception
        finally:
            _kill_group(manager)  # also what the kernel had started and left
            _LIVE.discard(manager)
            with suppress(RuntimeError):  # the loop is the caller's own, and in use
                ensure_event_loop().close()  # else jupyter_client made it for this thread
        return at, error, log.read_text(errors="replace")


def execute_all(
    notebooks: Sequence[Path],
    parameters: Mapping[str, Any],
    reports: Path,
    *,
    jobs: int = 1,
    timeout: float | None = None,
    env: Mapping[str, str] | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> list[NotebookResult]:
    """Run several notebooks in the order of their names, two at a time where ``jobs`` allows.

    One that fails does not stop the others. Kernels get OMP_NUM_THREADS=1 unless ``env`` differs.
    All parameters are checked before the first notebook starts. Once ``stop()`` is true the kernels
    end at once; notebooks that had not finished are left as they were and out of the results.
    """
    import nbformat

    ordered = sorted((Path(n) for n in notebooks), key=lambda n: n.name)
    for notebook in ordered:
        _check_parameters(notebook, nbformat.read(notebook, as_version=4), parameters)
    halt, settings = threading.Event(), {"OMP_NUM_THREADS": "1"} | dict(env or {})

    def one(path: Path) -> NotebookResult | None:
        options: dict[str, Any] = {"timeout": timeout, "env": settings, "halted": halt.is_set}
        try:
            return None if halt.is_set() else execute(path, parameters, reports, **options)
        except Exception as error:  # a fault of ours or of the disk: say it, go on with the rest
            text, copy = traceback.format_exc(), Path(reports) / f"{path.stem}.failed.ipynb"
            failure = NotebookResult(path, False, copy, 0, type(error).__name__, f"{path}: {text}")
            return None if halt.is_set() else failure

    with ThreadPoolExecutor(max_workers=min(2, max(1, jobs))) as pool:
        futures = [pool.submit(one, notebook) for notebook in ordered]
        try:
            while wait(futures, timeout=0.2).not_done and not stop():
                pass
        finally:  # also on Ctrl-C; when all are done there is nothing to do here
            halt.set()
            while not all(future.done() for future in futures):
                for manager in list(_LIVE):  # again and again: one may only just be starting
                    _kill_group(manager)
                time.sleep(0.1)
    return [result for future in futures if (result := future.result())]


def _check_parameters(notebook: Path, made: Any, parameters: Mapping[str, Any]) -> int:
    """Refuse unknown names, and values that papermill would turn into code; else give the place of
    the cell tagged ``parameters``, -1 where there is none."""
    tagged = (i for i, c in enumerate(made.cells) if "parameters" in c.metadata.get("tags", []))
    place = next(tagged, -1)
    known = _assigned(made.cells[place].source) if place >= 0 else []
    for name, value in parameters.items():
        if name not in known:
            hint = nearest(name, known or ["none: no cell is tagged `parameters`"])
            raise ValueError(f"{notebook.name}: unknown parameter {name!r} = {value!r}.{hint}")
        _check_plain(f"{notebook.name}: parameter {name}", value)
    return place


def _assigned(source: str) -> list[str]:
    """Names that a cell assigns at its top level, in order."""
    names: list[str] = []
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names += [target.id for target in targets if isinstance(target, ast.Name)]
    return names


def _check_plain(where: str, value: Any) -> None:
    # papermill writes other types, and keys that are not text, with a bare str(): that would be
    # code. Exact types, because a subclass may print itself as anything.
    if type(value) is list:
        for index, item in enumerate(value):
            _check_plain(f"{where}[{index}]", item)
    elif type(value) is dict:
        for key, item in value.items():
            if type(key) is not str:
                raise ValueError(f"{where}: key {key!r} is a {type(key).__name__}; quote it")
            _check_plain(f"{where}.{key}", item)
    elif type(value) not in (type(None), bool, int, float, str):
        raise ValueError(
            f"{where} = {value!r} is a {type(value).__name__}; "
            "allowed are null, true/false, numbers, text, lists and mappings of these"
        )


def _kill_group(manager: Any) -> None:
    """Kill the kernel and its children: the kernel leads a process group of its own."""
    group = getattr(manager.provisioner, "pgid", None)
    if group and group != os.getpgrp():
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(group, signal.SIGKILL)


def _account(
    notebook: Path, cells: Sequence[Any], at: int | None, error: Exception, said: str
) -> tuple[str, str]:
    """Class of the exception and a readable account of it; arguments as ``_run`` returns them."""
    from nbclient.exceptions import CellExecutionError
    from nbconvert.filters import strip_ansi

    name, value, where, code = type(error).__name__, str(error), "before its first cell", ""
    trace = [value, *said.splitlines()[-20:]]
    if at is not None:
        cell = cells[at]
        where = f"in cell {at + 1} of {len(cells)} (In [{cell.get('execution_count')}])"
        code = "\n".join(f"    | {line}" for line in cell.source.splitlines())
        if isinstance(error, CellExecutionError):
            name, value = error.ename, error.evalue
            lines = [line for output in cell.outputs for line in output.get("traceback", [])]
            trace = "\n".join(lines).splitlines()
    if len(trace) > _LINES:
        trace = [*trace[:10], f"... {len(trace) - _LINES} lines ...", *trace[10 - _LINES :]]
    first = strip_ansi(value).strip().partition("\n")[0]
    title = f"{notebook.name} failed {where} with {name}" + (f": {first}" if first else "")
    return name, "\n\n".join(filter(None, (title, code, strip_ansi("\n".join(trace)).strip())))
