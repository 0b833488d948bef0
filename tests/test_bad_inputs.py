"""Bad inputs of every kind: one message that names what is wrong and the mend; nothing is lost.

What is refused elsewhere is not tried again here: see ``test_params``, ``test_cli``, ``test_runs``,
``data/test_folders`` and ``data/test_sources``.
"""

import ast
import base64
import json
import os
import pickle
import re
import struct
import zlib
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
from cells import parameters_cell
from PIL import Image
from safetensors.torch import load_file, save_file

from ltkd import cli, run
from ltkd.data import DataError, folders
from ltkd.data.sources import _CIFAR, cifar
from ltkd.files import canonical, sha256
from ltkd.notebooks import execute
from ltkd.params import StudyParameters
from ltkd.runs import Store

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def refused(tmp_path, capsys, monkeypatch):
    """Calls the command; asserts the exit code and what is said, and that no file has changed."""
    monkeypatch.setenv("LTKD_OUTPUTS", str(tmp_path / "outputs"))
    monkeypatch.setenv("LTKD_DATA", str(tmp_path / "data"))
    (tmp_path / "outputs/quick/runs/0").mkdir(parents=True)
    (tmp_path / "outputs/quick/runs/0/record.json").write_text("{}")

    def stamps():
        return {p: p.lstat().st_mtime_ns for p in tmp_path.rglob("*") if not p.is_dir()}

    def call(*arguments, says, code=2):
        before = stamps()
        try:
            got = cli.main([str(argument) for argument in arguments])
        except SystemExit as end:
            got = end.code
        said = capsys.readouterr()
        assert got == code, said
        for text in [says] if isinstance(says, str) else says:
            assert text in said.err
        assert "Traceback" not in said.out + said.err
        assert len(said.err) < 30_000
        assert stamps() == before

    return call


def many(n, start=0):
    return ", ".join(str(i) for i in range(start, start + n))


LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)
FOLDER = "dataset: folder\ngammas: [null]\nimages: "

# file content -> what the message must say
PARAMETERS = {
    "a billion laughs": (LAUGHS, ["line 1, column 4", "no tags", "aliases (*x)"]),
    "laughs in a list of seeds": (LAUGHS.replace("i: &i", "seeds: &i"), "write the value out"),
    "an alias": ("seeds: &s [0]\ngroup_counts: *s", "line 1, column 8"),
    "a merge": ("base: &b {name: x}\n<<: *b", "no tags (!x), anchors (&x)"),
    "a merge without an alias": ("<<: {name: x}", "<<: unknown key"),
    "a plain tag": ("epochs: !!int '25'", "line 1, column 9: epochs: !!int"),
    "a tag of bytes": ("name: !!binary aGFsbG8=", "no tags (!x)"),
    "a tag of a set": ("seeds: !!set {0}", "no tags (!x)"),
    "a tag that names a function": ("name: !!python/name:os.system", "no tags (!x)"),
    "a tag that makes an object": (
        "name: !!python/object/new:os.mkdir ['harm']",
        "no tags (!x)",
    ),
    "a tag of one's own": ("name: !mine x", "no tags (!x)"),
    "two documents": ("name: a\n---\nname: b", "expected a single document"),
    "another YAML": ("%YAML 9.9\n---\nname: a", "incompatible YAML document"),
    "nested lists": ("seeds: " + "[" * 3000 + "]" * 3000, "maximum recursion depth"),
    "nested mappings": ("method_args: " + "{a: " * 300 + "1" + "}" * 300, "maximum recursion"),
    "a list in a list": ("seeds: [[0]]", "seeds.0 = [0]: input should be a valid integer"),
    "a null byte": ("name: a\0b", "unacceptable character #x0000"),
    "a bell": ("name: \a", "unacceptable character #x0007"),
    "a byte order mark": ("\ufeffseedss: [0]", "seedss: unknown key. Did you mean 'seeds'?"),
    "line ends of another system": ("name: a\r\nseedss: [0]\r\n", "seedss: unknown key"),
    "two megabytes": ("# " + "x" * 2_000_000, "larger than 100 kB"),
    "a number of 400 digits": ("epochs: 1" + "0" * 400, "less than or equal to 10000"),
    "a number of 5000 digits": ("epochs: 1" + "0" * 5000, "not plain YAML: Exceeds the limit"),
    "a number past the largest": ("lr: 1e999", "lr = inf: input should be a finite number"),
    "a negative zero": ("lr: -0.0", "lr = -0.0: input should be greater than 0"),
    "an octal number": ("epochs: 010", "epochs = '010': input should be a valid integer"),
    "a hexadecimal number": ("epochs: 0x10", "epochs = '0x10': input should be a valid integer"),
    "minutes and seconds": ("epochs: 1:30", "epochs = '1:30': input should be a valid integer"),
    "a number with underscores": ("epochs: 1_0", "epochs = '1_0': input should be"),
    "digits of another script": ("epochs: ２５", "epochs = '２５': input should be a valid"),
    "a key that looks the same": ("s\u0435eds: [0]", "unknown key. Did you mean 'seeds'?"),
    "a value that looks the same": ("dataset: dig\u0456ts", "input should be 'digits'"),
    "an invisible character": ("name: 'quick\u200b'", "name = 'quick\\u200b': string should match"),
    "text from right to left": ("name: 'a\u202eb'", "name = 'a\\u202eb': string should match"),
    "half a character": ('name: "\\ud800"', "name = '\\ud800': input should be a valid string"),
    "an unknown escape": ('name: "\\q"', "unknown escape character 'q'"),
    "a name of 65 letters": ("name: " + "a" * 65, "{0,63}"),
    "a name with a line end": ('name: "abc\\n"', "name = 'abc\\n': string should match"),
    "a name of dots": ("name: ..", "name = '..': string should match"),
    "a name from the root": ("name: /etc", "name = '/etc': string should match"),
    "a name in a subfolder": ("name: a/b", "name = 'a/b': string should match"),
    "a number for a name": ("name: 12", "name = 12: input should be a valid string"),
    "no name": ("name: null", "name = None: input should be a valid string"),
    "a day for a name": ("name: 2001-01-01", "name = '2001-01-01': string should match"),
    "a key that is no text": ("1: 1", "keys should be strings"),
    "an empty key": ("'': 1", ": unknown key"),
    "yes in a list of numbers": ("seeds: [yes]", "seeds.0 = True: input should be a valid integer"),
    "no for a weight": ("alpha: no", "alpha = False: input should be a valid number"),
    "a mapping for a list": ("methods: {kd: 1}", "methods = {'kd': 1}: input should be a valid"),
    "nothing in a list": ("methods: [null]", "methods.0 = None: input should be a valid string"),
    "a seed of 2**31": ("seeds: [2147483648]", "seeds.0 = 2147483648: input should be less than"),
    "a split seed of 2**32": ("split_seed: 4294967296", "split_seed = 4294967296: input should"),
    "too many mistakes": (f"seeds: [{', '.join('a' * 900)}]", "and 880 more"),
    "a hundred thousand runs": (
        f"seeds: [{many(9000)}]",
        "153,000 runs are asked for; at most 50,000 make a study",
    ),
    "a sweep of 10**9": (
        "sweep: {ltkd: [{alpha: [%s], beta: [%s], temperature: [%s]}]}" % ((many(1000, 1),) * 3),
        "runs are asked for; at most 50,000",
    ),
    "a sweep of an unknown argument": (
        "sweep: {ltkd: [{gamma: [1]}]}",
        "unknown argument of method 'ltkd': 'gamma'. Allowed: ce_weight",
    ),
    "a sweep of no value": ("sweep: {ltkd: [{alpha: []}]}", "a list needs a value"),
    "a sweep without a list": ("sweep: {ltkd: {alpha: [1]}}", "input should be a valid list"),
    "a sweep of nothing to distil": ("sweep: {student: [{}]}", "has no arguments to choose"),
    "a sweep of an unknown method": ("sweep: {lkd: [{alpha: 1}]}", "Did you mean 'ltkd'?"),
    "a sweep past the range": ("sweep: {ltkd: [{alpha: 1e5}]}", "should be from 0 to 10000"),
    "gamma without an end": ("gammas: [.inf]", "gammas.0 = inf: input should be a finite number"),
    "gamma too large": ("gammas: [1e5]", "gammas.0 = 100000.0: input should be less than or equal"),
    "the same gamma twice": ("gammas: [20, 20.0]", "each value may stand there once"),
    "a set without a free gamma": ("gammas: [null]", "belong to tiny_imagenet, imagenet, folder"),
    "a holdout below zero": ("holdout: -1", "holdout = -1: input should be greater than or equal"),
    "a holdout on the fly": ("dataset: imagenet\nholdout: 5", "holdout = 5: only for images of at"),
    "ImageNet's rate without its batch": (
        "{dataset: imagenet, pairs: [resnet34_imagenet-resnet18_imagenet], lr: 0.2}",
        "lr = 0.2, batch = None: on imagenet both, or neither",
    ),
    "no groups": ("groups: 0", "groups = 0: input should be greater than or equal to 1"),
    "yes for a number of groups": ("group_counts: [yes]", "group_counts.0 = True: input should"),
    "epochs of 10**9": ("epochs: 1000000000", "less than or equal to 10000"),
    "no epoch evaluated": ("eval_every: 0", "eval_every = 0: input should be greater"),
    "a huge step of epochs": ("eval_every: 99999999999999999999", "less than or equal to 10000"),
    "no threads": ("threads: 0", "threads = 0: input should be greater"),
    "a batch past the range": ("batch: 65537", "batch = 65537: input should be less"),
    "no learning rate": ("lr: 0", "lr = 0: input should be greater than 0"),
    "a gradient clipped to nothing": ("clip_norm: 0", "clip_norm = 0: input should be greater"),
    "almost no temperature": ("temperature: 1e-5", "temperature = 1e-05 of method 'kd': should be"),
    "a temperature below zero": ("temperature: -4", "temperature = -4: input should be greater"),
    "no room for tables": ("table_gb: 0", "table_gb = 0: input should be greater than 0"),
    "an unknown device": ("device: tpu", "device = 'tpu': input should be 'auto', 'cpu' or 'cuda'"),
    "an unknown schedule": ("schedule: cosine", "input should be 'steps' or 'one_cycle'"),
    "a pair of three": ("pairs: [vgg13-vgg8-vgg8]", "should be teacher-student"),
    "a pair of nothing": ("pairs: ['-']", "unknown network in pairs: ''. Allowed: resnet8"),
    "arguments of an unknown method": ("method_args: {kdd: {}}", "unknown method 'kdd'. Did you"),
    "yes for an argument": ("method_args: {kd: {kd_weight: yes}}", "kd_weight = True of method"),
    "a number for yes": ("method_args: {ltkd: {rebalance: 1}}", "should be True's type"),
    "a temperature of zero": ("method_args: {kd: {temperature: 0}}", "should be from 0.001 to"),
    "a warm-up in epochs": (
        "method_args: {dkd: {warmup: 20}}",
        "warmup = 20.0 of method 'dkd': should be a fraction of the schedule, from 0 to 1",
    ),
    "a list for an argument": (
        "method_args: {ltkd: {alpha: [1, 2]}}",
        "method_args.ltkd.alpha = [1, 2]: input should be a valid number\n",
    ),
    "a word in a sweep's list": (
        "sweep: {ltkd: [{alpha: [1, x]}]}",
        "yaml: sweep.ltkd.0.alpha.1 = 'x': input should be a valid number\n",
    ),
    "an argument without its method": (
        "method_args: {temperature: 2}",
        "method_args.temperature = 2: a method's name should stand above it, such as "
        "{ltkd: {temperature: 2}}",
    ),
    "a number for a method's arguments": ("method_args: {kd: 2}", "input should be a valid dict"),
    "a method in capitals": ("methods: [KD]", "unknown method in methods: 'KD'. Did you mean 'kd'"),
    "a set in capitals": ("dataset: CIFAR100", "or 'folder'. Did you mean 'cifar100'?"),
    "a set with a hyphen": ("dataset: cifar-100", "or 'folder'. Did you mean 'cifar100'?"),
    "maps of 10**8 pixels": ("method_args: {catkd: {pool: 10000}}", "at most 64"),
    "an argument without an end": ("method_args: {kd: {kd_weight: .inf}}", "a finite number"),
    "images from the root": (FOLDER + "{folder: /etc, size: 32}", "folder = '/etc': should be a"),
    "images above": (FOLDER + "{folder: a/../../b, size: 32}", "should be a path below the data"),
    "the data root itself": (FOLDER + "{folder: ., size: 32}", "folder = '.': should be a path"),
    "a null byte in a folder": (FOLDER + '{folder: "a\\0b", size: 32}', "folder = 'a\\x00b': str"),
    "a folder of 5000 letters": (FOLDER + f"{{folder: {'x' * 5000}, size: 32}}", "at most 1000"),
    "a list from the root": (
        FOLDER + "{folder: a, size: 32, train_list: /etc/passwd}",
        "train_list = '/etc/passwd': should be a path below the data root",
    ),
    "an unknown size": (FOLDER + "{folder: a, size: 33}", "images.size = 33: input should be 32"),
    "images without a folder": ("dataset: folder", "needs images with folder and size"),
    "a wrong hash": (FOLDER + "{folder: a, size: 32, sha256: ../x}", "'^[0-9a-f]{64}$'"),
    "a null byte in the data root": ('data_root: "a\\0b"', "data_root = 'a\\x00b': string should"),
    # what only the data can tell, and is told before any run begins
    "a class without an image": ("gammas: [5000]", "gamma = 5000.0: class 6 keeps no image"),
    "a batch larger than the set": ("batch: 5000", "batch = 5000: the training set has only 390"),
    "a holdout larger than a class": ("holdout: 500", "holdout = 500: the smallest class has only"),
    "a holdout that leaves no tail": ("holdout: 110", "gamma = 20.0: class"),
}  # fmt: skip


@pytest.mark.parametrize("case", PARAMETERS)
def test_parameter_files(case, tmp_path, refused, monkeypatch):
    text, says = PARAMETERS[case]
    path = tmp_path / "wrong.yaml"
    path.write_bytes(text.encode())
    monkeypatch.setattr("ltkd.pool.ProcessPoolExecutor", None)  # whatever is asked, no run begins
    refused("run", path, says=says)


def _loop(path):
    path.symlink_to(path)


@pytest.mark.parametrize(
    ("place", "says"),
    [
        (Path.mkdir, "wrong.yaml: there is no such file"),
        (_loop, "wrong.yaml: there is no such file"),
        (os.mkfifo, "wrong.yaml: there is no such file"),
        (lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n\x00"), "not UTF-8 text"),
        (lambda path: path.write_bytes("name: a".encode("utf-16")), "not UTF-8 text"),
    ],
    ids=["a folder", "a loop", "a pipe", "an image", "UTF-16"],
)
@pytest.mark.parametrize("command", ["run", "train"])
def test_what_is_no_file_of_text(tmp_path, refused, command, place, says):
    place(tmp_path / "wrong.yaml")
    refused(command, tmp_path / "wrong.yaml", says=says)


GOOD = {"dataset": "digits", "gamma": "20", "student": "resnet8", "method": "student"}
TAUGHT = {"method": "kd", "teacher": "resnet20"}
SPECS = {
    "no method": ({"method": None}, "method: missing; it has no default"),
    "no student": ({"student": None}, "student: missing; it has no default"),
    "no gamma": ({"gamma": None}, "gamma: missing; it has no default"),
    "a key of a study": ({"gammas": "[20]"}, "gammas: unknown key. Did you mean 'gamma'?"),
    "a list for the set": ({"dataset": "[digits]"}, "dataset = ['digits']: input should be"),
    "a list for a method": ({"method": "[kd]"}, "method = ['kd']: input should be a valid string"),
    "a method without its teacher": ({"method": "kd"}, "method 'kd' needs a teacher; allowed: res"),
    "a method without its groups": (
        {"method": "ltkd", "teacher": "resnet20"},
        "method 'ltkd' needs groups",
    ),
    "groups for a method without": ({"groups": "3"}, "method 'student' takes no groups (given: 3)"),
    "a mapping for the teacher": (TAUGHT | {"teacher": "{a: b}"}, "teacher = {'a': 'b'}: input"),
    "a teacher's teacher": ({"method": "teacher", "teacher": "vgg13"}, "has no teacher, but"),
    "a student that looks the same": ({"student": "r\u0435snet8"}, "Did you mean 'resnet8'?"),
    "arguments that are a list": (TAUGHT | {"method_args": "[]"}, "should be a mapping of"),
    "arguments that are nothing": (TAUGHT | {"method_args": "null"}, "should be a mapping of"),
    "an argument that is a list": (
        TAUGHT | {"method_args": "{temperature: [1]}"},
        "temperature = [1] of method 'kd': should be from 0.001 to 10000",
    ),
    "an argument that is no number": (TAUGHT | {"method_args": "{temperature: .nan}"}, "= nan of"),
    "an argument of a method that has none": (
        {"method_args": "{none: 1}"},
        "unknown argument of method 'student': 'none'.",
    ),
    "an argument that is no name": (TAUGHT | {"method_args": "{1: 1}"}, "unknown argument of"),
    "half a pixel": (
        {"method": "catkd", "teacher": "vgg13", "method_args": "{pool: 0.5}"},
        "pool = 0.5 of method 'catkd': should be a whole number",
    ),
    "no table for it": (
        {"method": "reviewkd", "teacher": "resnet20"},
        "teacher_source = 'table': no table holds what reviewkd on digits asks",
    ),
    "a rate below zero": ({"lr": "-1"}, "lr = -1: input should be greater than 0"),
    "full momentum": ({"momentum": "1"}, "momentum = 1: input should be less than 1"),
    "a decay of two": ({"weight_decay": "2"}, "weight_decay = 2: input should be less than or"),
    "a teacher's seed without one": ({"teacher_seed": "3"}, "are of a run with a teacher"),
    "live without a teacher": ({"teacher_source": "live"}, "are of a run with a teacher"),
    "a batch without its rate": (
        TAUGHT | {"dataset": "imagenet", "batch": "1024"},
        "on imagenet lr and batch both, or neither",
    ),
    "a seed of 2**31": ({"seed": "2147483648"}, "seed = 2147483648: input should be less than"),
    "yes for a seed": ({"seed": "yes"}, "seed = True: input should be a valid integer"),
    "a gamma that is null": ({"gamma": "null"}, "a gamma that is null, belong to tiny_imagenet"),
    "an unknown precision": ({"precision": "fp16"}, "input should be 'fp32' or 'bf16'"),
    "a tag": ({"student": "!!python/name:os.system"}, "line 3, column 10"),
    "CIFAR is not there": ({"dataset": "cifar100"}, ["data/cifar-100-python", "data prepare"]),
    "ImageNet is not there": ({"dataset": "imagenet"}, ["imagenet is not there", "--data-root"]),
    "a batch larger than the set": ({"batch": "5000"}, "batch = 5000: the training set has only"),
    "a class without an image": ({"gamma": "5000"}, "gamma = 5000.0: class 6 keeps no image"),
    "a holdout larger than a class": ({"holdout": "500"}, "holdout = 500: the smallest class has"),
}  # fmt: skip


@pytest.mark.parametrize("case", SPECS)
def test_spec_files(case, tmp_path, refused, monkeypatch):
    changes, says = SPECS[case]
    path = tmp_path / "wrong.yaml"
    given = {k: v for k, v in (GOOD | changes).items() if v is not None}
    path.write_text("".join(f"{key}: {value}\n" for key, value in given.items()))
    monkeypatch.setattr("ltkd.pool.ProcessPoolExecutor", None)
    refused("train", path, says=says)


@pytest.mark.parametrize("name", ["...yaml", "..yaml", ".yaml", "a b.yaml", "a" * 101 + ".yaml"])
def test_a_spec_whose_name_is_no_folder_of_results(tmp_path, refused, name):
    """Its stem names the folder of the results: '..' would be the one above the outputs."""
    (tmp_path / name).write_text("".join(f"{key}: {value}\n" for key, value in GOOD.items()))
    refused("train", tmp_path / name, says=[str(tmp_path / name), "letters, digits and inner _"])


QUICK = str(ROOT / "params/quick.yaml")
CALLS = {
    "no command": ([], "the following arguments are required: COMMAND"),
    "an empty path": (["run", ""], "there is no such file"),
    "a folder for a file": (["run", str(ROOT / "params")], "there is no such file"),
    "a report that is not there": (["run", QUICK, "--only", "../03"], "no notebook starts so"),
    "no jobs": (["run", QUICK, "--jobs", "-1"], "should be 'auto' or a number from 1 to 1024"),
    "jobs of another script": (["run", QUICK, "--jobs", "٣"], "should be 'auto' or a number"),
    "jobs with a point": (["run", QUICK, "--jobs", "2.0"], "should be 'auto' or a number"),
    "too many jobs": (["run", QUICK, "--jobs", "1025"], "should be 'auto' or a number"),
    "no budget": (["run", QUICK, "--budget", "0"], "'0' should be a time such as 90s, 9m or 1.5h"),
    "a budget below zero": (["run", QUICK, "--budget=-5m"], "'-5m' should be a time"),
    "a budget without an end": (["run", QUICK, "--budget", "inf"], "'inf' should be a time"),
    "a budget of days": (["run", QUICK, "--budget", "2d"], "'2d' should be a time"),
    "an empty key": (["run", QUICK, "-p", "", "1"], ": unknown key"),
    "a key of two words": (["run", QUICK, "-p", "seeds lr", "1"], "seeds lr: unknown key"),
    "an empty value": (["run", QUICK, "-p", "seeds", ""], "seeds = None: input should be"),
    "a value of two lines": (["run", QUICK, "-p", "lr", "1\nseeds: [0]"], "-p lr '1\\nseeds: [0]'"),
    "a value with an alias": (["run", QUICK, "-p", "seeds", "&a [0]"], "no tags (!x), anchors"),
    "a value with a null byte": (["run", QUICK, "-p", "name", "a\0b"], "unacceptable character"),
    "a name that leaves": (["status", QUICK, "-p", "name", "../x"], "name = '../x': string should"),
    "a batch larger than the set": (["status", QUICK, "-p", "batch", "5000"], "batch = 5000: the"),
    "a data root with a null byte": (["run", QUICK, "-p", "data_root", '"\\0"'], "data_root = "),
    "an unknown device": (["train", QUICK, "--device", "gpu"], "invalid choice: 'gpu'"),
    "an unknown action": (["data", "fetch", "digits"], "invalid choice: 'fetch'"),
    "a set in the place of a file": (["data", "check", "birds.yml"], "there is no such file"),
    "too much": (["methods", "kd"], "unrecognized arguments: kd"),
}  # fmt: skip


@pytest.mark.parametrize("case", CALLS)
def test_command_lines(case, refused, monkeypatch):
    arguments, says = CALLS[case]
    monkeypatch.setattr("ltkd.pool.ProcessPoolExecutor", None)
    refused(*arguments, says=says)


def test_a_gpu_that_is_not_there_is_told_before_any_work(tmp_path, refused, monkeypatch):
    path = tmp_path / "one.yaml"
    path.write_text("".join(f"{key}: {value}\n" for key, value in GOOD.items()))
    monkeypatch.setattr("ltkd.pool.ProcessPoolExecutor", None)
    refused("train", path, "--device", "cuda", says="device = 'cuda': no GPU that torch can use")


def test_a_file_in_the_place_of_a_folder(tmp_path, refused):
    """The file system is at fault: exit 1, and the file stays what it was."""
    (tmp_path / "file").write_text("mine")
    path = tmp_path / "one.yaml"
    path.write_text("".join(f"{key}: {value}\n" for key, value in GOOD.items()))
    refused("train", path, "--outputs", tmp_path / "file", says="Not a directory", code=1)
    path.write_text(path.read_text().replace("digits", "cifar100"))
    root = tmp_path / "file"
    refused("train", path, "--data-root", root, says=[str(root), "is not there"])


# ---- folders of images


def birds(root, tiny=False):
    """Three classes of three and one images of 40 pixels, as a folder or as Tiny ImageNet."""
    folder = root / ("tiny-imagenet-200" if tiny else "birds")
    for c in range(3):
        inner = folder / f"train/n{c}" / ("images" if tiny else "")
        test = folder / "val" / ("images" if tiny else f"n{c}")
        for path in (*(inner / f"{i}.png" for i in range(3)), test / f"v{c}.png"):
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (40, 40), (60 * c, 99, 7)).save(path)
    if tiny:
        rows = "".join(f"v{c}.png\tn{c}\t0\t0\t9\t9\n" for c in range(3))
        (folder / "val/val_annotations.txt").write_text(rows)
    return folder


def png(width, height, *chunks):
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = b"\x89PNG\r\n\x1a\n"
    for kind, data in ((b"IHDR", header), *chunks, (b"IDAT", zlib.compress(b"")), (b"IEND", b"")):
        body += struct.pack(">I", len(data)) + kind + data
        body += struct.pack(">I", zlib.crc32(kind + data))
    return body


BOMB = png(50_000, 50_000)  # 7.5 GB once it is decoded
TEXT_BOMB = png(9, 9, (b"zTXt", b"a\0\0" + zlib.compress(bytes(10**8), 9)))
AT = "train/n1/x.jpg"
IMAGES = {
    "text": (AT, b"not an image\n", "cannot identify image file"),
    "a page": (AT, b"<!DOCTYPE html><title>404</title>", "cannot identify image file"),
    "a GIF": (AT, b"GIF89a\x01\x00\x01\x00\x00\x00\x00;", "cannot identify image file"),
    "a pickle": (AT, pickle.dumps(print), "cannot identify image file"),
    "no bytes": (AT, b"", "an empty file, no image; get it again or remove it"),
    "no bytes, in the test set": ("val/n1/x.jpg", b"", "an empty file, no image"),
    "a header alone": (AT, png(9, 9), "not an image that can be read"),
    "2,500 megapixels in 70 bytes": (AT, BOMB, "exceeds limit of"),
    "60 megapixels in 70 bytes": (AT, png(6000, 10000), "6000 x 10000: over 50 megapixels"),
    "a text of 100 MB in 97 kB": (AT, TEXT_BOMB, "Decompressed data too large"),
    "no pixels": (AT, png(0, 0), "not an image that can be read"),
}


@pytest.mark.parametrize("case", IMAGES)
def test_images(case, tmp_path, refused):
    place, data, says = IMAGES[case]
    path = birds(tmp_path / "data") / place
    path.write_bytes(data)
    (tmp_path / "birds.yaml").write_text(FOLDER + "{folder: birds, size: 32}")
    refused("data", "prepare", tmp_path / "birds.yaml", says=[f"{path}: ", says])


def _gone(path):
    path.rename(path.parent.parent / "elsewhere")


TREES = {
    "a pipe": (AT, os.mkfifo, f"{AT}: an empty file, no image"),
    "a folder with an image's name": (AT, Path.mkdir, f"{AT}: a folder in a class's own"),
    "an image that is a loop": (AT, _loop, [AT, "Too many levels of symbolic links"]),
    "a class that is a loop": ("train/n3", _loop, None),
    "a class without images": ("val/n3", Path.mkdir, "val/n3: the class n3 has no images"),
    "a class that only trains": ("val/n1", _gone, "1 are not in all: n1"),
    "no training images": ("train", _gone, "birds is not there, or not whole"),
    "no test images": ("val", _gone, [str(Path("birds/test")), "No such file"]),
    "other classes by wnids.txt": ("wnids.txt", "n0\nn1\n", "1 are not in all: n2"),
    "wnids.txt of no text": ("wnids.txt", b"\xff\xfe", "wnids.txt: not UTF-8 text"),
    "words.txt of no text": ("words.txt", b"n0\t\xe4", "words.txt: not UTF-8 text"),
    "words.txt that is a folder": ("words.txt/x", None, None),
}


@pytest.mark.parametrize("case", TREES)
def test_folders_of_images(case, tmp_path, refused, capsys):
    place, put, says = TREES[case]
    path = birds(tmp_path / "data") / place
    path.parent.mkdir(exist_ok=True)
    if isinstance(put, bytes | str):
        path.write_bytes(put if isinstance(put, bytes) else put.encode())
    elif put:
        put(path)
    given = tmp_path / "birds.yaml"
    given.write_text(FOLDER + "{folder: birds, size: 32}")
    if says is None:  # what is neither image nor class is passed over
        assert cli.main(["data", "prepare", str(given), "--data-root", str(tmp_path / "data")]) == 0
        assert "9 training and 3 test images of 3 classes" in capsys.readouterr().out
    else:
        refused("data", "prepare", given, says=says)


LISTS = {
    "a label of 5000 digits": ("train/n0/0.png " + "9" * 5000, "line 1: should be a path below"),
    "a label below zero": ("train/n0/0.png -1", "line 1: should be a path below"),
    "a path from the root": ("/etc/hosts 0", "line 1: should be a path below"),
    "a null byte": ("train/n0/\0.png 0", "not there, but list.txt names it in line 1"),
    "a folder": ("train/n0 0", "not there, but list.txt names it in line 1"),
    "bytes that are no text": (b"train/n0/\xff.png 0", "list.txt: not UTF-8 text"),
    "no line": ("", "should have the same classes"),
}


@pytest.mark.parametrize("case", LISTS)
def test_lists_of_images(case, tmp_path, refused):
    line, says = LISTS[case]
    path = birds(tmp_path / "data") / "list.txt"
    path.write_bytes(line if isinstance(line, bytes) else line.encode())
    given = tmp_path / "birds.yaml"
    given.write_text(FOLDER + "{folder: birds, size: 32, train_list: list.txt}")
    refused("data", "prepare", given, says=[str(path.parent), says])


@pytest.mark.parametrize(
    ("row", "says"),
    [
        (b"v0.png\n", "line 1: should be a file of val/images and its class"),
        (b"../../../x.png n0\n", "line 1: should be a file of val/images and its class"),
        (b"v9.png n0\n", "val/images/v9.png: No such file"),
        (b"\xff n0\n", "val_annotations.txt: not UTF-8 text"),
    ],
)
def test_annotations_of_tiny_imagenet(tmp_path, refused, row, says):
    path = birds(tmp_path / "data", tiny=True) / "val/val_annotations.txt"
    path.write_bytes(row)
    refused("data", "prepare", "tiny_imagenet", says=[str(path.parent), says])


@pytest.mark.parametrize("file", ["manifest.json", "stamps.json", "progress.json"])
@pytest.mark.parametrize("text", ["", "[]", "{}", "[1]", '{"listing": 1}', "\0", '{"a": [1, 2]}'])
@pytest.mark.parametrize("size", [32, 224])
def test_what_is_made_of_a_folder_is_never_trusted(tmp_path, file, text, size):
    """Edited by hand, it is made anew from the images."""
    birds(tmp_path)
    images = folders.complete("folder", folders.Images(folder="birds", size=size))
    whole = folders.find(images, "folder", tmp_path)
    (tmp_path / f"birds.ltkd/{size}" / file).write_text(text)
    folders.find.cache_clear()
    again = folders.find(images, "folder", tmp_path)
    assert again.sha256 == whole.sha256
    assert again.train[1].tolist() == whole.train[1].tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]


def test_a_class_that_is_a_link_is_read_and_nothing_is_written_beside_it(tmp_path):
    folder = birds(tmp_path / "data")
    (tmp_path / "away").mkdir()
    (folder / "train/n1").rename(tmp_path / "away/n1")
    (folder / "train/n1").symlink_to(tmp_path / "away/n1")
    images = folders.complete("folder", folders.Images(folder="birds", size=32))
    assert len(folders.find(images, "folder", tmp_path / "data").train[1]) == 9
    assert sorted(p.name for p in (tmp_path / "away").rglob("*")) == sorted(
        ["n1", "0.png", "1.png", "2.png"]
    )


# ---- records, checkpoints, tables: what a study reads again


class Harm:
    """Makes a folder where it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A finished teacher and student; files that unpickling would betray, by their ending."""
    from ltkd.params import RunSpec

    folder = tmp_path_factory.mktemp("made")
    spec = RunSpec(dataset="digits", gamma=20.0, student="resnet8", method="kd", groups=None,
                   teacher="resnet8", epochs=1, batch=32, lr=0.05)  # fmt: skip
    return spec, folder, run(spec, outputs=folder)


def test_a_pickle_is_loaded_from_no_place_of_a_study(made, tmp_path, capsys):
    spec, folder, good = made
    os.system(f"cp -r {folder} {tmp_path}/study")
    store, marker = Store(tmp_path / "study"), tmp_path / "harm"
    plain, zipped = pickle.dumps(Harm(marker)), tmp_path / "zipped"
    torch.save(Harm(marker), zipped)
    places = [
        store.model_path(spec.teacher_spec), store.model_path(spec),
        *store.folder.rglob("*.npy"),
        *(store.run_folder(s) / "checkpoint.safetensors" for s in (spec, spec.teacher_spec)),
    ]  # fmt: skip
    assert {p.name for p in places} >= {"logits.npy", "predictions.npy"}
    assert "splits" in {p.parent.name for p in places}
    for data in (plain, zipped.read_bytes()):
        for path in places:
            path.write_bytes(data)
            if path.suffix == ".npy" and data is plain:
                np.save(path, np.array([Harm(marker)], dtype=object), allow_pickle=True)
        again = run(spec, outputs=store.folder)
        assert again.values["history"] == good.values["history"]
        assert (again.predictions() == good.predictions()).all()
        assert "damaged" in capsys.readouterr().err
        assert not marker.exists()
    pickle.loads(plain)  # the proof that it would have done harm
    assert marker.exists()


def sealed(values):
    values = {k: v for k, v in values.items() if k != "sha256"}
    return json.dumps(values | {"sha256": sha256(canonical(values))})


RECORDS = {
    "no bytes": lambda text, values: "",
    "no JSON": lambda text, values: "record",
    "a list": lambda text, values: "[]",
    "nothing": lambda text, values: "null",
    "a number": lambda text, values: "1e999",
    "half": lambda text, values: text[: len(text) // 2],
    "nested lists": lambda text, values: "[" * 100_000,
    "no seal": lambda text, values: json.dumps({k: v for k, v in values.items() if k != "sha256"}),
    "another seal": lambda text, values: json.dumps(values | {"sha256": "0" * 64}),
    "a seal that is no text": lambda text, values: json.dumps(values | {"sha256": [1]}),
    "not a number": lambda text, values: json.dumps(values | {"seconds": float("nan")}),
    "no files": lambda text, values: sealed({k: v for k, v in values.items() if k != "files"}),
    "no status": lambda text, values: sealed({k: v for k, v in values.items() if k != "status"}),
    "another status": lambda text, values: sealed(values | {"status": "fine"}),
    "another run": lambda text, values: sealed(values | {"run": "0" * 16}),
    "files elsewhere": lambda text, values: sealed(values | {"files": {"../x": "0" * 64}}),
    "nothing about a model": lambda text, values: sealed(values | {"model_sha256": None}),
}


@pytest.mark.parametrize("case", RECORDS)
def test_records(made, tmp_path, capsys, case):
    spec, folder, _ = made
    os.system(f"cp -r {folder} {tmp_path}/study")
    store, teacher = Store(tmp_path / "study"), spec.teacher_spec
    path = store.run_folder(teacher) / "record.json"
    assert store.get(teacher) is not None
    text = path.read_text()
    path.write_text(RECORDS[case](text, json.loads(text)))
    left = path.read_text()
    assert store.get(teacher) is None
    assert "damaged (" in (said := capsys.readouterr().err)
    assert "made anew" in said
    if case != "nothing about a model":
        assert path.with_name("record.json.damaged").read_text() == left


def _of(change):
    """A checkpoint of one's own making: the model's tensors, and a position."""

    def make(model, path):
        tensors = {k: v.float() for k, v in load_file(model).items()}
        about = {"position": canonical({"step": 3, "seconds": 0.0, "history": []})}
        tensors, about = change(tensors | {"sums": torch.zeros(3)}, about)
        save_file({k: v.contiguous() for k, v in tensors.items()}, path, about)

    return make


CHECKPOINTS = {
    "no bytes": lambda model, path: path.write_bytes(b""),
    "half": lambda model, path: path.write_bytes(model.read_bytes()[:9999]),
    "a flipped byte in its header": lambda model, path: path.write_bytes(
        bytes([model.read_bytes()[0] ^ 255]) + model.read_bytes()[1:]
    ),
    "a header longer than the file": lambda model, path: path.write_bytes(b"\xff" * 8 + b"{}"),
    "a finished model": lambda model, path: path.write_bytes(model.read_bytes()),
    "a position that is no JSON": _of(lambda tensors, about: (tensors, {"position": "x"})),
    "a position with another key": _of(lambda tensors, about: (tensors, {"position": '{"a": 1}'})),
    "no position": _of(lambda tensors, about: (tensors, None)),
    "other shapes": _of(lambda tensors, about: ({k: v[..., :1] for k, v in tensors.items()
                                                 if v.ndim} | {"sums": torch.zeros(3)}, about)),
    "no momentum": _of(lambda tensors, about: (tensors, about)),
    "no tensors": _of(lambda tensors, about: ({}, about)),
}  # fmt: skip


@pytest.mark.parametrize("case", CHECKPOINTS)
def test_checkpoints(made, tmp_path, capsys, tiny, case, monkeypatch):
    """Set aside by name; the run begins anew, and comes to what it would have come to."""
    from ltkd import runs

    spec, folder, _ = made
    student = Store(folder).model_path(spec)
    store, own = Store(tmp_path), spec.teacher_spec
    path = store.run_folder(own) / "checkpoint.safetensors"
    path.parent.mkdir(parents=True)
    CHECKPOINTS[case](student, path)
    left = path.read_bytes()
    # The training itself is not what is tried here: it is enough where it would begin.
    began = []
    monkeypatch.setattr(runs.Trainer, "train", lambda self, *_: began.append(self.at.step) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run(own, outputs=tmp_path)
    assert began == [0]
    assert f"{path}: damaged (" in capsys.readouterr().err
    assert path.with_name("checkpoint.safetensors.damaged").read_bytes() == left


# ---- code that could come in


def test_nothing_in_the_library_runs_what_it_reads():
    """The one pickle is CIFAR's, after its md5; NumPy is told each time to load none."""
    source = {p: p.read_text() for p in (ROOT / "ltkd").rglob("*.py")}
    risky = r"pickle\.|torch\.load|yaml\.load|[^.\w](eval|exec|compile)\(|shell=True|os\.system"
    lines = [(p.name, line.strip()) for p, text in source.items() for line in text.splitlines()]
    found = [(name, line) for name, line in lines if re.search(risky, line)]
    assert sorted(found) == [
        ("params.py", "return yaml.load(text, Loader=_Loader)"),
        ("sources.py", 'return pickle.loads(data, encoding="latin1")'),
    ]
    loads = [call for text in source.values() for call in re.findall(r"np\.load\(.*", text)]
    assert loads
    assert all("allow_pickle=False" in call for call in loads)


def test_a_cifar_file_with_the_official_name_and_other_bytes_is_not_unpickled(tmp_path):
    marker, about = tmp_path / "harm", _CIFAR["cifar100"]
    (tmp_path / about.folder).mkdir()
    for file in about.files:
        (tmp_path / about.folder / file).write_bytes(pickle.dumps(Harm(marker)))
    with pytest.raises(DataError, match="not the official file"):
        cifar("cifar100", tmp_path)
    assert not marker.exists()


MARKS = ["<script>alert(1)", "<img src=x onerror=alert(2)>", "a $x_{ **b** `c` | {d} %s \\ \"'"]


@pytest.mark.slow
def test_a_class_called_script_is_text_on_a_page(tmp_path):
    """From a folder's name, by the data set and a notebook, to a page."""
    folder, reports = birds(tmp_path), tmp_path / "reports"
    for part in ("train", "val"):
        for c, mark in enumerate(MARKS):
            (folder / part / f"n{c}").rename(folder / part / mark)
    given = {"dataset": "folder", "gammas": [None], "images": {"folder": "birds", "size": 32},
             "batch": 4, "group_counts": [3]}  # fmt: skip
    env = {"LTKD_DATA": str(tmp_path), "LTKD_OUTPUTS": str(tmp_path / "outputs")}
    result = execute(ROOT / "notebooks/00_data.ipynb", given, reports, env=env)
    assert result.ok, result.error
    page, data = (reports / "00_data.html").read_text(), [*reports.glob("00_data.*.csv")]
    assert set(pd.read_csv(data[0])["class_name"]) == set(MARKS)
    for mark in MARKS[:2]:
        assert mark not in page
        assert (
            mark not in base64.b64decode(re.findall(r"svg\+xml;base64,([^\"]*)", page)[0]).decode()
        )


ATTACKS = [
    "__import__('os').mkdir('harm')",
    "\"; __import__('os').mkdir('harm') #",
    "'; __import__('os').mkdir('harm') #",
    "\"\"\"'''\n__import__('os').mkdir('harm')\n",
    "\\",
    "\\\"; __import__('os').mkdir('harm') #",
    "a\nb\r\n\tc\\n\\x41\\N{BULLET}",
    "\u2028__import__('os').mkdir('harm')\u2029\x85\x0c\x0b\x1c",
    "\0\x1a\x7f\ufeff",
    "{__import__('os').mkdir('harm')} {{x}} %(x)s $x",
    "!mkdir harm",
    "%sx mkdir harm",
    "# -*- coding: utf-7 -*-\n+AF8AXw",
]


@pytest.mark.slow
def test_no_value_of_any_parameter_becomes_code(tmp_path):
    """papermill writes values into a cell as text: past the schema, each comes back as it was."""
    values = {}
    for key, field in StudyParameters.model_fields.items():
        kinds = {list: ATTACKS, dict: dict(zip(ATTACKS, ATTACKS, strict=True))}
        values[key] = kinds.get(type(field.default), "; ".join(ATTACKS))
    first = nbformat.v4.new_code_cell(parameters_cell(), id="parameters")
    first.metadata.tags = ["parameters"]
    says = f"import json\nprint(json.dumps([{', '.join(values)}]))"
    told = nbformat.v4.new_code_cell(says, id="told")
    kernel = {"kernelspec": {"name": "python3", "display_name": "3", "language": "python"}}
    nbformat.write(
        nbformat.v4.new_notebook(metadata=kernel, cells=[first, told]), tmp_path / "nb.ipynb"
    )
    result = execute(tmp_path / "nb.ipynb", values, tmp_path / "reports")
    assert result.ok, result.error
    cells = nbformat.read(result.report, as_version=4).cells
    assert json.loads(cells[-1].outputs[0].text) == list(values.values())
    for node in ast.parse(cells[1].source).body:  # what papermill has written: literals alone
        assert isinstance(node, ast.Assign)
        ast.literal_eval(node.value)
    assert not list(tmp_path.rglob("harm"))
