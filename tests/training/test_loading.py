"""A model folder that is damaged ends in one sentence that names the setting, whichever library finds it out."""

import shutil

import pytest

from lowbit.data.task import SENTIMENT
from lowbit.pipeline.errors import UserError
from lowbit.pipeline.files import ROOT
from lowbit.training.encoder import BUNDLED, load_pretrained


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
@pytest.mark.parametrize("kept", [0, 100, None])
def test_file_that_is_cut_short(tmp_path, name, kept):
    """Or holds something else altogether (None)."""
    folder = tmp_path / "model"
    shutil.copytree(ROOT / BUNDLED, folder)
    (folder / name).write_bytes(b"[]" if kept is None else (folder / name).read_bytes()[:kept])
    with pytest.raises(UserError, match="^START '.*model': .* does not load as a sequence classifier") as refused:
        load_pretrained(str(folder), "", SENTIMENT, "START")
    assert "\n" not in str(refused.value)
