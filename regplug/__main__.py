"""``python -m regplug``: the command ``regplug``."""

import sys

# `-m` puts the working directory first on the path; the command `regplug` does not have it there
if not getattr(sys.flags, "safe_path", False):
    del sys.path[0]

from regplug.commands.main import main

main()
