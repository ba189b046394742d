"""A stub ``libnvidia-ml.so.1`` and the means to drive it from a test: see README.md in this folder."""

from .build import build
from .control import Call, Stub
from .load import Follow, Load, constant, follow, square, steps

__all__ = ["Call", "Follow", "Load", "Stub", "build", "constant", "follow", "square", "steps"]
