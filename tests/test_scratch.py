import time

from stage_runs import *


def test_x(finished_run, pipeline, train_flags, eval_flags):
    for k, d in pipeline[1].items(): print(k, d.stdout, d.stderr)
    r = new_run()
    for name, more in {TRAIN: train_flags, EXPORT: (), QUANTIZE: (), EVALUATE: eval_flags}.items():
        t=time.time(); d = run_stage_script(name, "--run", r, *more); print(name, time.time()-t, d.returncode, d.stderr[-2000:])
    t=time.time(); d = run_stage_script(TRAIN, "--run", r, "--num-epochs", "0"); print(name, time.time()-t, d)
