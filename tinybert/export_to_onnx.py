"""Stage 4 of 7: export teacher and students to FP32 ONNX graphs, each checked against PyTorch.

Reads   models/<RUN>-<TASK>-{teacher,student_*}/ (finetune_teacher.py, distil.py)
Writes  models/<RUN>-<TASK>-{teacher,student_*}/model.onnx
Next    quantize.py
"""
from lowbit.distill.places import ONNX, WEIGHTS, check_names, flags_of, made_by, models_of, trainer_of
from lowbit.graph.export import check_opset, export_checked
from lowbit.pipeline.files import atomic_folder, claim, file_bytes, shown
from lowbit.pipeline.manifest import is_made, publish, record
from lowbit.pipeline.settings import check
from lowbit.pipeline.stage import next_command, run_stage
from lowbit.training.encoder import RUN_FILES, load_run, longest_input

# ---- settings: edit here, or for one run: --task SST-2 --------------------------------------------
RUN = "tinybert"                # first part of the names of all folders under models/ that the stages share
TASK = "RTE"                    # the task whose models are exported
MODELS = ""                     # teacher and student_<name>, with commas; "" = all that were trained
OPSET = 17                      # ONNX operator set of the graph; 17 to 20
SEQ_LEN = 128                   # tokens of the batch that is traced; batch and length of the graph are dynamic
# --------------------------------------------------------------------------------------------------

STAGE = "tinybert/export_to_onnx.py"


def main(settings):
    check_names(RUN, TASK)
    check_opset(OPSET)
    check(SEQ_LEN >= 8, f"SEQ_LEN is {SEQ_LEN}; it must be at least 8 tokens")
    for name, folder in models_of(RUN, TASK, MODELS).items():
        trained = trainer_of(folder)
        read = made_by(trained, folder, flags_of(RUN, TASK, name), WEIGHTS, *RUN_FILES)
        given = {"OPSET": OPSET, "SEQ_LEN": SEQ_LEN}
        if is_made(folder, STAGE, given, read, [ONNX]):
            print(f"  {name}: exported before")
            continue
        longest = longest_input(load_run(folder))
        check(longest >= SEQ_LEN, f"SEQ_LEN is {SEQ_LEN}, but {name} reads at most {longest} tokens")
        claim(folder)
        with atomic_folder(folder) as scratch:
            export_checked(folder, WEIGHTS, scratch / ONNX, OPSET, SEQ_LEN)
            names = publish(scratch)
        record(folder, STAGE, given, read, names)
        print(f"wrote {shown(folder / ONNX)} ({file_bytes(folder / ONNX) / 1e6:.1f} MB)", flush=True)
    return next_command("tinybert/quantize.py", settings, "RUN", "TASK")


if __name__ == "__main__":
    run_stage(main, globals())
