"""``python -m regplug``: the same command."""

import sys

# `-m` puts the working directory first on the path, where the command `regplug` does not look at all
if not getattr(sys.flags, "safe_path", False):
    del sys.path[0]

from regplug.commands.main import main

main()
