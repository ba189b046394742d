"""The readings against an NVIDIA GPU under a load that is known (``make test-gpu``)."""
