"""The one record of a measured file: its keys and units, how each figure is shown, how a results file is read.

results.json, of a run and of an experiment, is {"format", "task", "protocol", "circumstances", "machine", "versions",
"settings", "files": name -> record, "empty_after_cleaning": split -> texts that cleaning empties, which all get one
answer}; the first file is FP32, which the others are measured beside. A record holds

  status            "measured", or "could not run" with the `reason`, and nothing measured then
  file, sha256      path from the project's root, digest
  samples           test texts that the quality below is of
  accuracy, f1, macro_f1, matthews, {macro,weighted}_{precision,recall,f1}   labels, 0 to 1; f1 is the macro-F1, and of
                    two labels the F1 of the second
  pearson, spearman, mean_absolute_error, predictions   a number: -1 to 1, the number's unit, [[true, predicted], ...]
  eval_loss         mean cross-entropy in nats, or mean squared error of a number
  ece, f1_per_class, confusion_matrix   labels: calibration error 0 to 1, label -> F1, texts [true][predicted]
  top5              share of pictures whose class is among the five of the largest logits; of more than five classes
  valid             the same quality on the validation split, or null
  against_fp32      test, paired with FP32: flips, lost, won, mcnemar_p, {median,max}_logit_difference, divergence:
                    mean KL of the labels' probabilities in nats, half the mean squared difference of a number
  all_against_fp32, all_against_simulation   valid and test together; the latter where the arithmetic was simulated
  points_lost       {"valid", "test"}: points of accuracy below FP32, or hundredths of the correlation of a number
  loss              the same over all texts: points, low, high (95 % interval), texts
  model_size        MB; compression: times smaller than FP32
  mean_ms, std_ms, min_ms, max_ms, median_ms, p95_ms, runs_ms, speedup, round_speedups   a batch of the protocol's last
                    shape; speedup is the median over turns of FP32's median over this file's
  timings           the same for each of the protocol's shapes, such as "1x32" (texts x tokens)
  texts_per_second  batches of BATCH_SIZE sorted by length; texts_per_second_padded: in the file's order, padded to the
                    longest input; throughput, throughput_padded: times FP32's
  peak_memory_mb    MB of the process that ran the timed batches; memory_saving: share of FP32's that is saved
  load_ms           from the file to a session that can run, the runtime's import aside
  batch_dependence  texts, flips, max_logit_difference: each text alone against other batches, orders and padding
  census, linear_weights_mb, making, recipe   in an experiment: graph/census.py, MB, seconds and MB of making the file
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

from lowbit.data.task import Task, task_of
from lowbit.measure.score import HEADINGS
from lowbit.pipeline.errors import UserError
from lowbit.pipeline.files import shown

FORMAT = 2  # of results.json; 1 had no number
RESULTS = "results.json"
MEASURED, COULD_NOT_RUN = "measured", "could not run"
WITHIN, TOO_MUCH, UNSURE = "within", "loses too much", "too few texts to tell"
HIGHER, LOWER = "higher", "lower"


class Metric(NamedTuple):
    """A figure of a record: where it stands, its heading with unit, how it is written, which way is better."""

    key: str
    heading: str
    form: str = "{:.2f}"
    better: str = ""
    scale: float = 1

    def value(self, record: dict):
        """The figure in the heading's unit, None where the record has none."""
        found: Any = record
        for part in self.key.split("."):
            found = found.get(part) if isinstance(found, dict) else None
        return found if found is None or isinstance(found, str) else self.scale * found

    def show(self, record: dict) -> str:
        """The figure as it is read, "-" where there is none."""
        value = self.value(record)
        return "-" if value is None else self.form.format(value)


METRICS = {metric.key: metric for metric in (
    *(Metric(key, f"{name}, %", "{:.2f}", HIGHER, 100) for key, name in HEADINGS.items()),
    Metric("top5", "top-5, %", "{:.2f}", HIGHER, 100),
    Metric("eval_loss", "loss", "{:.4f}", LOWER),
    Metric("mean_absolute_error", "absolute error", "{:.4f}", LOWER),
    Metric("ece", "ECE, %", "{:.2f}", LOWER, 100),
    Metric("points_lost.test", "test lost", "{:+.2f}", LOWER),
    Metric("points_lost.valid", "valid lost", "{:+.2f}", LOWER),
    Metric("loss.points", "lost", "{:+.2f}", LOWER),
    Metric("loss.low", "lost at least", "{:+.2f}", LOWER),
    Metric("loss.high", "lost at most", "{:+.2f}", LOWER),
    Metric("against_fp32.flips", "flips", "{:d}", LOWER),
    Metric("against_fp32.mcnemar_p", "p", "{:.2f}"),
    Metric("against_fp32.divergence", "divergence", "{:.1e}", LOWER),
    Metric("model_size", "MB", "{:.1f}", LOWER),
    Metric("compression", "smaller", "{:.2f}x", HIGHER),
    Metric("against_own_fp32.points_lost", "lost to own FP32", "{:+.2f}", LOWER),
    Metric("against_own_fp32.compression", "smaller than own", "{:.2f}x", HIGHER),
    Metric("median_ms", "median ms", "{:.2f}", LOWER),
    Metric("speedup", "speed-up", "{:.2f}x", HIGHER),
    Metric("mean_ms", "mean ms", "{:.2f}", LOWER),
    Metric("std_ms", "standard deviation", "{:.2f}", LOWER),
    Metric("min_ms", "min", "{:.2f}", LOWER),
    Metric("max_ms", "max", "{:.2f}", LOWER),
    Metric("p95_ms", "p95 ms", "{:.2f}", LOWER),
    Metric("texts_per_second", "texts/s", "{:.0f}", HIGHER),
    Metric("throughput", "throughput", "{:.2f}x", HIGHER),
    Metric("texts_per_second_padded", "texts/s, padded", "{:.0f}", HIGHER),
    Metric("throughput_padded", "throughput, padded", "{:.2f}x", HIGHER),
    Metric("peak_memory_mb", "peak MB", "{:.0f}", LOWER),
    Metric("memory_saving", "memory saved, %", "{:.0f}", HIGHER, 100),
    Metric("load_ms", "load ms", "{:.0f}", LOWER),
    Metric("batch_dependence.flips", "labels that change", "{:d}", LOWER),
    Metric("batch_dependence.texts", "of texts", "{:d}"),
    Metric("batch_dependence.max_logit_difference", "largest logit change", "{:.1e}", LOWER),
    Metric("linear_weights_mb", "Linear weights, MB", "{:.2f}", LOWER),
)}


def metrics(*keys: str) -> list[Metric]:
    """The named figures, in this order."""
    return [METRICS[key] for key in keys]


def quality_metrics(task: Task) -> list[Metric]:
    """What is shown of a task's quality: its own score first, then the others that are usual for it."""
    usual = ("pearson", "spearman") if task.labels is None else (
        "accuracy", *(("f1",) if len(task.labels) == 2 else ("macro_f1",)))
    return metrics(task.score, *(key for key in usual if key != task.score))


def csv_metrics(files: dict[str, dict]) -> list[Metric]:
    """Every figure that at least one record holds, or names as one that its task does not have."""
    return [metric for metric in METRICS.values()
            if any(metric.key in record or metric.value(record) is not None for record in files.values())]


def judge(record: dict, max_drop: float) -> str:
    """Whether a file loses more than `max_drop` points, by the interval of its loss: WITHIN, TOO_MUCH, or UNSURE."""
    if record["loss"]["low"] > max_drop:
        return TOO_MUCH
    return WITHIN if record["loss"]["high"] <= max_drop else UNSURE


def measured_files(results: dict) -> dict[str, dict]:
    """Name -> record of the files that ran."""
    return {name: record for name, record in results["files"].items() if record["status"] == MEASURED}


def task_of_results(results: dict) -> Task:
    """The task that a results file was measured on."""
    return task_of(results["task"])


def read_results_file(path: Path) -> dict:
    """A results.json of this format; raises UserError, naming the way out, for any other."""
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        found = results.get("format", 1)
    except (ValueError, AttributeError) as error:
        raise UserError(f"{shown(path)} cannot be read ({error}): measure again") from None
    if found != FORMAT:
        raise UserError(f"{shown(path)} has format {found}, this version reads {FORMAT}: measure again")
    return results
