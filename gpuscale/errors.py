"""The errors that gpuscale raises on purpose; each message names what is wrong and the remedy."""


class GpuscaleError(Exception):
    """The base of all of them."""


class ConfigurationError(GpuscaleError, ValueError):
    """An option has a wrong value. The message names the option, the value and what it may be."""


class MissingExtraError(GpuscaleError, ImportError):
    """An optional package is not installed. The message says which extra brings it."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"{package} is not installed; get it with: pip install 'gpuscale[{extra}]'")


class SourceUnavailableError(GpuscaleError):
    """No GPU can be read at present: no driver, no library, no device. The sampler goes on trying."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        #: NVML's own error name where there is one (``DRIVER_NOT_LOADED``), the label of the error counter.
        self.reason = reason
