"""Check an ONNX file against TensorRT's rules for explicit quantization, without TensorRT: a finding names its node.

Reads   ONNX_FILE
"""
import onnx

from lowbit.pipeline.errors import UserError
from lowbit.pipeline.files import resolve, shown
from lowbit.pipeline.stage import run_stage
from lowbit.vision.trt_rules import ERROR, check, finding_lines

# ---- settings: edit here, or for one run: model.onnx -----------------------------------------------
ONNX_FILE = ""                  # the file, from the project's root
FLOATS = ""                     # names of nodes that are to stay on floats, with commas
# --------------------------------------------------------------------------------------------------


def main(settings):
    path = resolve(ONNX_FILE)
    if not ONNX_FILE or not path.is_file():
        raise UserError(f"ONNX_FILE is {ONNX_FILE!r}, which is no file: name one")
    try:
        found = check(path, tuple(filter(None, FLOATS.split(","))))
    except (onnx.checker.ValidationError, ValueError, OSError) as error:
        raise UserError(f"{shown(path)} cannot be read as ONNX ({error})") from None
    except Exception as error:
        if type(error).__name__ != "DecodeError":  # protobuf's
            raise
        raise UserError(f"{shown(path)} is no ONNX file ({error})") from None
    if not onnx.load(path, load_external_data=False).graph.node:
        raise UserError(f"{shown(path)} holds no graph")
    print(*finding_lines(found), sep="\n")
    if any(finding.kind == ERROR for finding in found):
        raise UserError(f"{shown(path)} breaks TensorRT's rules for explicit quantization")


if __name__ == "__main__":
    run_stage(main, globals(), bare="ONNX_FILE")
