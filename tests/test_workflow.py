"""The study as a DAG for a cluster, without running it: a job a run, a job a notebook."""

import json
import re
import shlex
import subprocess
import sys
import tomllib
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
WORKFLOW = ROOT / "ltkd" / "workflow"
# With two seeds: a teacher, and for each seed a student, KD, and LTKD at 1 and at 3 groups.
GRID = "name: tiny\nmethods: [student, kd]\nablations: [baseline]\ngroup_counts: [1, 3]\n"


@pytest.fixture(scope="module")
def jobs(tmp_path_factory):
    """Each job of a dry run, as the engine shows it: a list of {field: text}; and the outputs."""
    if find_spec("snakemake") is None:
        pytest.skip("snakemake is not installed: pip install 'ltkd[workflow]'")
    folder = tmp_path_factory.mktemp("a folder")
    (folder / "tiny.yaml").write_text(GRID)
    run = json.dumps([f"{folder}/tiny.yaml", "-p", "seeds", "[0, 1]", "--outputs", f"{folder}/o"])
    command = [sys.executable, "-m", "snakemake", "-n", "-p", "-s", str(WORKFLOW / "Snakefile"),
               "--workflow-profile", str(WORKFLOW / "profiles" / "local"),
               "--directory", str(folder), "--config", f"run={run}", "budget=50m"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found = []
    for rule, body in re.findall(r"^rule (\w+):\n(.*?)(?=^\[|\Z)", done.stdout, re.M | re.S):
        fields = dict(re.findall(r"^    (\w+): (.*)$", body, re.M))
        shell = re.search(r"^Shell command: (.*)$", body, re.M)
        found.append({"rule": rule, **fields, "shell": shell[1] if shell else ""})
    assert not (folder / "o").exists()
    return found, folder / "o" / "tiny"


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ("budget=9x", "'9x' should be a time"),
        ("run=params/quick.yaml --dry-run", "not allowed with"),
    ],
)
def test_what_every_job_would_refuse_is_refused_by_the_plan(tmp_path, config, says):
    if find_spec("snakemake") is None:
        pytest.skip("snakemake is not installed: pip install 'ltkd[workflow]'")
    command = [sys.executable, "-m", "snakemake", "-n", "-s", str(WORKFLOW / "Snakefile"),
               "--directory", str(tmp_path), "--config", config]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert done.returncode
    assert says in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr


def test_a_job_a_run_and_a_job_a_notebook(jobs):
    found, study = jobs
    assert Counter(job["rule"] for job in found) == {"run": 9, "notebook": 9, "all": 1}
    records = {job["output"].split(" (")[0] for job in found if job["rule"] == "run"}
    assert len(records) == 9
    assert all(re.fullmatch(rf"{study}/runs/[0-9a-f]{{16}}/record.json", path) for path in records)


def test_teachers_before_students_and_runs_before_notebooks(jobs):
    found, _ = jobs
    runs = [job for job in found if job["rule"] == "run"]
    (teacher,) = {job["input"] for job in runs if "input" in job}
    alone = [job for job in runs if "input" not in job]
    assert len(alone) == 3  # the teacher itself and, for each seed, the student without one
    assert teacher in {job["output"].split(" (")[0] for job in alone}
    records = {job["output"].split(" (")[0] for job in runs}
    for job in found:
        if job["rule"] == "notebook":
            *needed, source = job["input"].split(", ")
            assert set(needed) == records
            assert Path(source).stem == job["wildcards"].removeprefix("notebook=")
            assert source.endswith(".ipynb")


def test_jobs_are_plain_commands_and_the_executed_notebook_is_a_log(jobs):
    found, study = jobs
    for job in found:
        value = job.get("wildcards", "").partition("=")[2]
        if job["rule"] == "run":
            command, _, guard = job["shell"].partition(" || ")
            record = study / "runs" / value / "record.json"
            assert shlex.split(command)[-4:] == ["--budget", "50m", "--run", value]
            assert shlex.split(guard) == ["[", "-e", str(record), "]"]
            assert "(update)" in job["output"]  # the engine deletes no record
        elif job["rule"] == "notebook":
            assert job["log"] == str(study / "workflow" / f"{value}.ipynb")
            command, _, copy = job["shell"].partition(" || ")
            assert shlex.split(command)[-2:] == ["--only", value]
            report = str(study / "reports" / value)
            assert {f"{report}.ipynb", f"{report}.failed.ipynb;"} <= set(shlex.split(copy))
        else:
            continue
        words = shlex.split(job["shell"])
        assert words[:4] == [sys.executable, "-m", "ltkd.cli", "run"]
        assert words[5:7] == ["-p", "seeds"]


def test_the_workflow_ships():
    setup = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    shipped = {
        path.relative_to(WORKFLOW).as_posix()
        for pattern in setup["package-data"]["ltkd"] if pattern.startswith("workflow/")
        for path in (ROOT / "ltkd").glob(pattern) if path.is_file()
    }  # fmt: skip
    assert shipped == {"Snakefile", "profiles/local/config.yaml", "profiles/slurm/config.yaml"}
