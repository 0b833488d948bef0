"""The store: an identity that moves only when the numbers do, done once, whole or absent."""

import errno
import json
import os
import shutil
import subprocess
import sys
import time
import weakref
from contextlib import suppress
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save

from ltkd import RunRecord, files, pool, run
from ltkd.files import Stopped, locked, write_atomic
from ltkd.precision import whole_fp32
from ltkd.runs import Store, identity, pick_device
from ltkd.train import Trainer


def test_identity_is_the_spec_the_data_and_the_numerics_only(tiny, monkeypatch, tmp_path):
    spec = tiny()
    name = identity(spec)
    assert len(name) == 16
    assert name == identity(tiny())
    assert name != identity(tiny(seed=1))
    assert name != identity(tiny(precision="bf16"))
    assert name != identity(tiny(threads=2))
    monkeypatch.setenv("LTKD_DATA", str(tmp_path))
    monkeypatch.setenv("LTKD_OUTPUTS", str(tmp_path))
    assert name == identity(tiny())
    monkeypatch.setattr("ltkd.runs.NUMERICS", 2)
    assert name != identity(tiny())


def test_identities_do_not_drift(tiny):
    # A refactoring must never rerun days of work: these identities are pinned. They may change
    # only together with NUMERICS, or when a field is added to the spec on purpose.
    assert identity(tiny()) == "bd5584d235817545"
    assert identity(tiny(method="ltkd", teacher="resnet20", groups=3)) == "bf73a48827cba30a"


def test_a_record_is_read_not_made_again(tmp_path, tiny):
    spec = tiny(epochs=1)
    first = run(spec, outputs=tmp_path)
    stamp = (first.folder / "record.json").stat().st_mtime_ns
    again = run(spec, outputs=tmp_path, data_root=tmp_path / "nowhere")
    assert isinstance(again, RunRecord)
    assert again.values == first.values
    assert (again.folder / "record.json").stat().st_mtime_ns == stamp
    left = {p.name for p in first.folder.iterdir()}
    assert left == {"record.json", "predictions.npy", "model.safetensors"}
    needed = {
        "run",
        "spec",
        "data",
        "history",
        "code",
        "versions",
        "hardware",
        "device",
        "finished",
    }
    assert needed <= set(first.values)


@pytest.mark.parametrize("what", ["record", "predictions", "half"])
def test_a_damaged_record_is_set_aside_and_made_again(tmp_path, tiny, what, capsys):
    spec = tiny(epochs=1)
    good = run(spec, outputs=tmp_path)
    path = good.folder / ("predictions.npy" if what == "predictions" else "record.json")
    text = path.read_bytes()
    if what == "record":  # an edited number
        values = json.loads(text)
        values["history"][0]["correct"][0] += 1
        text = json.dumps(values).encode()
    path.write_bytes(
        text[: len(text) // 2] if what == "half" else text + b" " * (what == "predictions")
    )
    assert Store(tmp_path).get(spec) is None
    assert "record.json: damaged" in capsys.readouterr().err
    assert (good.folder / "record.json.damaged").exists()
    again = run(spec, outputs=tmp_path)
    assert again.values["history"] == good.values["history"]
    assert again.values["model_sha256"] == good.values["model_sha256"]


def test_a_damaged_teacher_is_not_used(tmp_path, tiny, capsys):
    spec = tiny(method="kd", teacher="resnet8", epochs=1)
    run(spec.teacher_spec, outputs=tmp_path)
    path = Store(tmp_path).model_path(spec.teacher_spec)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    run(spec, outputs=tmp_path)
    assert "does not match its record's sha256" in capsys.readouterr().err
    assert path.read_bytes() != bytes(data)


def test_a_full_gpu_is_no_damage(tmp_path, tiny, monkeypatch):
    spec = tiny(epochs=2)
    checkpoint = Store(tmp_path).run_folder(spec) / "checkpoint.safetensors"
    steps = iter(range(100))
    with pytest.raises(Stopped):
        run(spec, outputs=tmp_path, stop=lambda: next(steps) > 5)
    kept = checkpoint.read_bytes()

    # The allocator's error, and that of a call of CUDA which needed memory of its own.
    errors = [torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB."),
              torch.AcceleratorError("CUDA error: out of memory")]  # fmt: skip
    for place in ("ltkd.runs.initial_objective", "ltkd.train.initial_model",
                  "ltkd.train.Trainer._resume", "ltkd.train.Trainer.step"):  # fmt: skip
        for error in errors:
            with monkeypatch.context() as patch:
                patch.setattr(place, Mock(side_effect=error))
                with pytest.raises(torch.OutOfMemoryError, match=r"out of memory"):
                    run(spec, outputs=tmp_path)
            assert checkpoint.read_bytes() == kept
    with monkeypatch.context() as patch:
        patch.setattr("ltkd.train.Trainer.step", Mock(side_effect=torch.AcceleratorError("lost")))
        with pytest.raises(torch.AcceleratorError, match="lost"):
            run(spec, outputs=tmp_path)
    others = (
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        MemoryError("Unable to allocate 9 GiB"),
    )
    for place, error in product(("ltkd.train.Trainer._resume", "ltkd.train.Trainer.step"), others):
        with monkeypatch.context() as patch:
            patch.setattr(place, Mock(side_effect=error))
            with pytest.raises(torch.OutOfMemoryError, match=r"(?i)alloc"):
                run(spec, outputs=tmp_path)
        assert checkpoint.read_bytes() == kept
    assert run(spec, outputs=tmp_path).values["history"] == (
        run(spec, outputs=tmp_path / "at once").values["history"])  # fmt: skip


def test_a_damaged_checkpoint_is_set_aside(tmp_path, tiny, capsys):
    spec = tiny(epochs=1)
    folder = Store(tmp_path).run_folder(spec)
    write_atomic(folder / "checkpoint.safetensors", b"not a checkpoint")
    run(spec, outputs=tmp_path)
    assert "kept as checkpoint.safetensors.damaged, made anew" in capsys.readouterr().err


@pytest.mark.parametrize("damage", ["no bytes", "few bytes", "another shape", "a flipped bit"])
def test_a_damaged_table_is_filled_again(tmp_path, tiny, damage, capsys):
    first = run(tiny(method="kd", teacher="resnet8", epochs=1), outputs=tmp_path)
    (table,) = tmp_path.rglob("logits.npy")
    good = table.read_bytes()
    rows = np.load(table)
    if damage == "a flipped bit":
        filled = int(np.flatnonzero(rows["check"])[0])
        at = len(good) - rows.nbytes + filled * rows.itemsize
        table.write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
        said = "1 damaged rows are filled again"
    else:
        table.write_bytes({"no bytes": b"", "few bytes": good[:-9]}.get(damage, b""))
        if damage == "another shape":
            np.save(table, rows[:5])
        said = "kept as logits.npy.damaged"
    record = run(tiny(method="kd_ce1", teacher="resnet8", epochs=1), outputs=tmp_path)
    out, err = capsys.readouterr()
    text = out if damage == "a flipped bit" else err
    assert f"{table}: " in text
    assert said in text
    assert table.read_bytes() == good
    assert record.values["teacher_sha256"] == first.values["teacher_sha256"]
    assert not list(tmp_path.rglob("*.lock"))


def test_a_pickle_in_a_tables_place_is_not_loaded(tmp_path, tiny, capsys):
    run(tiny(method="kd", teacher="resnet8", epochs=1), outputs=tmp_path)
    (table,) = tmp_path.rglob("logits.npy")
    np.save(table, np.array([print], dtype=object), allow_pickle=True)
    run(tiny(method="kd_ce1", teacher="resnet8", epochs=1), outputs=tmp_path)
    assert "kept as logits.npy.damaged" in capsys.readouterr().err


def test_waiting_for_another_process_can_be_stopped(tmp_path, tiny):
    spec = tiny(epochs=1)
    lock = Store(tmp_path).run_folder(spec) / "run.lock"
    with locked(lock), pytest.raises(Stopped, match="another process"):
        run(spec, outputs=tmp_path, stop=lambda: True)


def test_a_pickle_in_a_models_place_is_not_loaded(tmp_path, tiny):
    spec = tiny(epochs=1)
    run(spec, outputs=tmp_path)
    import pickle

    Store(tmp_path).model_path(spec).write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(Exception, match="does not match the sha256"):
        Store(tmp_path).load_model(spec)


def test_a_diverging_run_leaves_a_record_that_says_so(tmp_path, tiny):
    record = run(tiny(lr=1e4, schedule="steps", epochs=3), outputs=tmp_path)
    assert record.diverged
    assert "the loss is" in record.values["reason"]


def test_fp32_on_a_gpu_is_fp32(tiny):
    """Its convolutions would round their factors to ten bits else; the setting is there without
    one, and the caller's afterwards."""
    conv = torch.backends.cudnn.conv
    before, gpu = conv.fp32_precision, torch.device("cuda")
    for precision, inside in (("fp32", "ieee"), ("bf16", before)):
        with whole_fp32(tiny(precision=precision), gpu):
            assert conv.fp32_precision == inside
        assert conv.fp32_precision == before


def test_a_run_leaves_its_caller_its_threads(tmp_path, tiny):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        run(tiny(epochs=1), outputs=tmp_path)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_a_record_names_the_code_that_made_it(tmp_path, tiny, monkeypatch):
    commit = "a" * 40
    monkeypatch.setattr(
        files, "_git", lambda *words: str(files.ROOT) if "--show-toplevel" in words else commit
    )
    files.code_version.cache_clear()

    def commits_meanwhile():
        nonlocal commit
        commit = "b" * 40
        return False

    record = run(tiny(epochs=1), outputs=tmp_path, stop=commits_meanwhile)
    files.code_version.cache_clear()
    assert record.values["code"]["commit"] == "a" * 40


def test_an_installation_inside_another_repository_is_not_of_it(monkeypatch, tmp_path):
    monkeypatch.setattr(files, "_git", lambda *words: str(tmp_path))
    files.code_version.cache_clear()
    assert files.code_version()["commit"] is None
    files.code_version.cache_clear()


def test_a_record_that_comes_while_it_is_looked_for_is_no_damage(
    tmp_path, tiny, monkeypatch, capsys
):
    spec, read_text = tiny(epochs=1), Path.read_text
    path = run(spec, outputs=tmp_path).folder / "record.json"
    path.rename(tmp_path / "away")

    def late(one):
        try:
            return read_text(one)
        finally:  # another process is done just now
            (tmp_path / "away").rename(path)

    store = Store(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_text", late)
        assert store.get(spec) is None
    assert store.get(spec) is not None
    assert capsys.readouterr().err == ""
    (path.parent / "predictions.npy").unlink()
    assert store.get(spec) is None
    assert "predictions.npy is missing); kept as record.json.damaged" in capsys.readouterr().err


def test_a_kill_while_a_teacher_is_made_anew_leaves_no_mixture(tmp_path, tiny, monkeypatch, capsys):
    store, spec = Store(tmp_path), tiny(method="kd", teacher="resnet8", epochs=1).teacher_spec
    run(spec, outputs=tmp_path)
    store.model_path(spec).unlink()

    def killed(path, data):
        write_atomic(path, data + b" " if path.name == "predictions.npy" else data)
        if path == store.model_path(spec):
            raise KeyboardInterrupt

    monkeypatch.setattr(files, "write_atomic", killed)
    with pytest.raises(KeyboardInterrupt):
        run(spec, outputs=tmp_path)
    assert store.get(spec) is None
    assert "damaged" not in capsys.readouterr().err


def test_a_run_of_another_machine_is_told_from_a_dead_one(tmp_path, tiny):
    store, spec = Store(tmp_path), tiny()
    now = {"epoch": 1, "epochs": 2, "images_per_second": 9.0, "seconds_left": 5.0,
           "accuracy": None}  # fmt: skip
    write_atomic(store.progress(spec), json.dumps(now))
    assert pool.progress_of(store, spec) == "stopped after epoch 1/2, begins anew"
    store.lock(spec).touch()
    assert pool.progress_of(store, spec) == "epoch 1/2, 9 images/s, 5 s left"
    old = time.time() - 2 * files.LEASE
    os.utime(store.lock(spec), (old, old))
    assert pool.progress_of(store, spec) == "stopped after epoch 1/2, begins anew"


SCRIPT = """
import sys
from ltkd import RunSpec, run
record = run(RunSpec.model_validate_json(sys.argv[1]), outputs=sys.argv[2])
print(record.values["finished"], record.values["sha256"])
"""


def test_two_processes_make_a_run_once(tmp_path, tiny):
    spec = tiny(epochs=3).model_dump_json()
    command = [sys.executable, "-c", SCRIPT, spec, str(tmp_path)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate(timeout=120)[0] for process in both]
    assert said[0] == said[1] != ""
    assert len(list((tmp_path / "runs").iterdir())) == 1
    assert not list(tmp_path.rglob("*.lock"))


def test_of_two_that_make_a_run_the_first_to_finish_stays(tmp_path, tiny, monkeypatch):
    spec = tiny()
    first = run(spec, outputs=tmp_path / "first").folder

    def meanwhile(*given):  # its lock was taken over, and the heir has finished
        shutil.copytree(first, tmp_path / "second" / "runs" / first.name, dirs_exist_ok=True)
        return save(*given)

    monkeypatch.setattr("ltkd.runs.save_tensors", meanwhile)
    second = run(spec, outputs=tmp_path / "second").folder
    kept = [(path.name, path.read_bytes()) for path in sorted(first.iterdir())]
    assert [(path.name, path.read_bytes()) for path in sorted(second.iterdir())] == kept


def test_a_run_is_saved_inside_its_epochs_and_between_them(tmp_path, tiny, monkeypatch):
    saved, save = [], Trainer.save
    monkeypatch.setattr("ltkd.train.CHECKPOINT_SECONDS", 0)
    monkeypatch.setattr(Trainer, "save", lambda one: saved.append(one.at.step) or save(one))
    run(tiny(), outputs=tmp_path)
    assert saved == list(range(1, 2 * 12))  # of 390 images in batches of 32, but for the last step


def test_a_killed_run_leaves_no_half_file_and_goes_on(tmp_path, tiny, monkeypatch):
    spec = tiny(epochs=6)
    whole = run(spec, outputs=tmp_path / "whole")
    monkeypatch.setattr("ltkd.train.CHECKPOINT_SECONDS", 0)
    cut = {"outputs": tmp_path / "cut"}
    checkpoint, step = Store(tmp_path / "cut").checkpoint(spec), 0

    def saved():
        with suppress(FileNotFoundError), safe_open(checkpoint, "pt") as file:
            return json.loads(file.metadata()["position"])["step"]
        return 0

    for _ in range(3):
        process = get_context("fork").Process(target=run, args=[spec], kwargs=cut, daemon=True)
        process.start()
        limit = time.monotonic() + 60
        while saved() <= step:  # each start comes further than the last one
            assert process.is_alive()
            assert time.monotonic() < limit
            time.sleep(0.01)
        process.kill()
        process.join()
        step = saved()
    begun, train = [], Trainer.train
    monkeypatch.setattr(
        Trainer, "train", lambda one, *given: begun.append(one.at.step) or train(one, *given)
    )
    again = run(spec, **cut)
    assert begun == [step]
    assert again.values["history"] == whole.values["history"]
    assert again.values["model_sha256"] == whole.values["model_sha256"]


def test_write_atomic_leaves_the_old_file_when_it_fails(tmp_path, monkeypatch):
    path = tmp_path / "x"
    write_atomic(path, "old")

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        write_atomic(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_cuda_without_a_gpu_is_refused():
    import torch

    if torch.cuda.is_available():
        assert pick_device("auto").type == "cuda"
    else:
        assert pick_device("auto").type == "cpu"
        with pytest.raises(ValueError, match="allowed here: auto, cpu"):
            pick_device("cuda")


def test_a_worker_frees_the_last_run_before_the_next(tmp_path, tiny, monkeypatch):
    class Trainer:
        """What a run leaves: an object that holds itself."""

    left, freed = [], []

    def work(spec, **options):
        freed.append([ref() is None for ref in left])
        trainer = Trainer()
        trainer.itself = trainer
        left.append(weakref.ref(trainer))

    monkeypatch.setattr(pool, "run", work)
    for _ in range(3):
        pool._work(tiny(), tmp_path, "cpu", None)
    assert freed == [[], [True], [True, True]]
