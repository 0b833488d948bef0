"""make cluster-test: a study through a real SLURM of two nodes on this machine, with faults.

Starts munged, slurmctld and two slurmd of its own in a temporary folder and lets Snakemake make the
quick study there (three methods, one seed: PARAMETERS) by the profile `slurm`.
Meanwhile a training process is killed, a job cancelled, another requeued, a node taken down; the
budget of a run is shorter than the teacher's. Then every record must be equal to that of a plain
local run. Nothing is installed, no other SLURM is touched, all is stopped again in every case.
"""

import getpass
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parent.parent
NEEDED = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scontrol", "scancel")
PARAMETERS = [
    str(ROOT / "params" / "quick.yaml"), "-p", "methods", "[student, kd, ltkd]", "-p", "seeds",
    "[0]", "-p", "ablations", "[baseline]", "-p", "group_counts", "[1, 3]",
    "-p", "sweep", "{}",
]  # fmt: skip
LIMIT = 3600  # seconds for the whole study
# Of a record: what differs between two runs of the same thing. All else must be equal.
BY_NATURE = {"seconds", "images_per_second", "hardware", "finished", "sha256"}
CONFIG = """
ClusterName=ltkd
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
ReturnToService=2
JobRequeue=1
MinJobAge=3600
KillWait=10
MailProg=/bin/true
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=1 RealMemory=8000
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=1 RealMemory=8000
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def tell(*command: str) -> str:
    """What a command prints; empty where it fails."""
    return subprocess.run(command, capture_output=True, text=True, timeout=60).stdout.strip()


def free_ports(count: int) -> list[int]:
    held = [socket.socket() for _ in range(count)]
    for one in held:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in held]
    for one in held:
        one.close()
    return ports


def environ(pid: int) -> dict[str, str]:
    with suppress(psutil.Error):
        return psutil.Process(pid).environ()
    return {}


@contextmanager
def slurm(folder: Path) -> Iterator[None]:
    """Two nodes, ready for jobs; SLURM_CONF names them to every command that is started here."""
    host, conf, key = socket.gethostname().split(".")[0], folder / "slurm.conf", folder / "key"
    conf.write_text(
        CONFIG.format(host=host, ports=free_ports(3), user=getpass.getuser(), folder=folder)
    )
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    (folder / "state").mkdir()
    # The engine's plugin drops SLURM_CONF on a node, where srun is usually at home.
    (folder / "bin").mkdir()
    wrapper = folder / "bin" / "srun"
    wrapper.write_text(f'#!/bin/sh\nSLURM_CONF={conf} exec {shutil.which("srun")} "$@"\n')
    wrapper.chmod(0o755)
    os.environ |= {"SLURM_CONF": str(conf), "PATH": f"{wrapper.parent}:{os.environ['PATH']}"}
    files = ("socket", "pid-file", "log-file", "seed-file")
    munge = [f"--{name}={folder}/munge.{name.removesuffix('-file')}" for name in files]
    commands = [["munged", "--foreground", f"--key-file={key}", *munge], ["slurmctld", "-D"],
                ["slurmd", "-D", "-N", "n1"], ["slurmd", "-D", "-N", "n2"]]  # fmt: skip
    daemons: list[subprocess.Popen[bytes]] = []
    try:
        for command in commands:
            with (folder / f"{command[0]}.out").open("ab") as out:
                daemons.append(subprocess.Popen(command, stdout=out, stderr=out))
            time.sleep(2)
        limit = time.monotonic() + 60
        while len(re.findall(r"\bidle\b", tell("sinfo", "-N", "-h", "-o", "%T"))) < 2:
            for command, daemon in zip(commands, daemons, strict=True):
                assert daemon.poll() is None, f"{command[0]} ended; its words are in {folder}"
            assert time.monotonic() < limit, f"the nodes are not ready; look into {folder}"
            time.sleep(1)
        yield
    finally:
        tell("scancel", "--user", getpass.getuser())
        limit = time.monotonic() + 30
        while tell("squeue", "-h", "-t", "R,CG") and time.monotonic() < limit:
            time.sleep(1)
        for daemon in reversed(daemons):
            daemon.terminate()
        for daemon in daemons:
            with suppress(subprocess.TimeoutExpired):
                daemon.wait(10)
        # Steps that outlived their node's daemon: ours alone carry this SLURM_CONF.
        for process in psutil.process_iter():
            if process.pid != os.getpid() and environ(process.pid).get("SLURM_CONF") == str(conf):
                with suppress(psutil.Error):
                    process.kill()
        del os.environ["SLURM_CONF"]


def training(study: Path) -> Iterator[tuple[str, int, str, str]]:
    """(run, process, SLURM job, node) of each run that has trained an epoch and goes on."""
    for path in sorted(study.glob("runs/*/progress.json")):
        with suppress(OSError, ValueError):
            now = json.loads(path.read_text())
            about = environ(now["pid"])
            if now["epoch"] and "SLURM_JOB_ID" in about:
                yield path.parent.name, now["pid"], about["SLURM_JOB_ID"], about["SLURMD_NODENAME"]


def disturb(fault: str, run: str, pid: int, job: str, node: str) -> None:
    say(f"{fault}: run {run} in job {job} on {node}, process {pid}")
    if fault == "kill -9":
        os.kill(pid, signal.SIGKILL)
    elif fault == "scancel":
        tell("scancel", job)
    elif fault == "requeue":
        tell("scontrol", "requeue", job)
    else:
        tell("scontrol", "update", f"nodename={node}", "state=down", "reason=test")
        time.sleep(5)
        tell("scontrol", "update", f"nodename={node}", "state=resume")


def jobs() -> list[dict[str, str]]:
    """All SLURM jobs so far: MinJobAge keeps them."""
    text = tell("scontrol", "show", "job", "--oneliner")
    return [dict(re.findall(r"(\S+?)=(\S*)", line)) for line in text.splitlines()]


def snakemake(folder: Path, budget: float, *more: str) -> list[str]:
    own = [sys.executable, "-m", "snakemake", "-s", str(ROOT / "ltkd/workflow/Snakefile"),
           "--workflow-profile", str(ROOT / "ltkd/workflow/profiles/slurm"),
           "--directory", str(folder)]  # fmt: skip
    run = json.dumps([*PARAMETERS, "--outputs", f"{folder}/cluster"])
    return [*own, *more, "--config", f"run={run}", f"budget={budget:.0f}s"]


def ltkd(*more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "ltkd.cli", *more]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=LIMIT)


def records(study: Path) -> dict[str, dict[str, object]]:
    """Of each record what two runs of the same thing share; of the code its hash alone."""
    found = {path.parent.name: json.loads(path.read_text()) for path in study.glob("runs/*/rec*")}
    for record in found.values():
        record["code"] = record["code"]["library_sha256"]
    return {run: {k: v for k, v in r.items() if k not in BY_NATURE} for run, r in found.items()}


def by_hand(folder: Path) -> tuple[list[str], float]:
    """The same runs without SLURM: their identities, and a budget that the teacher exceeds."""
    outputs, began = ["--outputs", f"{folder}/local"], time.monotonic()
    ids = ltkd("status", *PARAMETERS, *outputs, "--ids").stdout.split()
    start = time.monotonic() - began
    for some in (ids[:1], ids):  # the teacher alone tells how long a run takes here
        began = time.monotonic()
        chosen = [word for run in some for word in ("--run", run)]
        done = ltkd("run", *PARAMETERS, *outputs, *chosen)
        assert done.returncode == 0, done.stderr
        took = time.monotonic() - began
        say(f"local: {len(some)} runs in {took:.0f} s")
        if some == ids[:1]:
            record = folder / "local" / "quick" / "runs" / ids[0] / "record.json"
            budget = took - start - json.loads(record.read_text())["seconds"] / 2
    return ids, budget


def through_slurm(folder: Path, budget: float) -> None:
    """Snakemake to its end, with a fault for each of the first jobs that are seen to train."""
    faults, hit, runs = ["kill -9", "requeue", "scancel", "node down"], {}, set()
    study, began = folder / "cluster" / "quick", time.monotonic()
    command = snakemake(folder, budget, "--slurm-init-seconds-before-status-checks", "5")
    with slurm(folder), (folder / "snakemake.log").open("w") as log:
        say(tell("sinfo", "-N", "-l"))
        engine = subprocess.Popen(command, stdout=log, stderr=log, cwd=ROOT)
        try:
            while engine.poll() is None and time.monotonic() - began < LIMIT:
                for run, pid, job, node in training(study):
                    if faults and job not in hit.values() and run not in runs:
                        fault = faults.pop(0)
                        disturb(fault, run, pid, job, node)
                        hit[fault] = job
                        runs.add(run)
                time.sleep(0.2)
            assert engine.poll() == 0, f"snakemake: {engine.poll()}; {folder}/snakemake.log"
        finally:
            if engine.poll() is None:
                engine.kill()  # its jobs are cancelled with all others
        made = jobs()
        say(f"{len(made)} SLURM jobs in {time.monotonic() - began:.0f} s")
        assert not tell("squeue", "-h", "-t", "PD,R,CG"), "jobs are left"
    say("job   state        exit   restarts  node  what")
    for job in made:
        say(f"{job['JobId']:5} {job['JobState']:12} {job['ExitCode']:6} {job['Restarts']:9} "
            f"{job['BatchHost']:5} {job['Comment']}")  # fmt: skip
    by_id = {job["JobId"]: job for job in made}
    assert not faults, f"never came to: {faults}"
    assert by_id[hit["kill -9"]]["JobState"] == "FAILED"
    assert by_id[hit["scancel"]]["JobState"] == "CANCELLED"
    assert by_id[hit["requeue"]]["Restarts"] == "1"
    assert by_id[hit["node down"]]["Restarts"] == "1"
    assert {job["BatchHost"] for job in made} == {"n1", "n2"}
    logs = [path.read_text() for path in folder.glob(".snakemake/slurm_logs/**/*.log")]
    cut = [text for text in logs if "Reports were not touched" in text]
    spent = sum("Stopping:" not in text for text in cut)  # that a signal would have said
    assert spent, "no run came to the end of its budget"
    say(f"{spent} jobs ended at the end of their budget, with code 75")


def compare(folder: Path, ids: list[str], budget: float) -> None:
    """Every record as made by hand, every report there, nothing left over, nothing to do."""
    study, expected = folder / "cluster" / "quick", records(folder / "local" / "quick")
    assert sorted(expected) == sorted(ids)
    assert records(study) == expected
    notebooks = sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb"))
    assert sorted(path.stem for path in study.glob("reports/*.html")) == notebooks
    assert (study / "index.html").exists()
    odd = [p for p in study.rglob("*") if p.suffix in {".part", ".lock", ".damaged"}]
    odd += [*study.glob("reports/*failed*"), *study.glob("runs/*/checkpoint*")]
    assert not odd, odd
    again = ltkd("run", *PARAMETERS, "--outputs", f"{folder}/cluster")
    assert "nothing to do: every run and report is up to date" in again.stdout, again
    command = snakemake(folder, budget, "-n")
    dry = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert "Nothing to be done" in dry.stdout + dry.stderr, dry
    say(f"{len(notebooks)} reports; {len(ids)} records, predictions and weights included, are "
        f"equal to the local run's, but for {', '.join(sorted(BY_NATURE))}")  # fmt: skip


def main() -> int:
    missing = [name for name in NEEDED if not shutil.which(name)]
    if missing:
        print(f"missing: {', '.join(missing)}. Debian's: apt-get install slurm-wlm munge")
        return 2
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    folder = Path(tempfile.mkdtemp(prefix="ltkd-slurm-"))
    folder.chmod(0o755)  # munged wants to be reached
    say(f"everything of this test is in {folder}; it is kept when the test fails")
    ids, budget = by_hand(folder)
    through_slurm(folder, budget)
    compare(folder, ids, budget)
    shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
