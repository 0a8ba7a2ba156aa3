"""The tutorial runs from its first cell to its last, offline, and is committed as it ran."""

import pytest
from stage_runs import ENVIRONMENT, ROOT

nbformat = pytest.importorskip("nbformat", reason="Jupyter is not installed: requirements-notebook.txt")
nbclient = pytest.importorskip("nbclient", reason="Jupyter is not installed: requirements-notebook.txt")

NOTEBOOK = ROOT / "notebooks" / "quantization_tutorial.ipynb"


def outputs_of(notebook, kind: str) -> list:
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs
            if output.output_type == kind or output.get("name") == kind]


def test_tutorial_is_committed_executed():
    """Every code cell ran, in order, with pictures, and without warnings or a path of the machine that it ran on."""
    notebook = nbformat.read(NOTEBOOK, 4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert not outputs_of(notebook, "stderr")
    assert sum("image/png" in output.get("data", {}) for output in outputs_of(notebook, "display_data")) >= 5
    assert str(ROOT) not in NOTEBOOK.read_text(encoding="utf-8")


@pytest.mark.stages
def test_tutorial_runs_from_top_to_bottom(tmp_path, monkeypatch):
    """In a new kernel, from a folder of its own, without a hub; it ends with labels of Indonesian sentences."""
    for name in ("OMP_NUM_THREADS", "HF_HUB_OFFLINE", "TOKENIZERS_PARALLELISM"):
        monkeypatch.setenv(name, ENVIRONMENT[name])
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    notebook = nbformat.read(NOTEBOOK, 4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert not outputs_of(notebook, "error") + outputs_of(notebook, "stderr")
    said = "".join(output.text for output in outputs_of(notebook, "stdout"))
    assert "bit for bit" in said
    assert said.rstrip().endswith("Rapat dimulai pukul sembilan pagi di kantor pusat.")
