"""Plugins that misbehave, as the text of their modules, and a good one next to them."""

GOOD = """
import regplug
@regplug.hookimpl
def regplug_readouts():
    return [regplug.ReadoutEntry("fine", "good_models:Fine")]
"""
GOOD_MODELS = """
from torch import nn
class Fine(nn.Module):
    def __init__(self, hidden_dim: int):
        super().__init__()
        self.out_dim = hidden_dim
    def forward(self, registers):
        return registers[:, 0]
"""
HOOK = """
import regplug
@regplug.hookimpl
def regplug_readouts():
    return [regplug.ReadoutEntry({name!r}, "good_models:Fine")]
"""

# ---- exceptions and objects that fail when they are shown

SHOWN = ("raise SystemExit(0)", "raise BaseException", "raise GeneratorExit", "return 3")
EVIL = {
    "an exception": "class E(Exception):\n    def __str__(self): {act}\n    __repr__ = __str__\nraise E",
    "an exception of ours": "import regplug\nclass E(regplug.PluginError):\n    def __str__(self): {act}\nraise E",
    "an object for an entry": (
        "import regplug\nclass O:\n    def __repr__(self): {act}\n    __str__ = __repr__\n"
        "@regplug.hookimpl\ndef regplug_readouts(): return [O()]"
    ),
    "a class with a name of its own": (
        "class M(type):\n    @property\n    def __name__(cls): {act}\n"
        "class E(Exception, metaclass=M):\n    pass\nraise E('seen')"
    ),
    "a class with a name of its own and no message": (
        "class M(type):\n    @property\n    def __name__(cls): {act}\n"
        "class E(Exception, metaclass=M):\n    pass\nraise E"
    ),
    "a hook's exception of ours": (
        "import regplug\nclass E:\n    def __str__(self): {act}\n    __repr__ = __str__\n"
        "@regplug.hookimpl\ndef regplug_readouts(): raise regplug.PluginError(E())"
    ),
    "a summary": (
        "import regplug\nclass O:\n    def __repr__(self): {act}\n    __str__ = __repr__\n"
        "@regplug.hookimpl\ndef regplug_readouts(): return [regplug.ReadoutEntry('a', 'b:c', summary=O())]"
    ),
}

# ---- names that are more than text: every method of theirs does ``act``

TEXT = """
import regplug
class Text(str):
    def __eq__(self, other): {act}
    def __ne__(self, other): {act}
    def __hash__(self): {act}
    def __format__(self, how): {act}
    def __str__(self): {act}
    def __repr__(self): {act}
    def __len__(self): {act}
    def __iter__(self): {act}
    def splitlines(self, *words): {act}
    def isprintable(self): {act}
    def partition(self, *words): {act}
    def startswith(self, *words): {act}

@regplug.hookimpl
def regplug_readouts():
    entry = regplug.ReadoutEntry(
        Text("evil"), Text("good_models:Fine"), summary=Text("words"), old_names=[Text("older")],
        sizes={{Text("width"): Text("hidden_dim")}} if "{act}" == "return True" else {{}},
    )
    object.__setattr__(entry, "name", Text("evil"))
    return [entry]
@regplug.hookimpl
def regplug_films():
    return [regplug.FiLMEntry("film", "a:b", width=Text("w"), form=Text("gamma"), order=Text("gamma-first"),
                              classes=[Text("a:c")], width_at=Text("w"))]
@regplug.hookimpl
def regplug_backbones():
    return [regplug.BackboneEntry("vit", Text("a:b"), layout=Text("a:l"), readouts=[Text("evil")],
                                  default=Text("evil"), tokens=Text("a:t"))]
"""

# ---- plugins that have no end

# at import it waits for a thread that asks for a name
ASKING = """
import threading, regplug
said = []
def ask():
    try: said.append(regplug.default_registry().readout_entry({name!r}).full_name)
    except regplug.RegplugError as error: said.append(str(error))
asking = threading.Thread(target=ask)
asking.start()
asking.join()
"""
# each with what is said of it
ENDLESS = {
    "a hook that yields without end": (
        "import itertools, regplug\n@regplug.hookimpl\ndef regplug_readouts():\n"
        "    return (regplug.ReadoutEntry(f'r{n}', 'a:b') for n in itertools.count())",
        "regplug_readouts: expected at most 10000 of them, got more.",
    ),
    "a million entries": (
        "import regplug\n@regplug.hookimpl\ndef regplug_readouts():\n"
        "    return [regplug.ReadoutEntry('a', 'a:b')] * 1_000_000",
        "regplug_readouts: expected at most 10000 of them, got more.",
    ),
    "names without end": (
        "import itertools\ndef __dir__(): return map(str, itertools.count())",
        "expected at most 100000 names in its module, got more.",
    ),
    "many names": (
        "globals().update((f'name_{n}', n) for n in range(200_000))",
        "expected at most 100000 names in its module, got more.",
    ),
    "old names without end": (
        "import itertools, regplug\nfrom collections.abc import Sequence\nclass Old(Sequence):\n"
        "    def __len__(self): return 1\n    def __getitem__(self, n): return f'o{n}'\n"
        "@regplug.hookimpl\ndef regplug_readouts():\n    return [regplug.ReadoutEntry('a', 'a:b', old_names=Old())]",
        "SpecError: ReadoutEntry 'a': old_names: expected at most 10000 of them, got more.",
    ),
}

# ---- what prints, holds the process, or ends it

NOISY = {
    "prints": "print('noise')",
    "writes to the descriptor": "import os; os.write(1, b'noise')",
    "starts a process that prints": "import subprocess; subprocess.run(['echo', 'noise'])",
    "prints by C": "import ctypes; ctypes.CDLL(None).puts(b'noise')",
    "opens stdout by its path": "open('/proc/self/fd/1', 'w').write('noise')",
    "logs to stdout": "import logging, sys; logging.basicConfig(stream=sys.stdout, level=0); logging.info('noise')",
    "starts a process that stays": "import subprocess; subprocess.Popen('echo noise; exec sleep 9', shell=True)",
    "prints in a thread": (
        "import threading\ndef speak():\n    while True: print('noise', flush=True)\n"
        "threading.Thread(target=speak, daemon=True).start()"
    ),
    "prints at exit": "import atexit; atexit.register(print, 'noise')",
    "replaces stdout": "import io, sys; sys.stdout = sys.__stdout__ = io.StringIO()",
    "closes stdout": "import sys; sys.stdout.close()",
    "closes stderr": "import sys; sys.stderr.close()",
    "closes descriptors": "import os; os.close(1); os.close(2); os.close(0)",
    "asks the user": "input('noise, password: ')",
    "forks": "import os\nos.fork()",
    "forks a copy that stays": "import os, time\nif not os.fork(): time.sleep(1000)",
    "leaves a thread": "import threading, time; threading.Thread(target=time.sleep, args=(1000,)).start()",
    "sleeps at exit": "import atexit, time; atexit.register(time.sleep, 1000)",
    "exits with success at exit": "import atexit, os; atexit.register(os._exit, 0)",
}


def every_kind() -> dict[str, str]:
    """The text of every kind's module; those that break no import also offer the strategy ``evil``."""
    offered = HOOK.format(name="evil")
    kinds = {f"{kind} that does: {act}": text.format(act=act) for kind, text in EVIL.items() for act in SHOWN}
    kinds |= {f"a name whose methods do: {act}": TEXT.format(act=act) for act in ("raise SystemExit(0)", "return True")}
    kinds |= {f"asks for {name} in a thread": ASKING.format(name=name) + offered for name in ("pool", "regplug:pool")}
    kinds |= {kind: text for kind, (text, _) in ENDLESS.items()}
    kinds |= {kind: text + offered for kind, text in NOISY.items()}
    return kinds | {kind: text + offered for kind, text in MEDDLING.items()}


# ---- what changes the process

MEDDLING = {
    "changes the folder": "import os; os.chdir('/')",
    "empties the path": "import sys; sys.path[:] = []",
    "makes warnings errors": "import warnings; warnings.simplefilter('error')",
    "ignores the interrupt": "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)",
    "replaces the hook of exceptions": "import os, sys; sys.excepthook = lambda *error: os._exit(0)",
    "sets another mask": "import os; os.umask(0)",
    "sets a locale": "import locale; locale.setlocale(locale.LC_ALL, 'C')",
}
