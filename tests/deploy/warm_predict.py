"""A process that has imported numpy, onnxruntime and tokenizers once and forks for every predict.py it is asked to run.

A request is a line of JSON, and so is the answer: {"argv", "streams", "cwd", "before"} -> the child's process id;
{"wait": process id} -> [exit status, seconds of CPU, MB at most]. The child runs the script by path as its main
program and ends as any Python process does: exit status, traceback and all. None of the script's own modules was
imported before.
"""

import gc
import json
import os
import resource
import runpy
import signal
import sys

import numpy  # noqa: F401
import onnxruntime  # noqa: F401
import tokenizers  # noqa: F401

LARGEST_FILE, LONGEST_RUN = 1 << 30, 120  # bytes, seconds: a run that would go on for ever ends


def open_streams(paths: list[str]) -> None:
    """Descriptors 0, 1 and 2, and sys.stdin and so on over them, None where closed, as Python itself makes them."""
    os.dup2(os.open(os.devnull, os.O_RDWR), 3)
    os.closerange(4, 64)  # the server's own pipes
    for descriptor, path in enumerate(paths):
        if path == "closed":
            continue
        if path == "broken":
            reading, opened = os.pipe()
            os.close(reading)
        else:
            flags = os.O_WRONLY | os.O_CREAT | (os.O_APPEND if path[0] == "+" else os.O_TRUNC)
            opened = os.open(path.lstrip("+"), flags if descriptor else os.O_RDONLY, 0o644)
        os.dup2(opened, descriptor)
        os.close(opened)
    for descriptor, path in enumerate(paths):
        if path == "closed":
            os.close(descriptor)
    os.close(3)
    sys.stdin = None if paths[0] == "closed" else open(0)  # noqa: SIM115
    sys.stdout = None if paths[1] == "closed" else open(1, "w")  # noqa: SIM115
    sys.stderr = None if paths[2] == "closed" else open(2, "w", buffering=1, errors="backslashreplace")  # noqa: SIM115
    sys.__stdin__, sys.__stdout__, sys.__stderr__ = sys.stdin, sys.stdout, sys.stderr


def become_script(request: dict) -> int:
    """Be `python SCRIPT FLAGS…` in this forked child; returns the exit status that Python ends with."""
    signal.alarm(LONGEST_RUN)
    os.chdir(request["cwd"])
    open_streams(request["streams"])
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a suite in the background inherits it ignored
    resource.setrlimit(resource.RLIMIT_FSIZE, (LARGEST_FILE, LARGEST_FILE))
    sys.argv = request["argv"]
    sys.path[0] = os.path.dirname(sys.argv[0])
    exec(request["before"], {})
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
        status = 0
    except SystemExit as asked:
        status = asked.code if isinstance(asked.code, int) else int(asked.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        status = 1
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        status = 120
    return status


def main() -> None:
    """Serve requests until standard input closes."""
    gc.freeze()
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            _, status, used = os.wait4(request["wait"], 0)
            print(json.dumps([os.waitstatus_to_exitcode(status), used.ru_utime + used.ru_stime,
                              used.ru_maxrss / 1024]), flush=True)
            continue
        child = os.fork()
        if child == 0:
            os._exit(become_script(request))  # ONNX Runtime's own end waits for threads that a fork has not
        print(child, flush=True)


if __name__ == "__main__":
    main()
