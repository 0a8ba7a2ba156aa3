"""A process that holds one ONNX file: `python -m lowbit.worker FILE PROVIDER THREADS`, driven by lowbit.sessions.

It imports no more than a server would (numpy, onnxruntime), so that its peak memory is a server's. Requests
and answers are pickles on standard input and output, exchanged with the parent process only.
"""

import contextlib
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


def main(path: str, provider: str, threads: int) -> None:
    answers, requests = sys.stdout.buffer, sys.stdin.buffer
    sys.stdout = sys.stderr  # nothing but answers may reach the pipe

    def answer(value):
        pickle.dump(value, answers)
        answers.flush()

    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    try:
        session = ort.InferenceSession(path, options, providers=[provider])
    except Exception as error:  # told to the parent, which raises it there
        answer(f"{type(error).__name__}: {error}")
        return
    if session.get_providers()[0] != provider:
        answer(f"{provider} could not be started on this machine")
        return
    answer(None)
    while True:
        try:
            command, batches, warmup = pickle.load(requests)
        except EOFError:
            return
        if command == "memory":
            answer(peak_memory_mb())
            continue
        for batch in batches[:warmup]:
            session.run(["logits"], batch)
        logits, milliseconds = [], []
        for batch in batches:
            start = time.perf_counter()
            logits.append(session.run(["logits"], batch)[0])
            milliseconds.append(1e3 * (time.perf_counter() - start))
        answer((logits if command == "logits" else None, milliseconds))


if __name__ == "__main__":
    with contextlib.suppress(BrokenPipeError):  # the parent was killed: there is nobody left to answer
        main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
