"""Which method to ship on this machine, and the project's promises beside what was measured."""

from lowbit.ptq.matrix import MEASURED

REFERENCE = "fp32"
NEAR = 0.95  # files this close to the fastest count as equally fast: rounds repeat within a few percent

# promise, what a row holds of it, whether that keeps it, how it reads
TARGETS = (
    ("accuracy lost: below 1 point (test)", lambda row: row["accuracy_drop"]["test"], lambda v: v < 1,
     "{:+.2f} points"),
    ("size: 3 to 4 times smaller", lambda row: row["compression"], lambda v: v >= 3, "{:.2f}x"),
    ("speed: 2 to 4 times faster", lambda row: row["speedup"], lambda v: v >= 2, "{:.2f}x"),
    ("memory: 70 to 75 % less", lambda row: 100 * row["memory_saving"], lambda v: v >= 70, "{:.0f} % less"),
)


def eligible(rows: dict[str, dict]) -> dict[str, dict]:
    """The methods that ran and stayed within MAX_DROP of FP32 on every split: no other is ever advised."""
    return {name: row for name, row in rows.items()
            if name != REFERENCE and row["status"] == MEASURED and row["within_max_drop"]}


def recommend(rows: dict[str, dict]) -> tuple[str, str]:
    """(method, why): the smallest file among the fastest of the eligible ones; FP32 where none is worth shipping.

    Test accuracy has no say but through the guard, which can only rule a method out.
    """
    held = eligible(rows)
    points = rows[REFERENCE]["max_drop"]
    limit = f"{points:g} point{'s' * (points != 1)} of accuracy"
    if not held:
        return REFERENCE, f"every other method that ran loses more than {limit}"
    fastest = max(row["speedup"] for row in held.values())
    if fastest > 1 / NEAR:
        near = {name: row for name, row in held.items() if row["speedup"] >= NEAR * fastest}
        method = min(near, key=lambda name: near[name]["model_size"])
        return method, (f"the smallest file of the {len(near)} that are fastest, within {100 * (1 - NEAR):.0f} % of "
                        f"each other ({', '.join(near)}); {len(held)} methods lose at most {limit}" if len(near) > 1
                        else f"the fastest of the {len(held)} methods that lose at most {limit}")
    method = min(held, key=lambda name: held[name]["model_size"])
    if held[method]["model_size"] < rows[REFERENCE]["model_size"]:
        return method, (f"none of the {len(held)} methods that lose at most {limit} is faster than FP32 here; "
                        "this is the smallest file of them")
    return REFERENCE, "no method within the guard is faster or smaller here"


def target_rows(rows: dict[str, dict], method: str) -> list[dict]:
    """Each promise with what `method` measured, whether it keeps it, and the best that any eligible method reached."""
    result = []
    for promise, value, kept, form in TARGETS:
        ours = value(rows[method])
        best, name = max(((value(row), name) for name, row in eligible(rows).items()),
                         key=lambda pair: -pair[0] if "accuracy" in promise else pair[0], default=(ours, method))
        result.append({"promise": promise, "measured": form.format(ours), "kept": bool(kept(ours)),
                       "best": form.format(best), "best_method": name, "best_kept": bool(kept(best))})
    return result
