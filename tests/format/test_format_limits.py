"""The limits of the format are the same numbers in Python and in C++."""

import re
from pathlib import Path

import regplug
from regplug.format import limits

HEADERS = Path(regplug.__file__).parent / "include" / "regplug"
CONSTANT = re.compile(r"constexpr std::u?\w+ (kMax\w+) = ([^;]+);|constexpr int (kMaxAttempts) = (\d+);")
# other names in C++, or only inside a function there
SAME = {"MAX_REOPENS": "kMaxAttempts"}


def value_of(expression: str) -> int:
    """A C++ expression of numbers, shifts and sums."""
    plain = re.sub(r"std::u?\w+\{(\d+)\}", r"\1", expression)
    assert re.fullmatch(r"[\d\s()<+-]+", plain), plain
    return eval(plain)


def test_each_limit_is_the_same_in_both_languages():
    stated = {}
    for path in HEADERS.rglob("*.h"):
        for name, value, other, count in CONSTANT.findall(path.read_text()):
            if not re.search("k[A-Z]", value):
                stated.setdefault(name or other, set()).add(value_of(value or count))
    stated["kMaxHeader"] = {one - 8 for one in stated["kMaxOverhead"]}
    own = {name: value for name, value in vars(limits).items() if name.startswith("MAX_")}
    assert len(own) == 11
    for name, value in own.items():
        assert stated[SAME.get(name, "kMax" + name[4:].title().replace("_", ""))] == {value}, name
