"""``python -m regplug``: the same command."""

from regplug.cli import main

main()
