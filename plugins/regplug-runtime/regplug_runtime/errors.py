"""The one exception of this package."""


class BundleError(Exception):
    """A bundle, a weights file or an input does not fit. Its message is one line, the same that regplug gives."""
