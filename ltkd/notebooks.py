"""papermill, made safe: strict parameters, reports that are whole or absent, no kernel left behind.

A notebook runs headless in a kernel of its own, of this very interpreter. What it has done so far
is written to a hidden .part file; only when every cell ran does that become the report. After a
failure the last good report stays as it was and the failed copy stands beside it.
"""

import ast
import json
import os
import re
import signal
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from .files import MANIFEST, sha256, temporary_prefix, write_atomic
from .params import nearest

_WIDGET = "application/vnd.jupyter.widget-view+json"
_ANSI = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")
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
    env: Mapping[str, str] | None = None,
    halted: Callable[[], bool] = lambda: False,
) -> NotebookResult:
    """Run ``notebook`` with ``parameters``; leave <stem>.ipynb and <stem>.html in ``reports``.

    ``env`` is added to the kernel's environment. A failing cell and a dead kernel come back as a
    result with ``ok`` false. An unknown parameter or a value that is not plain data is a ValueError
    before anything starts. Where ``halted`` turned true meanwhile, a broken kernel was ended by us:
    that is raised, not reported.
    """
    import nbformat
    import papermill
    from papermill.execute import remove_error_markers

    from .report import page

    started = time.monotonic()
    notebook, reports = Path(notebook).resolve(), Path(reports).resolve()
    source = nbformat.read(notebook, as_version=4)
    _check_parameters(notebook, source, parameters)
    reports.mkdir(parents=True, exist_ok=True)
    stem = notebook.stem
    part = reports / f".{stem}.part.ipynb"  # papermill wants the suffix; the dot hides it
    report, (failed, failed_page) = reports / f"{stem}.ipynb", page.failed_copies(reports, stem)
    error: Exception | None = None
    try:
        with tempfile.TemporaryDirectory(prefix=temporary_prefix()) as scratch:
            try:
                papermill.execute_notebook(
                    notebook.as_posix().replace("{", "{{").replace("}", "}}"),  # it formats paths
                    part.as_posix().replace("{", "{{").replace("}", "}}"),
                    dict(parameters),
                    engine_name=_engine(),
                    progress_bar=False,
                    cell_folder=notebook.parent,
                    # No start-up files or hash seeds of the user's: the same records, same bytes.
                    cell_env={"IPYTHONDIR": scratch, "PYTHONHASHSEED": "0"} | dict(env or {}),
                    scratch=scratch,
                )
            except Exception as exception:
                error = exception
            log = Path(scratch, "kernel.log")
            said = log.read_text(errors="replace") if log.exists() else ""
        if error and halted():
            raise error
        if not part.exists():  # papermill did not get as far as writing
            raise error or RuntimeError(f"papermill wrote no output for {notebook.name}")
        executed = remove_error_markers(nbformat.read(part, as_version=4))
        raised, text = _failure(notebook, executed, error, said)
        text = text and f"{text}\n\nkept: {failed}"
        _settle(executed, source)
        seconds = time.monotonic() - started
        if text:
            write_atomic(failed, nbformat.writes(executed) + "\n")
            with suppress(Exception):  # the text and the failed notebook say it already
                html = page.html(executed, failed, manifest=None)
                write_atomic(failed_page, html)
            return NotebookResult(notebook, False, failed, seconds, raised, text)
        write_atomic(part, nbformat.writes(executed) + "\n")
        manifest = _manifest(executed)
        html = page.html(executed, report, manifest=manifest)
        tables = page.data_files(executed, stem)
        for old in set(reports.glob(f"{stem}.*.csv")) - {reports / name for name in tables}:
            old.unlink()
        for name, table in tables.items():
            write_atomic(reports / name, table)
        os.replace(part, report)
        write_atomic(report.with_suffix(".html"), html)
        for stale in (failed, failed_page):
            stale.unlink(missing_ok=True)
        if manifest is not None:  # last: a report is up to date when its manifest says so
            path = report.with_suffix(".manifest.json")
            whole = [report, report.with_suffix(".html"), *(reports / name for name in tables)]
            pages = {name.name: sha256(name) for name in whole}
            write_atomic(path, json.dumps(manifest | {"files": pages}, indent=1) + "\n")
        return NotebookResult(notebook, True, report, seconds)
    finally:
        part.unlink(missing_ok=True)


def execute_all(
    notebooks: Sequence[Path],
    parameters: Mapping[str, Any],
    reports: Path,
    *,
    jobs: int = 1,
    env: Mapping[str, str] | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> list[NotebookResult]:
    """Run several notebooks in the order of their names, two at a time where ``jobs`` allows.

    One that fails does not stop the others. Kernels get OMP_NUM_THREADS=1 unless ``env`` differs.
    All parameters are checked before the first notebook starts. Once ``stop()`` is true the kernels
    end at once; notebooks that had not finished are left as they were and out of the results.
    """
    import nbformat

    from .report import page

    ordered = sorted((Path(n) for n in notebooks), key=lambda n: n.name)
    for notebook in ordered:
        _check_parameters(notebook, nbformat.read(notebook, as_version=4), parameters)
    halt, settings = threading.Event(), {"OMP_NUM_THREADS": "1"} | dict(env or {})

    def one(path: Path) -> NotebookResult | None:
        try:
            if halt.is_set():
                return None
            return execute(path, parameters, reports, env=settings, halted=halt.is_set)
        except Exception as error:  # a fault of ours or of the disk: say it, go on with the rest
            text = str(error) if isinstance(error, OSError) else traceback.format_exc()
            copy, _ = page.failed_copies(Path(reports), path.stem)
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


def _manifest(executed: Any) -> dict[str, Any] | None:
    """The sealed manifest that an executed notebook carries as an output (``Study.seal``)."""
    for cell in reversed(executed.cells):
        for output in cell.get("outputs", []):
            if MANIFEST in output.get("data", {}):
                return dict(json.loads(json.dumps(output["data"][MANIFEST])))  # plain, no nodes
    return None


def _check_parameters(notebook: Path, source: Any, parameters: Mapping[str, Any]) -> None:
    """Refuse what papermill would only warn about (unknown names) or turn into code (objects)."""
    cell = next((c for c in source.cells if "parameters" in c.metadata.get("tags", [])), None)
    known = _assigned(cell.source) if cell is not None else []
    for name, value in parameters.items():
        if name not in known:
            hint = nearest(name, known or ["none: no cell is tagged `parameters`"])
            raise ValueError(f"{notebook.name}: unknown parameter {name!r} = {value!r}.{hint}")
        _check_plain(f"{notebook.name}: parameter {name}", value)


def _assigned(source: str) -> list[str]:
    """Names that a cell assigns at its top level, in order."""
    names: list[str] = []
    for node in ast.parse(source).body:
        targets = node.targets if isinstance(node, ast.Assign) else []
        targets = [node.target] if isinstance(node, ast.AnnAssign) else targets
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


@cache
def _engine() -> str:
    """Register, once, a papermill engine that owns its kernel from start to end; give its name."""
    from ipykernel.kernelspec import get_kernel_dict
    from jupyter_client import AsyncKernelManager
    from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
    from papermill.clientwrap import PapermillNotebookClient
    from papermill.engines import NBClientEngine, papermill_engines

    class ThisPython(KernelSpecManager):
        # A kernel that the user once installed as "python3" may be of another environment.
        def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
            return KernelSpec(**get_kernel_dict())

    class OwnKernel(NBClientEngine):
        @classmethod
        def nb_kernel_name(cls, nb: Any, name: str | None = None) -> str:
            return "python3"

        @classmethod
        def nb_language(cls, nb: Any, language: str | None = None) -> str:
            return "python"

        @classmethod
        def execute_managed_notebook(
            cls, nb_man: Any, kernel_name: str, start_timeout: int = 60, **options: Any
        ) -> None:
            scratch = options["scratch"]
            # Sockets in a folder of ours rather than ports that the whole machine can reach;
            # their paths have a limit of about a hundred characters.
            ipc = os.name == "posix" and len(scratch) < 80
            manager = AsyncKernelManager(
                kernel_name=kernel_name,
                kernel_spec_manager=ThisPython(),
                connection_file=os.path.join(scratch, "kernel.json"),
                **({"transport": "ipc", "ip": os.path.join(scratch, "k")} if ipc else {}),
            )
            client = PapermillNotebookClient(
                nb_man,
                km=manager,
                kernel_name=kernel_name,
                startup_timeout=start_timeout,
                coalesce_streams=True,
                record_timing=False,
            )
            _LIVE.add(manager)
            try:
                # papermill's own cwd= changes the directory of the whole process: not with two.
                with open(os.path.join(scratch, "kernel.log"), "wb") as log:
                    client.execute(
                        cleanup_kc=True,
                        cwd=str(options["cell_folder"]),
                        env=os.environ | options["cell_env"],
                        stdout=log,
                        stderr=log,
                    )
            finally:
                _kill_group(manager)  # also what the kernel had started and left
                _LIVE.discard(manager)
                _close_loop()

    papermill_engines.register("ltkd", OwnKernel)
    return "ltkd"


def _close_loop() -> None:
    """Close the event loop that jupyter_client made for this thread, unless it is in use."""
    import asyncio

    from jupyter_core.utils import ensure_event_loop

    with suppress(RuntimeError):
        asyncio.get_running_loop()
        return
    ensure_event_loop().close()


def _kill_group(manager: Any) -> None:
    """Kill the kernel and its children: the kernel leads a process group of its own."""
    group = getattr(manager.provisioner, "pgid", None)
    if group and group != os.getpgrp():
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(group, signal.SIGKILL)


def _failure(notebook: Path, executed: Any, error: Exception | None, said: str) -> tuple[str, str]:
    """Class of the exception and a readable account of it; two empty texts when all cells ran.

    ``said`` is what the kernel's process printed past its notebook: a crash speaks only there.
    """
    begun, broken = None, None
    for index, cell in enumerate(executed.cells):
        state = cell.metadata.get("papermill", {})
        begun = index if state.get("start_time") else begun
        outputs = cell.get("outputs", [])
        # SystemExit(0) leaves the rest unrun without papermill calling it an error: we do.
        if state.get("exception") or any(o.output_type == "error" for o in outputs):
            broken = index
            break
    if broken is None and error is None:
        return "", ""
    at = broken if broken is not None else begun  # a dead kernel marks no cell
    in_cell = error is None or type(error).__name__ == "PapermillExecutionError"
    name, value = type(error).__name__, str(error)
    trace = [value, *said.splitlines()[-20:]]
    where, code = "before its first cell", ""
    if at is not None:
        cell = executed.cells[at]
        where = f"in cell {at + 1} of {len(executed.cells)} (In [{cell.get('execution_count')}])"
        code = "\n".join(f"    | {line}" for line in cell.source.splitlines())
        for output in cell.get("outputs", []):
            if output.output_type == "error" and in_cell:
                name, value = output.ename, output.evalue
                trace = "\n".join(output.traceback).splitlines()
    if len(trace) > _LINES:
        trace = [*trace[:10], f"... {len(trace) - _LINES} lines ...", *trace[10 - _LINES :]]
    first = _ANSI.sub("", value).strip().splitlines()
    title = f"{notebook.name} failed {where} with {name}" + (f": {first[0]}" if first else "")
    body = _ANSI.sub("", "\n".join(trace)).strip()
    return name, "\n\n".join(x for x in (title, code, body) if x)


def _settle(executed: Any, source: Any) -> None:
    """Take out what differs between two runs that did the same: times, paths, random names."""
    executed.metadata.pop("papermill", None)
    executed.metadata.pop("widgets", None)
    known = {cell.get("id") for cell in source.cells}
    for index, cell in enumerate(executed.cells):
        cell.metadata.pop("papermill", None)
        cell.metadata.pop("execution", None)
        for output in cell.get("outputs", []):
            if _WIDGET in output.get("data", {}):  # it has a random name, and needs a kernel
                output["data"] = {"text/markdown": "*Sliders, in a notebook with a kernel.*"}
        if cell.get("id") not in known:
            cell["id"] = f"cell-{index}"
