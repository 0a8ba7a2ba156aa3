"""What benchmarks of operators share: ONNX Runtime's profile of a file, summed by kind of operator."""

import json
import tempfile
from collections import Counter
from pathlib import Path

import onnxruntime as ort

from lowbit.measure.session import WARMUP


def in_onnxruntime(path: Path, batches: list[dict], threads: int) -> Counter:
    """Operator -> microseconds a batch, the first WARMUP uncounted, as ONNX Runtime's own profile has them."""
    with tempfile.TemporaryDirectory() as folder:
        options = ort.SessionOptions()
        options.enable_profiling, options.intra_op_num_threads = True, threads
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        names = [given.name for given in session.get_inputs()]
        for batch in batches:
            session.run(["logits"], {name: batch[name] for name in names})
        events = json.loads(Path(session.end_profiling()).read_text())
    spent, seen = Counter(), Counter()
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("kernel_time"):
            seen[event["name"]] += 1
            if seen[event["name"]] > WARMUP:
                spent[event["args"]["op_name"]] += event["dur"] / (len(batches) - WARMUP)
    return spent
