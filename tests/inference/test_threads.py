"""Packed models that several threads call at once."""

import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from helpers import images
from inference_helpers import logits, packed

from hf_vaq.inference import set_execution
from hf_vaq.inference.calls import Calls


@pytest.fixture
def eager_switching():
    """Threads take turns as often as on a machine where they truly overlap."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(interval)


@pytest.mark.parametrize("family", ["deit", "swin"])
def test_the_first_answers_of_a_fresh_model_are_the_same_in_every_thread(family, eager_switching):
    model, start = packed(family), threading.Barrier(4)

    def first_answer(_):
        start.wait()
        return logits(model)

    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(first_answer, range(4)))
    assert all(torch.equal(answer, logits(model)) for answer in found)


def test_the_execution_changes_between_calls_and_not_inside_one(eager_switching):
    model, stop = packed("deit"), threading.Event()
    answers = {execution: logits(set_execution(model, execution)) for execution in ("integer", "simulation")}

    def call_until_stopped(_):
        wrong = 0
        while not stop.is_set():
            found = logits(model)
            wrong += not any(torch.equal(found, answer) for answer in answers.values())
        return wrong

    with ThreadPoolExecutor(3) as threads:
        counts = [threads.submit(call_until_stopped, i) for i in range(3)]
        for turn in range(20):
            set_execution(model, ("integer", "simulation")[turn % 2])
            time.sleep(0.002)
        stop.set()
        assert [count.result() for count in counts] == [0, 0, 0]


def test_a_call_that_failed_or_was_broken_off_is_not_waited_for():
    model = packed("deit")
    with pytest.raises(ValueError, match="pixel_values"):
        logits(model, images().long())

    def break_off(*_):
        raise KeyboardInterrupt

    hook = model.deit.register_forward_hook(break_off)
    with pytest.raises(KeyboardInterrupt):
        logits(model)
    hook.remove()
    set_execution(model, "simulation")
    logits(model)
    other = threading.Thread(target=set_execution, args=(model, "integer"), daemon=True)
    other.start()
    other.join(60)
    assert not other.is_alive() and model.execution.startswith(("integer", "simulation"))


def test_a_thread_that_ended_inside_its_call_is_not_waited_for():
    calls = Calls()
    ended = threading.Thread(target=calls.enter)
    ended.start()
    ended.join()
    with calls.paused():
        pass
