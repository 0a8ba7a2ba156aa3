"""A process that has imported the libraries once and forks for every stage script it is asked to run.

Importing them is most of what a stage does on a two-layer model. The forked child runs the script by path as its
main program, imports lowbit itself, and ends as any Python process ends: exit status, traceback and all.
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
import sys

import cpuinfo

LIBRARIES = ("torch", "transformers", "datasets", "accelerate", "onnx",
             "sklearn.metrics", "statsmodels.stats.contingency_tables", "matplotlib.pyplot", "psutil",
             "Sastrawi.StopWordRemover.StopWordRemoverFactory", "transformers.models.bert.modeling_bert",
             "transformers.trainer", "transformers.trainer_callback", "transformers.models.auto.modeling_auto",
             "torch.onnx", "torch._dynamo", "sklearn", "safetensors.torch")


def become_script(request: dict) -> None:
    """Turn this forked child into `python SCRIPT FLAGS…` with its output in two files."""
    for descriptor, path in ((0, os.devnull), (1, request["stdout"]), (2, request["stderr"])):
        opened = os.open(path, os.O_RDONLY if descriptor == 0 else os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(opened, descriptor)
        os.close(opened)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a suite in the background inherits it ignored
    os.chdir(request["cwd"])
    script = request["argv"][0]
    sys.argv = request["argv"]
    sys.path[0] = os.path.dirname(os.path.abspath(script))
    runpy.run_path(script, run_name="__main__")


def main() -> None:
    """Serve requests until standard input closes."""
    for name in LIBRARIES:
        with contextlib.suppress(ImportError):  # a library that is gone is missed by the script itself
            importlib.import_module(name)
    cpuinfo.get_cpu_info = functools.cache(cpuinfo.get_cpu_info)  # it asks a process of its own, for a second
    cpuinfo.get_cpu_info()
    gc.freeze()
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            become_script(json.loads(line))
            return
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    main()
