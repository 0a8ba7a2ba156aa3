"""A process that makes one file of the matrix, started by files.py: its peak memory can be told, all of it given back.

A kill of it does not take the matrix along.
"""

import json
import logging
import os
import shutil
import sys
import threading
import traceback
import warnings
from pathlib import Path

import onnxruntime as ort

from lowbit.measure.session_process import peak_memory_mb
from lowbit.pipeline.errors import UserError, sentence_for
from lowbit.pipeline.files import external_data
from lowbit.ptq.methods import calibrate_ranges, check_runs, quantize


def serve(request: dict) -> None:
    """Do what the parent asks: {"do": "calibrate" or "quantize", source, target, and its other arguments}."""
    source, target = Path(request["source"]), Path(request["target"])
    near = target.parent / "source" / source.name  # ONNX Runtime writes its shape inference beside the file it reads
    near.parent.mkdir()
    for path in filter(Path.exists, (source, external_data(source))):
        shutil.copyfile(path, near.parent / path.name)  # a link would do, but onnx refuses linked external data
    if request["do"] == "calibrate":
        calibrate_ranges(near, target, request["calibration"], request["rows"], request["options"])
    else:
        ranges = Path(request["ranges"]) if request["ranges"] else None
        quantize(near, target, request["recipe"], ranges, request["options"])
        check_runs(target)


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # nothing but the answer may reach the pipe
    warnings.simplefilter("ignore")
    logging.getLogger().setLevel(logging.ERROR)  # it recommends a pre-processing that gains nothing here
    ort.set_default_logger_severity(3)
    request = json.loads(sys.stdin.readline())
    threading.Thread(target=lambda: (sys.stdin.read(), os._exit(1)), daemon=True).start()  # the parent was killed
    try:
        serve(request)
        answer = {}
    except UserError as error:
        answer = {"error": str(error)}
    except Exception as error:  # the row of the matrix tells it, but for a full disk: that ends the run
        answer = {"error": f"{type(error).__name__}: {error}", "fault": sentence_for(error)}
        if answer["fault"] is None:
            traceback.print_exc()
    json.dump({**answer, "peak_memory_mb": peak_memory_mb()}, answers)
    answers.close()


if __name__ == "__main__":
    main()
