"""NUM_EPOCHS 0: a model that was fine-tuned elsewhere goes through the stages with the weights that it has."""

import json
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file
from stage_runs import EXPORT, new_run, run_folder, run_stage_script

AS_IT_IS = ("--num-epochs", 0)
STAGES = {"int8_eager": ("train_qat_int8.py", "quantize_onnx_int8.py", "eval_onnx_int8.py"),
          "int4_eager": ("train_qat_int4.py", "quantize_onnx_int4.py", "eval_onnx_int4.py"),
          "fp16_eager": ("train_qat_fp16.py", "quantize_onnx_fp16.py", "eval_onnx_fp16.py")}
LEARNED = ("--activation-ranges", "learned")


@pytest.mark.parametrize(("folder", "arithmetic"), [("int8_eager", ()), ("int8_eager", LEARNED), ("int4_eager", ()),
                                                    ("fp16_eager", ())])
def test_all_stages_take_the_weights_as_they_are(finetuned, train_flags, eval_flags, small_data, folder, arithmetic):
    """Every weight is the model's own, bit for bit; the file answers as the simulation of them."""
    run = new_run()
    train, quantize, evaluate = STAGES[folder]
    flags = {train: (*train_flags, "--model-name", finetuned, *AS_IT_IS, *arithmetic), EXPORT: (),
             quantize: arithmetic + ("--data-dir", small_data) * (folder == "fp16_eager"), evaluate: eval_flags}
    for name, more in flags.items():
        done = run_stage_script(name, "--run", run, *more, folder=folder)
        assert done.returncode == 0, f"{name}: {done.stderr}"
        assert name != train or re.search(r"as is  (valid loss \S+  )?valid accuracy", done.stdout)
    theirs = load_file(finetuned / "model.safetensors")
    ours = torch.load(run_folder(run) / "model_qat.pth", weights_only=True)
    assert theirs.keys() <= ours.keys()
    assert [name for name, value in theirs.items() if not torch.equal(value, ours[name])] == []
    training = json.loads((run_folder(run) / "training.json").read_text())
    assert training["kept_epoch"] == 0
    files = json.loads((run_folder(run) / "results.json").read_text())["files"]
    ships = next(file for name, file in files.items() if name != "FP32")
    assert ships["all_against_simulation"]["flips"] == 0  # training scores batches, whose ranges are not one text's


def test_a_new_head_is_refused_as_it_is(train_flags):
    run = new_run()
    done = run_stage_script("train_qat_int8.py", "--run", run, *train_flags, *AS_IT_IS)
    assert done.returncode == 2
    assert done.error.startswith("NUM_EPOCHS is 0, and classifier.")
    assert not run_folder(run).exists()


def test_the_head_that_pretraining_draws_is_new(finetuned, train_flags, tmp_path):
    """pretrain/ saves one head for all seeds to start from: no weights are missing, and yet nothing trained them."""
    encoder = shutil.copytree(finetuned, tmp_path / "encoder")
    (encoder / "pretraining.json").write_text("{}")
    for folder, train in (("int8_eager", "train_qat_int8.py"), ("int4_eager", "train_qat_int4.py")):
        run = new_run()
        done = run_stage_script(train, "--run", run, *train_flags, "--model-name", encoder, *AS_IT_IS, folder=folder)
        assert done.returncode == 2
        assert "NUM_EPOCHS is 0, and classifier.weight, classifier.bias of MODEL_NAME" in done.error
        assert not run_folder(run).exists()
    done = run_stage_script(train, "--run", run, *train_flags, "--model-name", encoder, folder=folder)
    assert "classifier.weight, classifier.bias was not trained for these labels" in done.error


@pytest.mark.parametrize("epochs", [0, 1])
def test_a_model_is_not_replaced_by_what_is_made_of_it(finetuned, train_flags, epochs):
    """RUN and MODEL_NAME are one folder, by name or by a link: what trained it stays on record."""
    before = {path.name: path.read_bytes() for path in finetuned.iterdir()}
    link = run_folder(new_run())
    link.symlink_to(finetuned)
    for run in (finetuned.name, link.name):
        done = run_stage_script("finetune_fp32.py", "--run", run, *train_flags, "--model-name", finetuned,
                                "--num-epochs", epochs, folder="ptq")
        assert done.returncode == 2
        assert done.error.startswith("MODEL_NAME and RUN are one folder")
    link.unlink()
    assert {path.name: path.read_bytes() for path in finetuned.iterdir()} == before


def test_other_cleaning_is_refused_as_it_is(finetuned, train_flags):
    run = new_run()
    done = run_stage_script("train_qat_int8.py", "--run", run, *train_flags, "--model-name", finetuned, *AS_IT_IS,
                            "--cleaning", "documents")
    assert done.returncode == 2
    assert "run again with --cleaning minimal" in done.error
    assert not run_folder(run).exists()
