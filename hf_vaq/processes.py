"""What several processes of one job do together."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from accelerate import PartialState
from accelerate.utils import broadcast_object_list

Result = TypeVar("Result")


def on_main_process(work: Callable[[], Result]) -> Result:
    """Do `work` on the main process; its result, or its error, reaches every process.

    Args:
        work: called on the main process; its result can be sent between processes.

    Raises:
        ValueError: what `work` raises of `ValueError` and `OSError`, on every process; the error itself where there is
            one process only.
    """
    state = PartialState()
    message: list = [None, None]
    if state.is_main_process:
        try:
            message[0] = work()
        except (ValueError, OSError) as error:
            if state.num_processes == 1:
                raise
            message[1] = str(error)
    broadcast_object_list(message)
    if message[1] is not None:
        raise ValueError(message[1])
    return message[0]
