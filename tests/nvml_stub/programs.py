"""Programs for the tests of the stub: the real nvidia-ml-py in a process of its own."""

import json
import time
from typing import Any

from . import Stub

PRELUDE = """
import json, os, sys, time
from pynvml import *

def name_of(call, *arguments):
    try:
        call(*arguments)
    except NVMLError as error:
        known = type(error) is not NVMLError
        return type(error).__name__.removeprefix("NVMLError_") if known else error.value
    return "Success"

def device(index=0):
    return nvmlDeviceGetHandleByIndex(index)

def show(value):
    print(json.dumps(value), flush=True)
"""
INIT = PRELUDE + "nvmlInit()\n"

# Drains the ring until a line comes in on stdin; one line of JSON: begin, end of what was seen, busy seconds.
READER = (
    INIT
    + """
import select
seen, last, stamps, values = 0, None, [], []
show("ready")
while not last:
    last = select.select([sys.stdin], [], [], 0.5)[0]
    for handle in [device()]:
        try:
            kind, samples = nvmlDeviceGetSamples(handle, NVML_GPU_UTILIZATION_SAMPLES, seen)
        except NVMLError_NotFound:
            continue
        for sample in samples:
            stamps.append(sample.timeStamp)
            values.append(sample.sampleValue.uiVal)
        seen = stamps[-1]
show([stamps, values])
"""
)


def answer(stub: Stub, code: str) -> Any:
    return json.loads(stub.run(INIT + code))


def wait_for(stub: Stub, function: str) -> None:
    """Until a call of ``function`` has begun."""
    deadline = time.monotonic() + 10
    while not stub.calls(function):
        assert time.monotonic() < deadline
        time.sleep(0.01)
