"""What goes wrong around a study: killed processes, full disks, other machines, lost data."""

import errno
import json
import multiprocessing
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest
import torch
from faults import tree

from ltkd import Study, cli, files, pool, run
from ltkd.data import folders, longtail, resolve
from ltkd.files import Stopped, locked, sweep, write_atomic
from ltkd.params import Images
from ltkd.report import build, page
from ltkd.runs import Store, identity

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.slow
def test_a_handful_of_kills():
    # The harness behind `make faults`, in a process of its own: it copies itself.
    done = subprocess.run([sys.executable, "tests/faults.py", "--small"], cwd=ROOT, text=True,
                          capture_output=True, timeout=600)  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "finished and equal" in done.stdout
    assert "| all |" in done.stdout


# ---- locks

HOLDER = """
import socket, sys, time
from pathlib import Path
from ltkd import files
files.LEASE = float(sys.argv[2])
socket.gethostname = lambda: sys.argv[3] or plain()
with files.locked(Path(sys.argv[1])):
    print("held", flush=True)
    end = time.monotonic() + 120
    while time.monotonic() < end:  # as busy as a training loop
        sum(range(1000))
"""


@contextmanager
def holder(path, lease, host):
    """A process that holds the lock ``path``, on a machine of that name."""
    code = HOLDER.replace("plain()", repr(socket.gethostname()))
    command = [sys.executable, "-c", code, str(path), str(lease), host]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "held\n"
            yield process
        finally:
            process.kill()


def test_the_lock_of_a_dead_process_of_this_machine_is_taken_at_once(tmp_path):
    path = tmp_path / "x.lock"
    with holder(path, 60, "") as process:
        process.kill()
        process.wait()
        assert path.exists()
        began = time.monotonic()
        with locked(path):
            assert time.monotonic() - began < 5
    assert not path.exists()


def test_another_machines_lock_is_taken_only_when_its_heart_stops(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "LEASE", 3.0)
    path = tmp_path / "x.lock"
    with holder(path, 3, "elsewhere") as process:
        assert "host=elsewhere" in path.read_text()
        began = time.monotonic()
        with pytest.raises(Stopped), locked(path, lambda: time.monotonic() - began > 7):
            pytest.fail("taken from a process that lives")
        process.kill()
        process.wait()
        began = time.monotonic()
        with locked(path):
            assert 1 < time.monotonic() - began < 30
    assert not path.exists()


def test_it_is_taken_where_two_names_cannot_be_exchanged_too(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "LEASE", 1.0)
    monkeypatch.setattr("filelock._soft.exchange_names", lambda *_: False)  # as NFS answers
    path = tmp_path / "x.lock"
    with holder(path, 1, "elsewhere") as process:
        began = time.monotonic()
        with pytest.raises(Stopped), locked(path, lambda: time.monotonic() - began > 5):
            pytest.fail("taken from a process that lives")
        process.kill()
        process.wait()
        began = time.monotonic()
        with locked(path):
            assert 1 < time.monotonic() - began < 30
    assert not list(tmp_path.iterdir())


def test_a_container_is_a_machine_of_its_own(tmp_path):
    code = ("import sys\nfrom pathlib import Path\nfrom filelock import SoftFileLease\n"
            "from ltkd import files\npath = Path(sys.argv[1], 'x.lock')\n"
            "with files.locked(path):\n"
            "    theirs = SoftFileLease(path, lease_duration=9).owner.hostname\n"
            "    print(files.host(), theirs)\n")  # fmt: skip
    inside = ["unshare", "--pid", "--fork", "--mount-proc"]
    if not shutil.which("unshare") or subprocess.run([*inside, "true"]).returncode:
        pytest.skip("no PID namespace can be made here: that needs unshare and root")
    names = []
    for prefix in ([], inside):
        command = [*prefix, sys.executable, "-c", code, str(tmp_path)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        ours, theirs = done.stdout.split()
        assert ours == theirs
        names.append(ours)
    assert names[0] != names[1]


def test_a_lock_without_a_name_is_dropped_after_a_lease(tmp_path):
    path = tmp_path / "x.lock"
    path.touch()
    with pytest.raises(Stopped), locked(path, lambda: True):
        pytest.fail("its owner may be about to write its name")
    os.utime(path, (time.time() - 61,) * 2)
    with locked(path):
        assert path.stat().st_size


def test_the_lock_of_a_process_that_is_not_reaped_yet_is_taken_at_once(tmp_path):
    path = tmp_path / "x.lock"
    with holder(path, 60, "") as process:
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # dead, and left a zombie
        began = time.monotonic()
        with locked(path):
            assert time.monotonic() - began < 5
        path.write_text("")
        sweep(tmp_path)
        assert path.exists()  # its owner may be about to write its name


def test_sweep_frees_the_index_beside_the_study(tmp_path):
    path = tmp_path / "index.lock"
    with holder(path, 60, "") as process:
        process.kill()
        process.wait()
        assert path.exists()
        sweep(tmp_path / "study")
    assert not path.exists()


def test_sweep_takes_what_the_dead_left_and_nothing_else(tmp_path, monkeypatch):
    monkeypatch.setattr(files.tempfile, "tempdir", str(tmp_path / "t"))
    (tmp_path / "t").mkdir()
    code = ("import os, signal, sys, tempfile\nfrom pathlib import Path\nfrom ltkd import files\n"
            "tempfile.mkdtemp(prefix=files.temporary_prefix())\n"
            "files.os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)\n"
            "with files.locked(Path(sys.argv[1], 'a/x.lock')):\n"
            "    files.write_atomic(Path(sys.argv[1], 'a/b.json'), '{')\n")  # fmt: skip
    command = [sys.executable, "-c", code, str(tmp_path)]
    dead = subprocess.run(command, env=os.environ | {"TMPDIR": str(tmp_path / "t")})
    assert dead.returncode == -signal.SIGKILL
    assert len(list(tmp_path.rglob("*"))) == 2 + 2 + 1
    own = files.temporary_prefix().removeprefix("ltkd-").rstrip("-")
    ours = tmp_path / f"a/.c.json.{own}.x.part"
    theirs = tmp_path / "a/.c.json.1@elsewhere.x.part"
    scratch = tmp_path / f"t/{files.temporary_prefix()}x"
    shared = tmp_path / "t/ltkd-999999999@elsewhere-x"  # a number that is nobody's here
    for path in (ours, theirs, scratch, shared):
        path.touch()
    with locked(tmp_path / "a/y.lock"):
        sweep(tmp_path)
        left = {p.name for p in tmp_path.rglob("*") if p.is_file()}
    assert left == {ours.name, theirs.name, scratch.name, shared.name, "y.lock"}


# ---- disks

SPEC = """dataset: digits
gamma: 20
student: resnet8
method: {}
epochs: {}
schedule: one_cycle
"""


@pytest.fixture
def disk(tmp_path):
    """A disk of its own: (folder, a function that mounts it anew with options)."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(*options):
        command = ["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", str(folder)]
        return subprocess.run(command, capture_output=True, text=True)

    tried = mount("size=64k") if os.geteuid() == 0 else None
    if tried is None or tried.returncode:
        pytest.skip(f"no file system can be mounted here: {tried and tried.stderr}")
    yield folder, lambda *options: mount("remount", *options)
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_and_a_read_only_disk_are_named_and_the_same_command_goes_on(
    disk, tmp_path, forked, capfd
):
    folder, again = disk
    spec = tmp_path / "one.yaml"
    spec.write_text(SPEC.format("student", 1))
    command = ["train", str(spec), "--outputs", str(folder)]
    assert cli.main(command) == 1
    said = capfd.readouterr()
    assert "No space left on device" in said.err
    assert str(folder / "one/runs") in said.err
    assert "Traceback" not in said.err
    assert not [p for p in folder.rglob("*") if p.suffix in {".part", ".lock"}]
    assert again("size=8m", "ro").returncode == 0
    assert cli.main(command) == 1
    said = capfd.readouterr()
    assert "Read-only file system" in said.err
    assert str(folder / "one/runs") in said.err
    assert "Traceback" not in said.err
    assert again("size=8m", "rw").returncode == 0
    assert cli.main(command) == 0
    assert again("ro").returncode == 0
    assert cli.main(command) == 0  # what is there is read
    assert capfd.readouterr().out.count("test accuracy in the last epoch") == 2


def test_a_table_that_meets_a_full_disk_keeps_what_it_has(disk, tiny, monkeypatch):
    folder, again = disk
    assert again("size=1m").returncode == 0
    spec = tiny(method="kd", teacher="resnet8", epochs=1)
    run(spec.teacher_spec, outputs=folder, device="cpu")
    rest = shutil.disk_usage(folder).free
    (folder / "ballast").write_bytes(b"x" * (rest - 12_288))
    with pytest.raises(OSError, match="No space left on device"):
        run(spec, outputs=folder, device="cpu")
    (folder / "ballast").unlink()
    record = run(spec, outputs=folder, device="cpu")
    assert not record.diverged
    assert not list(folder.rglob("*.lock"))


# ---- data, and damaged files


def test_a_data_root_that_vanishes_stops_a_study_and_is_named(tmp_path, tiny, forked):
    root = tmp_path / "root"
    tree(root / "tiny-imagenet-200")
    images = resolve("tiny_imagenet", Images(size=32), root)
    about = {"dataset": "tiny_imagenet", "images": images, "gamma": None, "epochs": 1}
    specs = [tiny(seed=seed, **about) for seed in range(3)]
    run(specs[0], outputs=tmp_path / "o", device="cpu", data_root=root)
    folders.find.cache_clear()
    longtail._load.cache_clear()
    shutil.rmtree(root)
    out = pool.make(
        specs, Store(tmp_path / "o"), device="cpu", data_root=str(root), jobs=1, quiet=True
    )
    assert list(out.records) == [identity(specs[0])]
    assert str(root / "tiny-imagenet-200") in out.failed[identity(specs[1])]
    assert "is not there" in out.failed[identity(specs[1])]
    assert out.left == [specs[2]]


def test_a_checkpoint_with_a_flipped_bit_is_not_used(tmp_path, tiny, capsys):
    spec = tiny()
    whole = run(spec, outputs=tmp_path / "whole", device="cpu")
    steps = iter([False] * 7 + [True])
    with pytest.raises(Stopped):
        run(spec, outputs=tmp_path / "cut", device="cpu", stop=lambda: next(steps))
    path = Store(tmp_path / "cut").run_folder(spec) / "checkpoint.safetensors"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1  # in a tensor: it still loads
    path.write_bytes(data)
    again = run(spec, outputs=tmp_path / "cut", device="cpu")
    said = capsys.readouterr().err
    assert f"{path}: damaged (its content does not match its sha256); kept as" in said
    assert path.with_name("checkpoint.safetensors.damaged").read_bytes() == data
    assert again.values["history"] == whole.values["history"]
    assert again.values["model_sha256"] == whole.values["model_sha256"]


def test_a_checkpoint_of_another_teachers_student_is_not_used(tmp_path, tiny, capsys, monkeypatch):
    spec, store = tiny(method="kd", teacher="resnet8"), Store(tmp_path)
    run(spec.teacher_spec, outputs=tmp_path, device="cpu")
    steps = iter([False] * 15 + [True])
    with pytest.raises(Stopped):
        run(spec, outputs=tmp_path, device="cpu", stop=lambda: next(steps))
    path = store.run_folder(spec) / "checkpoint.safetensors"
    assert path.exists()
    teacher = store.get(spec.teacher_spec)
    shutil.rmtree(teacher.folder)
    store.model_path(spec.teacher_spec).unlink()
    with monkeypatch.context() as patch:  # as if it were trained anew on another machine
        patch.setattr("ltkd.train.learning_rate", lambda *_: 0.01)
        other = run(spec.teacher_spec, outputs=tmp_path, device="cpu")
    again = run(spec, outputs=tmp_path, device="cpu")
    said = capsys.readouterr().err
    its = teacher.values["model_sha256"]
    assert f"{path}: damaged (it learned from another teacher, sha256 {its[:12]})" in said
    assert again.values["teacher_sha256"] == other.values["model_sha256"] != its
    assert [row["epoch"] for row in again.values["history"]] == [1, 2]


def test_a_run_that_went_on_elsewhere_names_both_machines(tmp_path, tiny, monkeypatch):
    spec, steps = tiny(), iter([False] * 7 + [True])
    monkeypatch.setattr(files, "hardware", lambda: "an old one, 2 cores")
    with pytest.raises(Stopped):
        run(spec, outputs=tmp_path, device="cpu", stop=lambda: next(steps))
    monkeypatch.setattr(files, "hardware", lambda: "a new one, 8 cores")
    record = run(spec, outputs=tmp_path, device="cpu")
    assert record.values["hardware"] == "an old one, 2 cores; a new one, 8 cores"
    assert record.hardware == ["an old one, 2 cores", "a new one, 8 cores"]
    assert record.values["device"] == "cpu"


def test_a_run_that_went_on_by_other_code_names_both(tmp_path, tiny, monkeypatch):
    spec, steps = tiny(), iter([False] * 7 + [True])
    code, versions = files.code_version(), files.versions()
    for commit, torch_version in (("a" * 40, "1.0"), ("b" * 40, "2.0")):
        monkeypatch.setattr(files, "code_version", lambda now=commit: code | {"commit": now})
        monkeypatch.setattr(files, "versions", lambda now=torch_version: versions | {"torch": now})
        if commit[0] == "a":
            with pytest.raises(Stopped):
                run(spec, outputs=tmp_path, device="cpu", stop=lambda: next(steps))
    record = run(spec, outputs=tmp_path, device="cpu")
    of = record.values["code"]["commit"], record.values["versions"]["torch"]
    assert of == (f"{'a' * 40}; {'b' * 40}", "1.0; 2.0")
    assert record.values["hardware"] == files.hardware()


def test_two_that_set_one_file_aside(tmp_path, capsys):
    path = tmp_path / "x"
    path.touch()
    for _ in range(2):
        files.set_aside(path, "other bytes")
    assert capsys.readouterr().err.count("damaged") == 2  # the word and the name, once
    assert [p.name for p in tmp_path.iterdir()] == ["x.damaged"]


@pytest.mark.parametrize("text", ["null", "[]", "3", "{}", '{"epoch": 1}', "{"])
def test_json_of_another_shape_counts_as_absent(tmp_path, tiny, text):
    store, spec = Store(tmp_path / "x"), tiny()
    write_atomic(store.progress(spec), text)
    assert pool.read_progress(store, spec) is None
    assert pool.progress_of(store, spec) == ""
    study = Study(outputs=tmp_path, name="x")
    reports = study.folder / "reports"
    write_atomic(reports / "03_distillation.html", "")
    for manifest in (text, f'{{"files": {text}}}'):
        write_atomic(reports / "03_distillation.manifest.json", manifest)
        assert not build.fresh(study, "03_distillation")
        cards = page.cards(study.folder, [cli.NOTEBOOKS / "03_distillation.ipynb"])
        page.write_index(study.folder, title="x", cards=cards)


def test_a_damaged_split_is_set_aside(tmp_path, tiny, capsys):
    run(tiny(epochs=1), outputs=tmp_path, device="cpu")
    (path,) = (tmp_path / "splits").iterdir()
    good = path.read_bytes()
    path.write_bytes(good[:-3])
    run(tiny(epochs=1, seed=1), outputs=tmp_path, device="cpu")
    said = capsys.readouterr().err
    assert f"{path}: damaged (other bytes); kept as {path.name}.damaged, made anew" in said
    assert path.read_bytes() == good


def test_what_a_kill_left_beside_a_record_is_removed(tmp_path, tiny):
    spec = tiny(epochs=1)
    record = run(spec, outputs=tmp_path, device="cpu")
    for name in ("checkpoint.safetensors", "progress.json"):
        write_atomic(record.folder / name, "{}")
    assert pool.make([spec], Store(tmp_path)).records
    left = {p.name for p in record.folder.iterdir()}
    assert left == {"record.json", "predictions.npy", "model.safetensors"}


# ---- workers


def test_two_commands_share_a_studys_runs(tmp_path, tiny, forked, monkeypatch):
    """What another command is making is left to it, as long as there is anything else to make."""
    monkeypatch.setattr(files, "LEASE", 3.0)
    specs, store = [tiny(seed=seed, epochs=1) for seed in range(3)], Store(tmp_path)
    with holder(store.lock(specs[0]), 3.0, "elsewhere") as other:

        def noted(spec, **options):
            with (tmp_path / "order").open("a") as file:
                file.write(f"{spec.seed}\n")
            if spec.seed == 0:
                os.kill(other.pid, signal.SIGKILL)
            return run(spec, **options)

        monkeypatch.setattr(pool, "run", noted)
        out = pool.make(specs, store, device="cpu", jobs=1, quiet=True)
    assert len(out.records) == 3
    assert (tmp_path / "order").read_text().split() == ["1", "2", "0"]


def test_only_errors_of_the_disk_stop_all(tmp_path, tiny, forked, monkeypatch):
    specs = [tiny(seed=seed, epochs=1) for seed in range(2)]
    for error, left in ((OSError(errno.EMFILE, "Too many open files"), 0),
                        (OSError(errno.ENOSPC, "No space left on device"), 1)):  # fmt: skip

        def broken(spec, error=error, **options):
            if spec.seed == 0:
                raise error
            return run(spec, **options)

        monkeypatch.setattr(pool, "run", broken)
        out = pool.make(specs, Store(tmp_path / str(left)), device="cpu", jobs=1, quiet=True)
        assert (list(out.failed), len(out.left)) == ([identity(specs[0])], left)


def test_a_containers_quota_counts(tmp_path, monkeypatch):
    whole = files.cores()
    monkeypatch.setattr(files, "CPU_MAX", tmp_path / "cpu.max")
    for text, expected in (("max 100000\n", whole), ("150000 100000\n", 1), ("5000 100000\n", 1),
                           ("9900000 100000\n", whole)):  # fmt: skip
        files.CPU_MAX.write_text(text)
        assert files.cores() == expected


def test_out_of_memory_fails_one_run_and_says_what_helps(tmp_path, tiny, forked, monkeypatch):
    specs = [tiny(seed=seed, epochs=1) for seed in range(2)]

    def greedy(spec, **options):
        if spec.seed == 0:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.")
        return run(spec, **options)

    monkeypatch.setattr(pool, "run", greedy)
    out = pool.make(specs, Store(tmp_path), device="cpu", jobs=1, quiet=True)
    assert list(out.records) == [identity(specs[1])]
    reason = out.failed[identity(specs[0])]
    assert reason.startswith("student resnet8 gamma 20 seed 0: out of memory; fewer --jobs, or a ")
    assert "smaller batch in the file (now 32). CUDA out of memory" in reason
    assert not out.left


def test_where_memory_is_short_fewer_run_at_once(tmp_path, tiny, forked, monkeypatch, capsys):
    """Room for two at a time, and three are asked for: none fails."""
    specs = [tiny(seed=seed, epochs=1) for seed in range(5)]
    room, full = tmp_path / "room", tmp_path / "full"
    room.mkdir()

    def crowded(spec, **options):
        mine, began, later = room / str(spec.seed), time.monotonic(), full.exists()
        mine.touch()
        try:
            if later:
                with (tmp_path / "crowd").open("a") as file:
                    file.write(f"{len(list(room.iterdir()))}\n")
            while not full.exists() and time.monotonic() - began < 60:
                if len(list(room.iterdir())) > 2:
                    with suppress(FileExistsError):  # another of the three was the first to see it
                        full.touch(exist_ok=False)
                        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.")
                time.sleep(0.01)
            return run(spec, **options)
        finally:
            mine.unlink()

    monkeypatch.setattr(pool, "run", crowded)
    out = pool.make(specs, Store(tmp_path / "o"), device="cpu", jobs=3)
    assert (len(out.records), out.failed, out.left) == (5, {}, [])
    said = capsys.readouterr().err
    assert said.count("out of memory; goes on, from where it was, after the others") == 1
    assert said.count("memory was short: from now on 2 runs at once") == 1
    crowd = (tmp_path / "crowd").read_text().split()
    assert len(crowd) == 3
    assert set(crowd) <= {"1", "2"}
    assert crowd[-1] == "1"  # what had failed, alone


def test_after_a_broken_gpu_a_new_process_makes_the_rest(tmp_path, tiny, forked, monkeypatch):
    specs = [tiny(seed=seed, epochs=1) for seed in range(3)]
    spoilt = []

    def struck(spec, **options):
        if spec.seed == 0 or spoilt:  # all that this process does from now on
            spoilt.append(spec)
            raise torch.AcceleratorError("CUDA error: an illegal memory access was encountered")
        return run(spec, **options)

    monkeypatch.setattr(pool, "run", struck)
    out = pool.make(specs, Store(tmp_path), device="cpu", jobs=1, quiet=True)
    assert list(out.records) == [identity(spec) for spec in specs[1:]]
    (reason,) = out.failed.values()
    assert "AcceleratorError: CUDA error: an illegal memory access" in reason
    assert not out.left


def test_a_killed_workers_run_goes_on_and_loses_nothing(
    tmp_path, tiny, forked, monkeypatch, capsys
):
    specs = [tiny(seed=seed, epochs=1) for seed in range(3)]
    before = {*psutil.Process().children()}  # other tests' multiprocessing keeps a tracker

    def struck(spec, *, stop, **options):
        def step():
            if spec.seed == 0 and not (tmp_path / "struck").exists():  # it holds its lock by now
                (tmp_path / "struck").touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return stop()

        return run(spec, stop=step, **options)

    monkeypatch.setattr(pool, "run", struck)
    out = pool.make(specs, Store(tmp_path / "o"), device="cpu", jobs=2, quiet=True)
    assert (len(out.records), out.failed, out.left) == (3, {}, [])
    said = capsys.readouterr().err  # the other worker's run goes on without a word
    assert said.splitlines() == [f"{specs[0].title}: its process was killed; goes on, from where "
                                 "it was, after the others"]  # fmt: skip
    assert {*psutil.Process().children()} <= before
    sweep(tmp_path / "o")
    assert not list(tmp_path.rglob("*.lock"))


def test_a_run_whose_worker_is_always_killed_fails_alone(tmp_path, tiny, forked, monkeypatch):
    specs = [tiny(seed=seed, epochs=1) for seed in range(3)]

    def fatal(spec, **options):
        if spec.seed == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return run(spec, **options)

    monkeypatch.setattr(pool, "run", fatal)
    out = pool.make(specs, Store(tmp_path), device="cpu", jobs=2, quiet=True)
    assert {spec.seed for spec in specs if identity(spec) in out.records} == {0, 2}
    assert "its process was killed (out of memory? fewer --jobs" in out.failed[identity(specs[1])]
    assert not out.left


def test_workers_that_all_die_end_the_command(tmp_path, tiny, forked, monkeypatch):
    specs = [tiny(seed=seed, epochs=1) for seed in range(9)]
    monkeypatch.setattr(pool, "run", lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL))
    with subprocess.Popen(["sleep", "60"]) as other:  # neither this nor the next is the pool's
        mine = multiprocessing.get_context("fork").Process(target=time.sleep, args=[60])
        mine.start()
        out = pool.make(specs, Store(tmp_path), device="cpu", jobs=1, quiet=True)
        assert other.poll() is None
        assert mine.is_alive()
        for one in (other, mine):
            one.kill()
    assert not out.records
    assert len(out.failed) == 1
    assert len(out.left) == 8


# ---- a study with a hole

STUDY = """name: hole
pairs: [resnet8-resnet8]
methods: [student, kd]
seeds: [0]
epochs: 2
ablations: [baseline]
group_counts: [3]
method_args: {kd: {kd_weight: 10000}}
"""


@pytest.mark.slow
def test_a_run_that_diverges_leaves_a_hole_that_everything_shows(tmp_path, forked, capfd):
    given = tmp_path / "hole.yaml"
    given.write_text(STUDY)
    command = ["run", str(given), "--only", "03", "--outputs", str(tmp_path), "--jobs", "1"]
    assert cli.main(command) == 1
    said = capfd.readouterr()
    (reason,) = re.findall(r"failed: (kd .* seed 0, .*: the loss is \w+ in epoch .)", said.err)
    assert "Traceback" not in said.err
    assert "4 runs, 1 report made" in said.out
    assert "kd resnet8-resnet8 gamma 20 seed 0, kd_weight 10000: not finished." in said.err
    assert cli.main(["status", str(given), "--outputs", str(tmp_path)]) == 0
    told = capfd.readouterr().out
    assert "4 of 4 runs are there" in told
    assert reason in told
    states = {}
    for path in tmp_path.glob("hole/runs/*/record.json"):
        values = json.loads(path.read_text())
        states[values["spec"]["method"]] = values["status"]
    assert states == {"teacher": "done", "student": "done", "ltkd": "done", "kd": "diverged"}
    assert reason in (tmp_path / "hole/index.html").read_text()
    page = (tmp_path / "hole/reports/03_distillation.html").read_text()
    assert "1 of 2 runs finished" in page
    assert reason in page
    rows = (tmp_path / "hole/runs.csv").read_text().splitlines()
    assert not [row for row in rows if ",kd," in row]
