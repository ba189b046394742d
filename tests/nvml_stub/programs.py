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

# Drains the rings of as many GPUs as its argument says until a line comes in on stdin; then a line of JSON: for each
# the time stamps and the values.
READER = (
    INIT
    + """
import select
count, last = int(sys.argv[1]), None
seen, rings = [0] * count, [([], []) for _ in range(count)]
show("ready")
while not last:
    last = select.select([sys.stdin], [], [], 0.5)[0]
    for gpu, (stamps, values) in enumerate(rings):
        try:
            kind, samples = nvmlDeviceGetSamples(device(gpu), NVML_GPU_UTILIZATION_SAMPLES, seen[gpu])
        except NVMLError_NotFound:
            continue
        for sample in samples:
            stamps.append(sample.timeStamp)
            values.append(sample.sampleValue.uiVal)
        seen[gpu] = stamps[-1]
show(rings)
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
