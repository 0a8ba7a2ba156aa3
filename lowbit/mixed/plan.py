"""From a budget to a search: what each choice costs in the budget's own unit, and what it is foretold to lose."""

from lowbit.data.tokens import TextReader
from lowbit.mixed.assignment import FP32
from lowbit.mixed.budget import (
    Budget,
    bits_table,
    bytes_table,
    choices_of,
    loss_table,
    refuse_out_of_reach,
    time_table,
)
from lowbit.mixed.files import Files
from lowbit.mixed.memory import Memory
from lowbit.mixed.search import Search
from lowbit.mixed.shifts import Shifts
from lowbit.mixed.speed import kernel_times, tokens_of_layers
from lowbit.pipeline.settings import check

SCORES = {"kl": "kl_only", "fisher": "fisher"}  # name of a candidate -> what sensitivity.json calls its score


def search_for(budget: Budget, known: list[float], keep_speed: bool, tokens: int, files: Files, reader: TextReader,
               memory: Memory, modules: dict[str, dict], shifts: Shifts | None) -> Search:
    """The search for a budget among the bits `known`, from `modules` of the run's sensitivity.json and its shifts.

    A speed is measured here, of texts of `tokens`. Raises UserError for bits without figures, or a budget out of reach.
    """
    first, run = next(iter(modules.values()))["bits"], files.folder.name
    low = [bits for bits in known if bits != FP32]
    for bits in low:
        check(f"{bits:g}" in first, f"CHOICES names {bits:g} bits, which the sensitivity.json of {run} has no "
              f"figures of: run `python mixed/sensitivity_analysis.py --run {run} --bits "
              f"{','.join(f'{each:g}' for each in low)}`")
    choices = choices_of(files.parts, known, keep_speed and budget.kind != "speed")
    check(all(choices.values()), "CHOICES holds 32 alone: with KEEP_SPEED it needs a number of bits below 32")
    size, fp32_bytes = bytes_table(modules, choices), files.graph(files.uniform(FP32)).ByteSize()
    cost, base = size, float(fp32_bytes)
    if budget.kind == "effective_bits":
        cost, base = bits_table(files.weights, choices), 0.0
    if budget.kind == "speed":
        base, int8 = kernel_times(files, tokens, len(reader.tokenizer), reader.inputs)
        print(f"  a text of {tokens} tokens takes {base:.2f} ms in FP32, {int8:.2f} ms in INT8 ({base / int8:.2f}x)")
        cost = time_table(files.weights, choices, tokens_of_layers(files, tokens), base, int8)
    refuse_out_of_reach(budget, cost, base)
    scored = next(iter(first.values()))
    losses = {name: loss_table(modules, choices, score) for name, score in SCORES.items() if score in scored}
    check(bool(losses), f"the sensitivity.json of {run} has neither kl_only nor fisher: run `python "
          f"mixed/sensitivity_analysis.py --run {run}`")
    shared: dict[float, float] = {bits: files.shared_bytes(bits, {
        name: module["bits"][f"{bits:g}"]["bytes"] for name, module in modules.items()}) for bits in low}
    return Search(budget, files, memory, choices, cost, base, losses, fp32_bytes, size, shared, shifts)
