"""Every message is one line of at most 400 characters without control characters, also if it quotes some."""

import pickle
import unicodedata

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from support.damage import edit_manifest

import regplug
from regplug import errors
from regplug.commands.main import group

EVERY = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.RegplugError)]


@pytest.mark.parametrize("kind", EVERY)
@given(text=st.text())
def test_every_message_is_one_short_line_without_control_characters(kind, text):
    said = str(kind(text + "x" * 390 + text))
    assert len(said) <= 400
    assert said.splitlines() == [said]
    assert not {unicodedata.category(letter) for letter in said} & {"Cc", "Cs", "Zl", "Zp"}
    assert not {unicodedata.bidirectional(letter) for letter in said} & {
        "LRE", "RLE", "PDF", "LRO", "RLO", "LRI", "RLI", "FSI", "PDI",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("plain: \u00fcber \u65e5\u672c \\n", "plain: \u00fcber \u65e5\u672c \\n"),
        ("a\nb\tc\r", "a\\nb\\tc\\r"),
        ("\x1b[2J\x9b\x7f\x00", "\\x1b[2J\\x9b\\x7f\\x00"),
        ("\u202e\u2066\u061c\u200f\ufeff\u2028", "\\u202e\\u2066\\u061c\\u200f\\ufeff\\u2028"),
        ("\udc80\udcff\ud800", "\\x80\\xff\\ud800"),
        ("a" * 400, "a" * 400),
        ("a" * 350 + "b" * 51, "a" * 300 + "..." + "a" * 46 + "b" * 51),
    ],
)
def test_control_characters_are_shown_as_escapes(text, said):
    assert str(regplug.BundleError(text)) == said
    assert str(regplug.BundleError(said)) == said


def test_a_message_survives_pickling_and_a_label_in_front():
    error = pickle.loads(pickle.dumps(regplug.SpecError("x" * 1000)))
    assert (type(error), len(str(error))) == (regplug.SpecError, 400)
    assert str(regplug.BundleError(f"bundle b: {error}")).startswith("bundle b: xxx")


def test_an_option_of_a_megabyte_is_not_printed_whole(tmp_path):
    spec = regplug.resolve("mean", num_registers=4, hidden_dim=24)
    regplug.export(spec, spec.build(), tmp_path / "b", backends=[])
    for name, value in (("a" * 100, "y" * 900_000), ("known", ["\u202e" * 300_000])):
        edit_manifest(tmp_path / "b", lambda values, name=name, value=value: values.update(options={name: value}))
        with pytest.raises(regplug.BundleError) as error:
            regplug.verify(tmp_path / "b")
        assert len(str(error.value)) <= 400
        done = CliRunner().invoke(group, ["info", str(tmp_path / "b")])  # shows all that the bundle says
        assert done.output.isascii()
