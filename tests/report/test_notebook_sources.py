"""The notebooks as they are kept: no outputs, short cells, a fixed frame."""

import ast
import re
from itertools import pairwise
from pathlib import Path

import nbformat
import pytest
from cells import parameters_cell

from ltkd.params import StudyParameters
from ltkd.study import _assigned

FOLDER = Path(__file__).parents[2] / "notebooks"
NAMES = ["00_data", "01_decomposition", "02_teachers", "03_distillation", "04_ablations",
         "05_group_count", "06_summary", "07_prior_removed", "explore"]  # fmt: skip


def test_all_are_there():
    assert sorted(path.stem for path in FOLDER.glob("*.ipynb")) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_notebook(name):
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    assert notebook.metadata.kernelspec.name == "python3"
    assert len({cell.id for cell in notebook.cells}) == len(notebook.cells)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    text = [cell for cell in notebook.cells if cell.cell_type == "markdown"]
    assert all(not cell.outputs and cell.execution_count is None for cell in code)
    # The frame: title and question, parameters, the study, ..., the seal.
    assert text[0].source.startswith("# ")
    assert text[0].source.splitlines()[0].endswith("?")
    assert notebook.cells[0] is text[0]
    assert code[0].metadata.tags == ["parameters"]
    assert ast.dump(ast.parse(code[0].source)) == ast.dump(ast.parse(parameters_cell()))
    assert code[1].source.endswith("study = Study.from_notebook(globals())\nstudy")
    assert notebook.cells[-1].source == f'study.seal("{name}")'
    # Short cells without logic of their own, and prose between any two.
    for cell in code[1:]:
        assert len(cell.source.splitlines()) <= 15, cell.source
        kinds = (ast.FunctionDef, ast.ClassDef, ast.Lambda)
        assert not any(isinstance(node, kinds) for node in ast.walk(ast.parse(cell.source)))
        # A parameter keeps its value, so that the study's cell can be run again.
        assert not _assigned(cell.source) & StudyParameters.model_fields.keys()
    levels = [len(m) for cell in text for m in re.findall(r"^(#+) ", cell.source, re.M)]
    assert levels.count(1) == 1
    assert all(b <= a + 1 for a, b in pairwise(levels))
    words = [sum(len(cell.source.split()) for cell in cells) for cells in (text, code[1:])]
    assert words[0] > 1.5 * words[1]


def test_only_the_summary_has_the_headline():
    tagged = {
        name: sum("headline" in cell.metadata.get("tags", []) for cell in
                  nbformat.read(FOLDER / f"{name}.ipynb", as_version=4).cells) for name in NAMES
    }  # fmt: skip
    assert {name for name, count in tagged.items() if count} == {"06_summary"}
