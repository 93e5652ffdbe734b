"""Completion in the shell: really asked of bash, and of the protocol that zsh and fish speak."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

TOOLS = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
ASKED = """
eval "$(_REGPLUG_COMPLETE=bash_source regplug)"
ask() {
  COMP_WORDS=("$@") COMP_CWORD=$(($# - 1)) COMPREPLY=()
  _regplug_completion "$1"
  echo "${COMPREPLY[*]}"
}
"""


def shell(script):
    done = subprocess.run(["bash", "-c", script], env=TOOLS, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_bash_completes_commands_options_and_every_kind_of_name():
    asked = [
        ("regplug", "cond"),
        ("regplug", "cond-dim", "compress"),
        ("regplug", "info", "mea"),
        ("regplug", "cond-dim", "--num"),
        ("regplug", "cond-dim", "pool", "--backbone", "digits"),
        ("regplug", "export", "pool", "--backend", "torch"),
        ("regplug", "cond-dim", "no-such"),
    ]
    lines = [f"ask {' '.join(words)}" for words in asked]
    answers = [line.split() for line in shell(ASKED + "\n".join(lines)).splitlines()]
    assert answers == [
        ["cond-dim"],
        ["compress-concat"],
        ["mean", "mean-sqrt-len", "mean-std"],
        ["--num-registers"],
        ["digits-vit"],
        ["torchscript"],
        [],
    ]


@pytest.mark.parametrize("kind", ["zsh", "fish"])
def test_the_other_shells_get_a_script_and_names(kind):
    out = shell(
        f"_REGPLUG_COMPLETE={kind}_source regplug\necho ----\n"
        f"COMP_WORDS='regplug cond-dim compress' COMP_CWORD={2 if kind == 'zsh' else 'compress'} "
        f"_REGPLUG_COMPLETE={kind}_complete regplug"
    )
    script, _, names = out.partition("----")
    assert f"_REGPLUG_COMPLETE={kind}_complete" in script
    assert "compress-concat" in names
