"""What holds for every test."""

from __future__ import annotations

import signal

from hypothesis import settings

# A busy machine is no failure: timings never fail a test.
settings.register_profile("gpuscale", deadline=None)
settings.load_profile("gpuscale")

# A shell that starts the tests in the background (as a CI may) has them ignore Ctrl-C, and so would every program that
# they start: those are tested as a terminal or a container runtime starts them.
for number in (signal.SIGHUP, signal.SIGQUIT):
    signal.signal(number, signal.SIG_DFL)
signal.signal(signal.SIGINT, signal.default_int_handler)
