"""Which method to ship on this machine, and the project's promises beside what was measured."""

from lowbit.measure.record import TOO_MUCH, UNSURE, judge, measured_files

NEAR = 0.95  # files this close to the fastest count as equally fast: rounds repeat within a few percent
ALIKE = 1.01  # files this close in size count as equally small
WANTED = ("speed", "size")

# promise, what a record holds of it, whether that keeps it, how it reads
TARGETS = (
    ("lost on test: below 1 point", lambda row: row["points_lost"]["test"], lambda v: v < 1,
     "{:+.2f} points"),
    ("size: 3 to 4 times smaller", lambda row: row["compression"], lambda v: v >= 3, "{:.2f}x"),
    ("speed: 2 to 4 times faster", lambda row: row["speedup"], lambda v: v >= 2, "{:.2f}x"),
    ("memory: 70 to 75 % less", lambda row: 100 * row["memory_saving"], lambda v: v >= 70, "{:.0f} % less"),
)


def reference_of(results: dict) -> str:
    """The method that all others are measured beside: FP32."""
    return next(iter(results["files"]))


def eligible(results: dict) -> dict[str, dict]:
    """The low-bit files that ran and were not seen to lose more than MAX_DROP: no other is ever advised."""
    return {name: row for name, row in measured_files(results).items()
            if row["recipe"]["kind"] != "fp32" and judge(row, results["max_drop"]) != TOO_MUCH}


def moved(row: dict) -> tuple[float, float]:
    """How far a file lies from FP32: labels that changed on valid and test, median difference of its outputs."""
    against = row["all_against_fp32"]
    return against.get("flips", 0), against["median_logit_difference"]


def smallest(rows: dict[str, dict]) -> str:
    """The smallest file; of files alike in size, the one that changes fewest labels against FP32."""
    least = min(row["model_size"] for row in rows.values())
    return min((name for name, row in rows.items() if row["model_size"] <= ALIKE * least),
               key=lambda name: (*moved(rows[name]), name))


def recommend(results: dict, wanted: str = WANTED[0]) -> tuple[str, str]:
    """(method, why): for `speed` the smallest of the fastest files within the guard, for `size` the smallest of all.

    Of the fastest, those that are known to stay within the guard go before those that the texts cannot tell of. A file
    slower than FP32 is advised only where size is wanted. Test accuracy decides nothing but the guard.
    """
    held, base = eligible(results), reference_of(results)
    points = results["max_drop"]
    limit = f"lose no more than {points:g} point{'s' * (points != 1)}"
    unsure = [name for name, row in held.items() if judge(row, points) == UNSURE]
    if unsure:
        limit += f", as far as {results['files'][base]['loss']['texts']} texts can tell"
    if not held:
        return base, f"every other method that ran loses more than {points:g} point{'s' * (points != 1)}"
    if wanted == "size":
        small = {name: row for name, row in held.items() if row["compression"] > 1}
        if not small:
            return base, f"none of the {len(held)} methods that {limit} has a smaller file"
        return smallest(small), f"the smallest file of the {len(small)} methods that {limit}"
    faster = {name: row for name, row in held.items() if row["speedup"] > 1}
    if not faster:
        return base, f"none of the {len(held)} methods that {limit} is faster than FP32 here"
    best = max(row["speedup"] for row in faster.values())
    near = {name: row for name, row in faster.items() if row["speedup"] >= NEAR * best}
    if len(near) == 1:
        return next(iter(near)), f"the fastest of the {len(held)} methods that {limit}"
    known = {name: row for name, row in near.items() if name not in unsure}
    surely = f" that surely loses no more than {points:g}," if 0 < len(known) < len(near) else ""
    return smallest(known or near), (
        f"the smallest file{surely} of the {len(near)} that are fastest, within {100 * (1 - NEAR):.0f} % of each other "
        f"({', '.join(near)}), and of files alike in size the one that changes fewest labels; {len(held)} methods "
        f"{limit}")


def target_rows(results: dict, method: str) -> list[dict]:
    """Each promise with what `method` measured, whether it keeps it, and the best that any eligible method reached."""
    rows, found = measured_files(results), []
    for promise, value, kept, form in TARGETS:
        ours = value(rows[method])
        sign = -1 if "lost" in promise else 1
        best, name = max(((value(row), name) for name, row in eligible(results).items()),
                         key=lambda pair: sign * pair[0], default=(ours, method))
        found.append({"promise": promise, "measured": form.format(ours), "kept": bool(kept(ours)),
                      "best": form.format(best), "best_method": name, "best_kept": bool(kept(best))})
    return found
