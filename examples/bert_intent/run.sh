#!/bin/sh
# Start the reference service: PYTHON=… examples/bert_intent/run.sh [options of python -m bert_intent]
# Without an NVIDIA driver its GPU series are simulated, and its first lines say so.
here=$(cd "$(dirname "$0")" && pwd)
PYTHONPATH="$here${PYTHONPATH:+:$PYTHONPATH}" exec "${PYTHON:-python3}" -m bert_intent --simulate-without-gpu "$@"
