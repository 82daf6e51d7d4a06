"""torchrun, of which the processes are forks: the libraries are imported once, and not once more in each of them.

A script: `python torchrun.py OPTIONS... SCRIPT ARGUMENTS...`, as torchrun takes them.
"""

import gc
import os
import sys

COMMAND = [sys.executable, __file__]


def environment_of(variables=os.environ):
    """Variables for a process that finds the helpers where pytest has put them on the path of this one."""
    return {**variables, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}


if __name__ == "__main__":
    import training_helpers  # noqa: F401
    from torch.distributed.run import main

    from hf_vaq.training import VaqTrainer  # noqa: F401

    gc.freeze()  # a Trainer collects garbage twice a run
    main(["--run_path", "--start_method=fork", *sys.argv[1:]])
