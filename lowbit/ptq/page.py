"""The matrix as HTML: what ptq/report.html.jinja shows of an experiment, and the page of one or several."""

from lowbit.measure.html import filled, inlined
from lowbit.measure.record import COULD_NOT_RUN, Metric, measured_files, metrics, task_of_results
from lowbit.pipeline.files import ROOT
from lowbit.pipeline.machine import integer_advice
from lowbit.ptq.advice import target_rows
from lowbit.ptq.plots import draw, plots_of
from lowbit.ptq.results import verdict

TEMPLATE = ROOT / "ptq" / "report.html.jinja"
DETAILS = ("mean_ms", "std_ms", "min_ms", "median_ms", "p95_ms", "max_ms", "eval_loss", "ece", "mean_absolute_error")
DEPENDENCE = ("batch_dependence.flips", "batch_dependence.texts", "batch_dependence.max_logit_difference")


def picture(name: str, results: dict, dark: bool) -> str:
    """One of the experiment's pictures, inlined."""
    return inlined(lambda drawn: draw(name, results, drawn, "svg", dark))


def held(results: dict, keys: tuple[str, ...]) -> list[Metric]:
    """Those of the named figures that FP32's record holds."""
    base = next(iter(results["files"].values()))
    return [metric for metric in metrics(*keys) if metric.value(base) is not None]


def section(results: dict, stages: dict, columns: list[Metric], captions: dict[str, str], method: str, why: str,
            trained: bool = True, pictures: tuple = ()) -> dict:
    """What the template shows of one experiment: `method` is advised, `pictures` stand before the matrix's own."""
    measured = measured_files(results)
    return {
        "name": results["experiment"]["name"], "results": results, "rows": measured,
        "base": next(iter(measured.values())), "trained": trained, "task": task_of_results(results),
        "columns": columns, "details": held(results, DETAILS), "dependence": held(results, DEPENDENCE),
        "verdicts": {row: verdict(row, results) for row in measured},
        "missing": {row: found["reason"] for row, found in results["files"].items()
                    if found["status"] == COULD_NOT_RUN},
        "method": method, "why": why, "best": measured[method],
        "targets": target_rows(results, method) if trained else [],
        "pictures": [*pictures, *((plot, captions[plot], picture(plot, results, False), picture(plot, results, True))
                                  for plot in plots_of(results))],
        "stages": sorted((made for made in stages.values() if "results.json" in made["writes"]),
                         key=lambda made: made["finished"]),
    }


def page(title: str, sections: list[dict], reads: dict[str, str]) -> str:
    """The HTML; `reads`: run -> address of its page of what the model reads, to be linked."""
    first = sections[0]["results"]
    return filled(TEMPLATE, title=title, sections=sections, machine=first["machine"],
                  advice=integer_advice(first["machine"]), versions=first["versions"], reads=reads)
