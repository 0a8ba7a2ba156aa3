"""A process that has imported the libraries once and forks for every stage script it is asked to run.

Importing them is most of what a stage does on a two-layer model. The forked child runs the script by path as its
main program, imports lowbit itself, and ends as any Python process ends: exit status, traceback and all. Stages that
it starts with subprocess.run() are forked likewise.
Each request is one line of JSON; each answer two lines: the child's process id, then its exit status.
"""

import contextlib
import functools
import gc
import importlib
import json
import os
import runpy
import signal
import socket
import subprocess
import sys

import cpuinfo

LIBRARIES = ("torch", "transformers", "datasets", "accelerate", "onnx",
             "sklearn.metrics", "statsmodels.stats.contingency_tables", "matplotlib.pyplot", "psutil",
             "Sastrawi.StopWordRemover.StopWordRemoverFactory", "transformers.models.bert.modeling_bert",
             "transformers.trainer", "transformers.trainer_callback", "transformers.models.auto.modeling_auto",
             "torch.onnx", "torch._dynamo", "sklearn", "safetensors.torch", "captum.attr", "sklearn.linear_model")


def become_script(request: dict) -> None:
    """Turn this forked child into `python SCRIPT FLAGS…` with its output in two files."""
    for descriptor, path in ((0, os.devnull), (1, request["stdout"]), (2, request["stderr"])):
        if not path:
            continue  # that of the script that started it
        opened = os.open(path, os.O_RDONLY if descriptor == 0 else os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(opened, descriptor)
        os.close(opened)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a suite in the background inherits it ignored
    os.chdir(request["cwd"])
    script = request["argv"][0]
    sys.argv = request["argv"]
    sys.path[0] = os.path.dirname(os.path.abspath(script))
    if "benchmarks" in sys.path[0]:
        lend_stages()
    runpy.run_path(script, run_name="__main__")


def lend_stages() -> None:
    """Let subprocess.run([python, script, …]) in this process fork from one that has only the libraries."""
    ours, theirs = socket.socketpair()
    if os.fork() == 0:
        ours.close()
        serve(theirs.makefile("r"), theirs.makefile("w"))
        os._exit(0)
    theirs.close()
    asking, answers, run = ours.makefile("w"), ours.makefile("r"), subprocess.run

    def forked(command, **options):
        if command[0] != sys.executable or not str(command[1]).endswith(".py") or options != {"check": True}:
            return run(command, **options)
        print(json.dumps({"argv": [str(part) for part in command[1:]], "cwd": os.getcwd(), "stdout": "", "stderr": ""}),
              file=asking, flush=True)
        answers.readline()
        status = int(answers.readline())
        if status:
            raise subprocess.CalledProcessError(status, command)
        return subprocess.CompletedProcess(command, status)
    subprocess.run = forked


def serve(requests, answers) -> None:
    """Fork for each request until they end; a child returns, and ends."""
    for line in requests:
        child = os.fork()
        if child == 0:
            become_script(json.loads(line))
            sys.exit()
        print(child, file=answers, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), file=answers, flush=True)


def main() -> None:
    """Serve requests until standard input closes."""
    for name in LIBRARIES:
        with contextlib.suppress(ImportError):  # a library that is gone is missed by the script itself
            importlib.import_module(name)
    cpuinfo.get_cpu_info = functools.cache(cpuinfo.get_cpu_info)  # it asks a process of its own, for a second
    cpuinfo.get_cpu_info()
    gc.freeze()
    serve(sys.stdin, sys.stdout)


if __name__ == "__main__":
    main()
