"""examples/notebook.ipynb runs from top to bottom, and is kept without outputs."""

from __future__ import annotations

import nbformat
import pytest
from conftest import ROOT
from nbclient import NotebookClient

NOTEBOOK = ROOT / "examples/notebook.ipynb"


@pytest.fixture
def kernel(tmp_path, monkeypatch):
    """The kernel imports this clone, and keeps its connection files and its history to itself."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    for name in ("JUPYTER_RUNTIME_DIR", "IPYTHONDIR"):
        monkeypatch.setenv(name, str(tmp_path / name))


def test_the_notebook_runs_and_compares_the_methods(kernel):
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(ROOT / "examples")}}
    ).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert not [output for output in outputs if output.get("name") == "stderr"]
    told = "".join(output.text for output in outputs if output.output_type == "stream")
    assert "probe      780 images of 260 characters" in told
    mean = {line.split()[0]: float(line.split()[1]) for line in told.splitlines() if line.count(".") == 4}
    assert mean["cosine"] == 0.7524  # as the README says
    assert mean["cosine"] < mean["lbr"] < mean["center+camera-graph"]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 2


def test_the_notebook_is_kept_without_outputs():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert (cell.outputs, cell.execution_count) == ([], None)
