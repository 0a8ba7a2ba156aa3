"""Stage 3 of 4: turn the exported FP32 graph into FP16, check that it fits, loads and agrees, count its types.

Reads   models/<RUN>/model_qat.onnx         (export_to_onnx.py), model_qat.pth (train_qat_fp16.py)
        DATA_DIR/valid.tsv                  texts to check ranges and logits on
Writes  models/<RUN>/model_qat_fp16.onnx    with model_qat_fp16.onnx.data beside it from 2 GB on
Next    eval_onnx_fp16.py
"""
from lowbit.data.task import read_task, task_of_run
from lowbit.data.tokens import TextReader, load_reader
from lowbit.data.tsv import read_split
from lowbit.fp16.conversion import (
    CONVERTERS,
    compare_files,
    convert,
    largest_magnitudes,
    parameters_as_stored,
    read_fp32,
    refuse_overflow,
    refuse_too_large,
)
from lowbit.fp16.simulation import operators, simulate
from lowbit.graph.agreement import differing, stored_parameters
from lowbit.graph.census import dtype_census, dtype_lines
from lowbit.graph.export import ONNX, largest_difference
from lowbit.graph.inputs import CHECKED_SHAPES, hostile_inputs
from lowbit.measure.session import sorted_batches
from lowbit.pipeline.errors import UserError
from lowbit.pipeline.files import atomic_folder, claim, file_bytes, resolve, run_dir, shown, write_json
from lowbit.pipeline.manifest import publish, record, recorded, settings_of
from lowbit.pipeline.settings import check
from lowbit.pipeline.stage import next_command, run_stage
from lowbit.training.encoder import RUN_FILES, load_run, longest_input
from lowbit.training.weights import WEIGHTS, load_weights

# ---- settings: edit here, or for one run: --fp32-ops LayerNormalization,Softmax ------------------
RUN = "indobert-qat-fp16-smsa"  # folder under models/ shared by the four stages
DATA_DIR = "data"               # folder of valid.tsv: its texts are what ranges and logits are checked on
CHECK_TEXTS = 256               # how many of them, spread over the file
KEEP_IO_TYPES = True            # logits as FP32; False: as FP16. Inputs are integers either way
FP32_OPS = ""                   # ONNX operators kept in FP32, such as "LayerNormalization,Softmax"; as trained
CLIP_WEIGHTS = False            # ship weights beyond 65,504 at that limit; False refuses them, by name
TOLERANCE = 0.02                # largest logit difference to FP32 on the texts that is accepted
CONVERTER = "onnxruntime"       # onnxruntime, or onnxconverter-common (files under 2 GB, no single node in FP32)
# --------------------------------------------------------------------------------------------------

TRAIN, EXPORT = "fp16_eager/train_qat_fp16.py", "fp16_eager/export_to_onnx.py"
STAGE, EVALUATE = "fp16_eager/quantize_onnx_fp16.py", "fp16_eager/eval_onnx_fp16.py"
STAGES = {"train": TRAIN, "export": EXPORT, "quantize": STAGE, "evaluate": EVALUATE}
FP16 = "model_qat_fp16.onnx"


def checked_batches(folder, reader: TextReader) -> list[dict]:
    """CHECK_TEXTS validation texts, length-sorted in batches of 16."""
    data_dir = resolve(DATA_DIR)
    texts, _ = read_split(data_dir, "valid", task_of_run(folder, data_dir))
    return sorted_batches(reader.rows(texts[:: -(-len(texts) // CHECK_TEXTS)]), reader.pad_id, 16)


def main(settings):
    folder = run_dir(RUN)
    claim(folder)
    fp32_ops = operators(FP32_OPS)
    check(CHECK_TEXTS > 0, f"CHECK_TEXTS is {CHECK_TEXTS}; it must be above 0")
    check(CONVERTER in CONVERTERS, f"CONVERTER is {CONVERTER!r}; choose {' or '.join(CONVERTERS)}")
    read = recorded(folder, EXPORT, ONNX) + recorded(folder, TRAIN, WEIGHTS, *RUN_FILES)
    trained = settings_of(folder, TRAIN)
    if trained["QAT"] and fp32_ops != operators(trained["FP32_OPS"]):  # what is trained is what ships
        raise UserError(f"FP32_OPS is {FP32_OPS!r} here but {RUN} was trained with {trained['FP32_OPS']!r}: set it to "
                        f"that, or train again with --fp32-ops '{FP32_OPS}'")
    model, reader = load_run(folder), load_reader(folder)
    load_weights(model, folder / WEIGHTS)
    texts = checked_batches(folder, reader)
    hostile = hostile_inputs(model.config.vocab_size, min(128, longest_input(model)), reader.inputs)
    with atomic_folder(folder) as scratch:
        path = scratch / FP16
        prepared = read_fp32(folder / ONNX, fp32_ops)
        refuse_too_large(prepared, CLIP_WEIGHTS)
        with atomic_folder(scratch) as aside:
            magnitudes = largest_magnitudes(prepared, aside / FP16, [*texts, *hostile])
        convert(prepared, path, KEEP_IO_TYPES, CONVERTER)
        refuse_overflow(magnitudes, path)
        stored = stored_parameters(path)
        wrong = differing(stored, parameters_as_stored(model, stored))
        if wrong:
            raise RuntimeError(f"{len(wrong)} of {len(stored)} weights differ from the trained ones rounded to FP16: "
                               + ", ".join(wrong[:5]))
        difference = compare_files(folder / ONNX, path, texts, hostile)
        if difference > TOLERANCE:
            raise UserError(f"logits differ from FP32 by up to {difference:.2g} on {CHECK_TEXTS} texts, more than "
                            f"TOLERANCE {TOLERANCE}: keep operators in FP32 (FP32_OPS), or allow it with --tolerance")
        to_simulation = largest_difference(simulate(model, fp32_ops), path)
        kept = [name for name, tensor in stored.items() if tensor.dtype != "float16"]
        counted = {"fp32_weights": kept, **dtype_census(path)}
        write_json(scratch / "census.json", counted)
        names = publish(scratch)
    record(folder, STAGE, settings, read, names, {
        "precision": "fp16", "file": FP16, "runtime": "onnxruntime", "task": read_task(folder).as_json(),
        "stages": STAGES})
    print(f"  {len(stored) - len(kept)} of {len(stored)} weights are the trained ones in FP16, bit for bit; "
          f"in FP32 {len(kept)}: {', '.join(kept[:6])}{' … (census.json)' * (len(kept) > 6)}")
    print(f"  logits differ from FP32 by at most {difference:.1e} on {sum(len(batch['input_ids']) for batch in texts)} "
          f"texts, from the simulation by {to_simulation:.1e} on {len(CHECKED_SHAPES)} random shapes; finite for a "
          "fully padded row, masks with holes, 1 token, the longest text, 64 texts")
    print(*dtype_lines(counted), sep="\n")
    before, after = file_bytes(folder / ONNX), file_bytes(folder / FP16)
    print(f"wrote {shown(folder / FP16)}: {before / 1e6:.1f} MB -> {after / 1e6:.1f} MB ({100 * after / before:.1f} %)")
    return next_command("fp16_eager/eval_onnx_fp16.py", settings, "RUN", "DATA_DIR")


if __name__ == "__main__":
    run_stage(main, globals())
