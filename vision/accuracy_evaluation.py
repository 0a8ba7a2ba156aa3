"""Stage 6 of 8: score every file of a run on the test pictures beside FP32, in the runtimes that run it on integers.

Reads   models/<RUN>/model_*.onnx           (qat_pytorch.py, ptq_tensorrt.py, mixed_precision.py)
Writes  models/<RUN>/results_<runtime>.json, .csv, classification_report_<runtime>.txt
Next    compare_methods.py
"""
from lowbit.data.task import read_task
from lowbit.measure.evaluate import check_settings
from lowbit.measure.report import csv_text
from lowbit.measure.score import report_text
from lowbit.measure.session import require_runtime
from lowbit.pipeline.files import atomic_folder, claim, resolve, run_dir, shown, write_json
from lowbit.pipeline.manifest import publish, record, recorded
from lowbit.pipeline.settings import check, chosen
from lowbit.pipeline.stage import next_command, run_stage
from lowbit.vision.data import read_splits
from lowbit.vision.evaluate import STAGE, evaluate, results_file, table_lines
from lowbit.vision.run import FP32, ONNXRUNTIME, OPENVINO, data_files, variants

# ---- settings: edit here, or for one run: --runtimes openvino -------------------------------------
RUN = "vision"                  # folder under models/ shared by the stages
DATA_DIR = "data/pictures"      # folder of valid/ and test/
RUNTIMES = "openvino,onnxruntime"  # each measures the files that it runs on integers, and FP32's
FILES = ""                      # networks of the run with commas, such as fp32,qat_int8; "" = all that were made
THREADS = 0                     # threads of each session; 0 = every core
BATCH_SIZE = 8                  # pictures of the larger timed batch
ROUNDS = 5                      # turns that the files take when their speed is measured
RUNS = 10                       # measured runs a turn
SKIP_BAD = False                # leave out pictures that cannot be used instead of refusing them all
# --------------------------------------------------------------------------------------------------


def agreement_lines(results):
    """Flips, significance and agreement of each low-bit file, a sentence each."""
    lines = []
    for name, row in results["files"].items():
        simulation, against, control = row["all_against_simulation"], row["against_fp32"], row.get("against_control")
        said = (f"  {name}: {simulation['texts'] - simulation['flips']} of {simulation['texts']} valid + test labels "
                f"as PyTorch gives them, largest logit difference {simulation['max_logit_difference']:.1e}")
        if floor := row.get("simulation_by_other_kernels"):
            said += (f" (PyTorch by other kernels: {floor['texts'] - floor['flips']}, "
                     f"{floor['max_logit_difference']:.1e})")
        if name != FP32:
            said += (f"; {against['flips']} of {against['texts']} test labels differ from FP32 ({against['lost']} "
                     f"lost, {against['won']} won, McNemar p = {against['mcnemar_p']:.2f})")
        if control:
            said += (f"; {control['lost']} lost and {control['won']} won beside the control (p = "
                     f"{control['mcnemar_p']:.2f})")
        lines.append(said)
    return lines


def main(settings):
    check_settings(settings)
    runtimes = chosen(RUNTIMES, (OPENVINO, ONNXRUNTIME), "RUNTIMES")
    for runtime in runtimes:
        require_runtime(runtime)
    folder = run_dir(RUN)
    claim(folder)
    read, made = data_files(folder), variants(folder)
    wanted = chosen(FILES, [variant.name for variant in made], "FILES")
    check(FP32 in wanted, f"FILES is {FILES!r}; it must name {FP32}, which the others are measured beside")
    used = [variant for variant in made if variant.name in wanted]
    read += [path for variant in used for path in recorded(folder, variant.stage, variant.file, variant.weights)]
    data = read_splits(folder, resolve(DATA_DIR), ("valid", "test"), SKIP_BAD)
    task, written = read_task(folder), []
    for runtime in runtimes:
        results, outputs = evaluate(folder, runtime, [v for v in used if v.runtime in ("", runtime)], data, settings)
        with atomic_folder(folder) as scratch:
            write_json(scratch / results_file(runtime), results)
            (scratch / f"results_{runtime}.csv").write_text(csv_text(results["files"]), encoding="utf-8")
            (scratch / f"classification_report_{runtime}.txt").write_text("\n".join(
                f"{name}\n{report_text(data['test'][1], found['test'], task)}" for name, found in outputs.items()),
                encoding="utf-8")
            written += publish(scratch)
        print(*table_lines(results), *agreement_lines(results), sep="\n")
    record(folder, STAGE, settings, read, written)
    print(f"wrote {', '.join(written)} in {shown(folder)}")
    return next_command("vision/compare_methods.py", settings)


if __name__ == "__main__":
    run_stage(main, globals())
