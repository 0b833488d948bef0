"""The project's own promises: files in step, the README's code runs, the library stays one-way."""

import ast
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import nbformat
import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_environment_yml_is_in_step_with_pyproject():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    *plain, pip = environment["dependencies"]
    assert f"python{PROJECT['requires-python']}" in plain
    assert pip["pip"] == [*PROJECT["dependencies"], "-e ."]


def test_the_lock_holds_every_dependency_with_hashes_and_no_host():
    lock = (ROOT / "requirements.lock").read_text()
    assert "://" not in lock
    pinned = dict(re.findall(r"^([a-z0-9-]+)==(\S+)", lock, re.MULTILINE))
    wanted = PROJECT["dependencies"] + [
        one for extra in PROJECT["optional-dependencies"].values() for one in extra
    ]
    for requirement in wanted:
        assert re.split(r"[<>=]", requirement)[0] in pinned, requirement
    assert pinned["torch"] == "2.11.0"
    assert pinned["torchvision"] == "0.26.0"
    assert lock.count("--hash=sha256:") >= len(pinned)


def test_no_committed_page_has_a_dead_link():
    known = subprocess.run(["git", "ls-files", "outputs"], cwd=ROOT, capture_output=True, text=True)
    names = set(known.stdout.split("\n"))
    if not names - {""}:
        pytest.skip("not a git checkout")
    pages = sorted(name for name in names if name.endswith(".html"))
    assert len(pages) > 30
    for name in pages:
        text = (ROOT / name).read_text()
        for link in re.findall(r'(?:href|src)="([^"#:]+)(?:#[^"]*)?"', text):  # none with a scheme
            target = (ROOT / name).parent.joinpath(link).resolve().relative_to(ROOT)
            assert str(target) in names, f"{name}: {link}"


def readme_blocks(language, folder="."):
    text = (ROOT / folder / "README.md").read_text()
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("name", ["LTKDLoss", " KDLoss"])
def test_the_readmes_losses_run_in_a_plain_loop(name):
    import torch

    (example,) = [block for block in readme_blocks("python") if name in block][:1]
    assert len([line for line in example.splitlines() if line]) <= 4
    torch.manual_seed(0)
    student, teacher = torch.nn.Linear(6, 10), torch.nn.Linear(6, 10)
    x, y = torch.randn(32, 6), torch.randint(10, (32,))
    counts = [116, 83, 59, 42, 30, 21, 15, 11, 8, 5]
    optimizer, losses = torch.optim.SGD(student.parameters(), lr=0.05), []
    for _ in range(20):
        names = {"torch": torch, "student_logits": student(x), "teacher_logits": teacher(x),
                 "labels": y, "counts": counts}  # fmt: skip
        exec(example, names)  # the block as it stands in the README
        optimizer.zero_grad()
        names["loss"].backward()
        optimizer.step()
        losses.append(names["loss"].item())
    assert losses[-1] < 0.9 * losses[0]
    assert teacher.weight.grad is None


def test_the_readmes_correction_runs():
    import torch

    whole, fitted = [block for block in readme_blocks("python") if "adjust_logits" in block]
    labels = torch.tensor([0] * 90 + [1] * 10)
    names = {
        "torch": torch,
        "student_logits": torch.tensor([[2.0, 1.0]]),
        "training_labels": labels,
    }
    exec(whole, names)  # 2 - log 0.9 = 2.1 against 1 - log 0.1 = 3.3
    assert names["classes"].tolist() == [1]
    # Two images, four to one for either class, and one and a half times the prior.
    odds, prior = torch.tensor([[0.8, 0.2], [0.2, 0.8]]), torch.tensor([0.9, 0.1])
    names["logits"] = odds.log() + 1.5 * prior.log()
    exec(fitted, names)
    assert names["tau"] == pytest.approx(1.5, abs=1e-5)
    assert names["classes"].tolist() == [0, 1]


def test_the_readmes_rivals_are_what_they_are_called():
    import torch
    from torch.nn.functional import cross_entropy

    (rivals,) = [block for block in readme_blocks("python", "ltkd/losses") if "log_prior" in block]
    counts, z = torch.tensor([90, 9, 1]), torch.randn(4, 3)
    names = {"torch": torch, "student_logits": z, "teacher_logits": z + counts.log(),
             "labels": torch.tensor([0, 1, 2, 2]), "counts": counts}  # fmt: skip
    exec(rivals, names)
    balanced = cross_entropy(z + counts.log(), names["labels"])
    torch.testing.assert_close(names["balanced_softmax"], balanced)
    assert names["adjusted_teacher"] < 1e-6  # the teacher less its prior is the student


def test_the_index_of_all_studies_has_the_answer():
    from bs4 import BeautifulSoup

    first = (ROOT / "outputs/FINDINGS.md").read_text().split("\n## ")[1].partition("\n")[2]
    page = BeautifulSoup((ROOT / "outputs/index.html").read_text(), "html.parser").main.get_text()
    bare = [re.sub(r"[\W_]+", "", text) for text in (first, page)]
    assert bare[0] in bare[1]


def test_the_readmes_student_loads(monkeypatch):
    import torch

    (example,) = [block for block in readme_blocks("python") if "load_model" in block]
    monkeypatch.chdir(ROOT)
    names = {}
    exec(example, names)
    assert not names["model"].training
    assert names["model"](torch.zeros(2, 3, 32, 32)).shape == (2, 100)


def test_the_readmes_study_is_one(tmp_path):
    from ltkd import Study

    (example,) = [block for block in readme_blocks("python") if "Study(" in block]
    calls = [node for node in ast.walk(ast.parse(example)) if isinstance(node, ast.Call)]
    (call,) = [call for call in calls if getattr(call.func, "id", "") == "Study"]
    given = {word.arg: ast.literal_eval(word.value) for word in call.keywords}
    study = Study(**given, outputs=tmp_path)
    (part,) = re.findall(r"study\.results\(\"(\w+)\"\)", example)
    assert {spec.method for _, spec in study.specs(part)} == set(given["methods"])


READMES = [".", "params", "ltkd/losses", "ltkd/workflow", "outputs/bench"]


def test_the_readmes_python_compiles_and_imports_what_there_is():
    import ltkd

    blocks = [block for folder in READMES for block in readme_blocks("python", folder)]
    assert len(blocks) >= 7
    for block in blocks:
        tree = ast.parse(block)
        compile(tree, "README.md", "exec")
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module == "ltkd":
                assert all(hasattr(ltkd, alias.name) for alias in node.names), block


def test_the_readmes_parameter_files_are_accepted(tmp_path):
    from ltkd.params import load_parameters, load_spec

    blocks = [block for folder in READMES for block in readme_blocks("yaml", folder)]
    kinds = []
    for k, block in enumerate(blocks):
        path = tmp_path / f"block{k}.yaml"
        path.write_text(block)
        one = load_spec if re.search(r"^method:", block, re.MULTILINE) else load_parameters
        kinds.append(type(one(path)).__name__)
    assert sorted(kinds) == ["RunSpec", "StudyParameters"]
    few = tmp_path / "few.yaml"  # what stands above the block: with fewer than ten classes
    own = [block for block in blocks if "dataset: folder" in block]
    few.write_text(own[0] + "group_counts: [1, 3]\n")
    assert load_parameters(few).group_counts == [1, 3]


def commands(folder):
    """The words of each `ltkd` command in the blocks of a README, up to a pipe or a file."""
    for block in readme_blocks("sh", folder):
        for line in block.replace("\\\n", " ").splitlines():
            lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
            lexer.whitespace_split = True
            words = list(lexer)
            if "ltkd" not in words[:1] and "-m ltkd" not in " ".join(words):
                continue
            words = words[words.index("ltkd") + 1 :]
            end = [k for k, word in enumerate(words) if word in ("|", ">", "&&", ";")]
            yield words[: end[0] if end else None]


def test_the_readmes_commands_are_accepted(capsys, monkeypatch):
    from ltkd import cli

    monkeypatch.chdir(ROOT)
    found = [words for folder in READMES for words in commands(folder)]
    assert {words[0] for words in found} == {"data", "run", "status", "train"}
    assert len(found) >= 8
    for words in found:
        try:
            given = cli._arguments().parse_args(words)
            if hasattr(given, "p"):  # a study, which the file and what is put over it make
                cli.study_of(words)
        except (SystemExit, ValueError) as error:
            pytest.fail(f"ltkd {shlex.join(words)}: {error} {capsys.readouterr().err}")


@pytest.mark.parametrize("folder", READMES)
def test_a_readme_names_only_what_is_there(folder):
    text = (ROOT / folder / "README.md").read_text()
    for path in re.findall(r"`((?:params|notebooks|outputs|ltkd|tests)/[\w./-]+)`", text):
        if "/quick/" not in path:  # made by `make study`
            assert (ROOT / path).exists(), path
    for path in re.findall(r"\]\(((?!http|#)[^)]+)\)", text):
        assert (ROOT / folder / path).exists(), path
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert set(re.findall(r"`make ([a-z-]+)", text)) <= targets


def test_the_readmes_pictures_are_those_of_the_pages():
    pictures = re.findall(r'<img src="([^"]+)"', (ROOT / "README.md").read_text())
    assert len(pictures) == 2
    pages = (ROOT / "outputs/cifar100_lt/reports").glob("0*.ipynb")
    cells = [cell for page in pages for cell in nbformat.read(page, as_version=4).cells]
    shown = [out.get("data", {}) for cell in cells for out in cell.get("outputs", [])]
    drawn = {data["image/svg+xml"] for data in shown if "image/svg+xml" in data}
    for name in pictures:
        assert (ROOT / name).read_text() in drawn, name


def test_every_parameter_file_is_described():
    text = (ROOT / "params/README.md").read_text()
    for file in (ROOT / "params").glob("*.yaml"):
        assert f"`{file.name}`" in text


# Who may import whom: data flows one way.
LAYERS = ["files", "parallel", "groups", "adjust", "losses", "models", "methods", "objective",
          "params", "precision", "data", "teacher", "train", "runs", "prior", "pool",
          "notebooks", "study", "estimate", "report", "cli", "__main__"]  # fmt: skip


def imports(path):
    package = ("ltkd", *path.relative_to(ROOT / "ltkd").parts[:-1])
    for node in ast.parse(path.read_text()).body:  # at the top of the file; inner ones are lazy
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            full = (*base, *(node.module or "").split(".")) if node.module else base
            names = [full] if node.module else [(*full, alias.name) for alias in node.names]
            yield from (name[1] for name in names if name[0] == "ltkd" and len(name) > 1)


@pytest.mark.parametrize(
    "path", sorted((ROOT / "ltkd").rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT))
)
def test_nothing_below_knows_what_stands_above(path):
    own = path.relative_to(ROOT / "ltkd").parts[0].removesuffix(".py")
    if own == "__init__":
        return
    for other in imports(path):
        if other != own and other in LAYERS:
            assert LAYERS.index(other) < LAYERS.index(own), f"{own} imports {other}"


def test_make_help_lists_the_targets():
    text = subprocess.run(["make", "-s", "help"], cwd=ROOT, capture_output=True, text=True).stdout
    assert {"study", "test", "env", "lab", "clean"} <= set(
        re.findall(r"^(\w+)", text, re.MULTILINE)
    )


def test_the_losses_and_the_correction_need_torch_alone(tmp_path):
    """Nor the project beside them: they are taken into other people's environments."""
    others = ["pandas", "pydantic", "safetensors", "scipy", "sklearn", "torchvision", "PIL", "yaml",
              "psutil", "papermill", "rich"]  # fmt: skip
    code = f"""import sys
sys.modules |= dict.fromkeys({others})  # to import one of these is an error
import torch, ltkd, ltkd.losses
ltkd.LTKDLoss(ltkd.class_groups([5, 3, 1]))(torch.zeros(2, 3), torch.zeros(2, 3))
ltkd.adjust_logits(torch.zeros(2, 3), [5, 3, 1])
print(ltkd.class_groups([5, 3, 1]).tolist())"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.stdout.strip() == "[0, 1, 2]"
