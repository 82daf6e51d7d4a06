"""Runs `hf-vaq train` in processes that it kills, until a number of kills is reached and the last run has ended.

A script: `python kill_helpers.py RECIPE FOLDER KILLS SEED`. It prints a JSON object. The libraries are imported once;
every run is a fork, so that a kill costs no more than the work it undoes.
"""

import gc
import json
import os
import random
import signal
import sys
import time
from pathlib import Path


def start(recipe: str, folder: Path, log: Path) -> int:
    """Begin a run in a child process and return its id."""
    child = os.fork()
    if child:
        return child
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    # Checkpoints of tiny models are written in no time; a slow disk makes them something that a kill can hit.
    flush = os.fsync
    os.fsync = lambda descriptor: (time.sleep(0.003), flush(descriptor))[1]
    from hf_vaq.cli import main

    os._exit(main(["train", recipe, "--output_dir", str(folder), "--resume_from_checkpoint", "true"]))


def is_saving(folder: Path) -> bool:
    """Whether a checkpoint is being written."""
    return any(any(path.glob(".checkpoint-*.partial-save")) for path in (folder, folder / "float_checkpoints"))


def run(recipe: str, folder: Path, kills: int, seed: int) -> dict:
    """Kill runs at random moments, every second one while it writes a checkpoint; then let the last one end."""
    log = folder.with_suffix(".log")
    started = time.monotonic()
    assert os.waitstatus_to_exitcode(os.waitpid(start(recipe, folder / "whole", log), 0)[1]) == 0, log.read_text()
    length = time.monotonic() - started
    draw = random.Random(seed)
    done, finished, while_saving, number = 0, [], 0, 0
    while done < kills or not finished or finished[-1] != number:
        output = folder / f"killed{number}"
        child = start(recipe, output, log)
        deadline = time.monotonic() + draw.uniform(0.0, 0.7 * length) if done < kills else float("inf")
        while True:
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                assert os.waitstatus_to_exitcode(status) == 0, log.read_text()
                finished.append(number)
                break
            # Every second kill waits for the next checkpoint after its moment.
            if time.monotonic() > deadline and (done % 2 == 0 or is_saving(output)):
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                while_saving += is_saving(output)
                done += 1
                break
            time.sleep(0.001)
        if finished and finished[-1] == number and done < kills:
            number += 1
    return {"kills": done, "while_saving": while_saving, "runs": len(finished), "seconds": length}


if __name__ == "__main__":
    import hf_vaq.job  # noqa: F401

    gc.freeze()  # a Trainer collects garbage twice a run

    target = Path(sys.argv[2])
    target.mkdir(parents=True, exist_ok=True)
    print(json.dumps(run(sys.argv[1], target, int(sys.argv[3]), int(sys.argv[4]))))
