"""A process that holds one ONNX file; session.py starts it and asks it.

`python -m lowbit.measure.session_process FILE RUNTIME PROVIDER THREADS`.
It imports no more than a server would (numpy and the runtime), so that its peak memory is a server's. Requests
and answers are pickles on standard input and output, exchanged with the parent process only.
"""

import contextlib
import importlib
import os
import pickle
import resource
import sys
import time


def peak_memory_mb() -> float:
    """Largest resident memory of this process in MB.

    On Linux from /proc: ru_maxrss starts at the parent's size there, which for a parent holding torch is 500 MB.
    """
    try:
        with open("/proc/self/status") as lines:
            return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024 / 1e6
    except FileNotFoundError:  # macOS, where ru_maxrss is in bytes
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def open_onnxruntime(path: str, provider: str, threads: int):
    """A function from a batch to its logits."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    session = ort.InferenceSession(path, options, providers=[provider])
    if session.get_providers()[0] != provider:
        raise RuntimeError(f"{provider} could not be started on this machine")
    return lambda batch: session.run(["logits"], batch)[0]


def open_openvino(path: str, _: str, threads: int):
    """A function from a batch to its logits, in OpenVINO on the CPU.

    Floats stay FP32; its default is BF16 on processors that have it.
    """
    import openvino

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    request = openvino.compile_model(path, "CPU", {
        "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32",
        "INFERENCE_NUM_THREADS": threads or cores}).create_infer_request()
    return lambda batch: request.infer(batch)["logits"].copy()


OPENERS = {"onnxruntime": open_onnxruntime, "openvino": open_openvino}


def main(path: str, runtime: str, provider: str, threads: int) -> None:
    answers, requests = os.fdopen(os.dup(1), "wb"), sys.stdin.buffer
    os.dup2(2, 1)  # nothing but answers may reach the pipe, whoever prints

    def answer(value):
        pickle.dump(value, answers)
        answers.flush()

    try:
        importlib.import_module(runtime)  # before the clock starts
        started = time.perf_counter()
        run = OPENERS[runtime](path, provider, threads)
        load_ms = 1e3 * (time.perf_counter() - started)
    except Exception as error:  # told to the parent, which raises it there
        answer(f"{type(error).__name__}: {error}")
        return
    answer(None)
    while True:
        try:
            command, batches, warmup = pickle.load(requests)
        except EOFError:
            return
        if command in ("memory", "load"):
            answer(peak_memory_mb() if command == "memory" else load_ms)
            continue
        for batch in batches[:warmup]:
            run(batch)
        logits, milliseconds = [], []
        for batch in batches:
            start = time.perf_counter()
            logits.append(run(batch))
            milliseconds.append(1e3 * (time.perf_counter() - start))
        answer((logits if command == "logits" else None, milliseconds))


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):  # the parent was killed: there is nobody left to answer
        main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]))
