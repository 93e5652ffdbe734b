"""docs/api.md has every public name, and says what the code says."""

import re

import api_page
import pytest

import regplug
from regplug.backends.interface import ExportBackend


def test_the_page_is_that_of_the_code():
    assert api_page.PAGE.read_text() == api_page.page(), "run `python tests/docs/api_page.py`"


def test_every_public_name_is_on_the_page():
    heads = re.findall(r"^### (\S+)$", api_page.PAGE.read_text(), re.MULTILINE)
    assert {f"regplug.{name}" for name in regplug.__all__} <= set(heads)
    assert len(heads) == len(set(heads))


def test_every_link_on_the_page_leads_to_a_heading():
    text = api_page.PAGE.read_text()
    heads = {api_page._anchor(head) for head in re.findall(r"^#+ (.+)$", text, re.MULTILINE)}
    assert set(re.findall(r"\]\(#([^)]+)\)", text)) <= heads
    pages = set(re.findall(r"\]\((\w+\.md)\)", text))
    assert {page for page in pages if not (api_page.PAGE.parent / page).is_file()} == set()


def test_a_name_of_no_section_is_put_at_the_end(monkeypatch):
    sections = [
        (title, intro, [name for name in names if name != "attach"]) for title, intro, names in api_page.SECTIONS
    ]
    monkeypatch.setattr(api_page, "SECTIONS", sections)
    assert api_page.page().count("### regplug.attach\n") == 1
    assert "\n## More\n" in api_page.page()


def test_the_check_sees_a_changed_signature_and_a_changed_docstring(monkeypatch):
    before = api_page.page()

    def open(self, program):  # noqa: A001
        """Other words."""

    monkeypatch.setattr(ExportBackend, "open", open)
    changed = set(api_page.page().splitlines()) ^ set(before.splitlines())
    assert {"**`ExportBackend.open(program)`**", "Other words."} <= changed


@pytest.mark.parametrize(
    ("doc", "lines"),
    [
        ("One ``x``.", ["One `x`.", ""]),
        (
            "T.\n\nArgs:\n    a: One\n        more.\n    **b: Two.\n\nReturns:\n    It.\n\nRaises:\n    E: If.",
            [
                "T.",
                "",
                "",
                "",
                "- `a`: One more.",
                "- `**b`: Two.",
                "",
                "Returns: It.",
                "",
                "Raises:",
                "",
                "- `E`: If.",
                "",
            ],
        ),
        ("T.\n\nExample:\n    >>> f(1)\n    2", ["T.", "", "```python", ">>> f(1)", "2", "```", ""]),
    ],
)
def test_a_docstring_becomes_markdown(doc, lines):
    assert api_page.rendered(doc) == lines


def test_every_public_class_and_function_says_what_it_is():
    for _, _, names in api_page.SECTIONS:
        for name in names:
            what, full = api_page.found(name)
            assert len(api_page._doc(what)) > 10, full
