"""Safetensors files for each rule of docs/bundle.md: files that just break it, with the message, and that just keep it.

A case is a file's bytes and what the reader must say of it, ``RULE: DETAIL``, or None where it must accept the file.
"""

import json
from itertools import permutations

LIMIT = 1 << 20
DTYPES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
KNOWN = "F64, F32, F16, BF16, I64, I32, I16, I8, U8, BOOL"
OTHER_DTYPES = (
    "F4 F6_E2M3 F6_E3M2 F8_E5M2 F8_E4M3 F8_E8M0 F8_E4M3FNUZ F8_E5M2FNUZ U16 U32 U64 C64 C128 f32 float32 I128"
)
FULL = "header: expected a JSON object from '{' to '}', then nothing but spaces"
NO_JSON = "header: expected a JSON object in UTF-8"
PLAIN = "in plain digits, below 2^53"
# values that are not plain digits: as JSON writes them, and as a message shows them
NO_SIZES = {
    "a negative": ("-1", "-1"),
    "minus zero": ("-0", "0"),
    "a fraction": ("2.0", "2.0"),
    "an exponent": ("2e0", "2.0"),
    "a string": ('"2"', '"2"'),
    "null": ("null", "null"),
    "true": ("true", "true"),
    "a list": ("[2]", "[2]"),
    "an object": ("{}", "{}"),
    "2^53": ("9007199254740992", "9007199254740992"),
    "2^63": ("9223372036854775808", "9223372036854775808"),
    "2^64 - 1": ("18446744073709551615", "18446744073709551615"),
    "2^64": ("18446744073709551616", "1.84467440737e+19"),
    "twenty digits": ("10000000000000000000", "10000000000000000000"),
    "a googol": ("1e100", "1e+100"),
}
NO_OBJECTS = {"null": "null", "true": "true", "a number": "1", "a string": '"x"', "a list": "[]"}
Case = tuple[bytes, str | None]


def raw(header: bytes | str, data: bytes = b"") -> bytes:
    text = header.encode() if isinstance(header, str) else header
    return len(text).to_bytes(8, "little") + text + data


def entry(dtype: str = "U8", shape: str = "[2]", offsets: str = "[0,2]") -> str:
    return f'{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}'


def file(entries: dict[str, str], data: bytes = b"", metadata: str = "") -> bytes:
    items = [f'"__metadata__":{metadata}'] if metadata else []
    return raw(f"{{{','.join([*items, *(f'{json.dumps(name)}:{text}' for name, text in entries.items())])}}}", data)


def one(text: str, size: int = 2) -> bytes:
    return file({"w": text}, bytes(size))


GOOD = one(entry())


def sizes_of_the_file():
    for size in range(8):
        yield f"{size} bytes", bytes(size), f"size: expected at least 8 bytes, got {size}"
    yield "8 bytes and an empty object", raw("{}"), None
    inside = f"size: expected a header inside the file and within {LIMIT} bytes, got "
    for length in (3, 4, 255, 1 << 16, LIMIT, LIMIT + 1, 1 << 31, 1 << 32, (1 << 63) - 1, 1 << 63, (1 << 64) - 1):
        yield f"a length of {length} before 2", length.to_bytes(8, "little") + b"{}", f"{inside}{length}"
    yield "a length of 0", bytes(8), FULL
    yield "a length of 0 before a header", bytes(8) + b"{}", FULL
    yield "the header's last byte outside", raw("{}")[:-1], f"{inside}2"
    for length in (9, 16, 23, 24, 25):  # of 8 bytes after the first 8
        yield f"a length of {length} before 8", length.to_bytes(8, "little") + b"{}".ljust(8), f"{inside}{length}"
    yield "a header of 1 MiB", raw(b"{}".ljust(LIMIT)), None
    yield "a header of 1 MiB and a byte", raw(b"{}".ljust(LIMIT + 1)), f"{inside}{LIMIT + 1}"


def texts_of_the_header():
    for word, text in {
        "a leading space": " {}",
        "a leading newline": "\n{}",
        "a byte order mark": "\ufeff{}",
        "a leading NUL": "\0{}",
        "a list": "[]",
        "a string": '"{}"',
        "a number": "1",
        "no closing brace": "{",
        "a trailing newline": "{}\n",
        "a trailing tab": "{}\t",
        "a trailing NUL": "{}\0",
        "a NUL between spaces": "{} \0 ",
        "a trailing letter": "{}x",
        "a trailing comma": "{},",
        "spaces alone": "   ",
    }.items():
        yield word, raw(text), FULL
    for count in (0, 1, 7, 8, 64):
        yield f"{count} trailing spaces", raw("{}" + " " * count), None
    for word, text in {
        "space between": '{ "w" : ENTRY }',
        "newlines and tabs between": '{\n"w"\t:\rENTRY\n}',
        "escapes in a name": '{"\\u0077":ENTRY}',
    }.items():
        yield word, raw(text.replace("ENTRY", entry()), bytes(2)), None
    for word, text in {
        "two objects": "{}{}",
        "two objects and a space": "{} {}",
        "a comma before the end": '{"w":ENTRY,}',
        "a comma at the begin": '{,"w":ENTRY}',
        "no colon": '{"w" ENTRY}',
        "no comma": '{"v":ENTRY "w":ENTRY}',
        "no value": '{"w":}',
        "a name without quotes": "{w:ENTRY}",
        "a name in single quotes": "{'w':ENTRY}",
        "a number as a name": "{1:ENTRY}",
        "a comment": '{/**/"w":ENTRY}',
        "a line comment": '{"w":ENTRY//\n}',
        "an open string": '{"w:ENTRY}',
        "NaN": '{"w":NaN}',
        "Infinity": '{"w":Infinity}',
        "minus Infinity": '{"w":-Infinity}',
        "a number beyond float64": '{"w":1e400}',
        "a negative number beyond float64": '{"w":-1e400}',
        "400 digits": f'{{"w":{"9" * 400}}}',
        "a leading zero": '{"w":01}',
        "a plus sign": '{"w":+1}',
        "a point at the begin": '{"w":.5}',
        "a point at the end": '{"w":1.}',
        "an empty exponent": '{"w":1e}',
        "a hexadecimal number": '{"w":0x1}',
        "True of Python": '{"w":True}',
        "an unknown word": '{"w":nil}',
        "a raw newline in a string": '{"w\n":ENTRY}',
        "a raw tab in a string": '{"w\t":ENTRY}',
        "a raw NUL in a string": '{"w\0":ENTRY}',
        "an unknown escape": '{"\\x77":ENTRY}',
        "a short escape": '{"\\u077":ENTRY}',
        "an open list": '{"w":[}',
        "an open object": '{"w":{}',
        "brackets crossed": '{"w":[{]}}',
        "half a surrogate pair, high": '{"\\ud800":ENTRY}',
        "half a surrogate pair, low": '{"\\udc00":ENTRY}',
        "a surrogate pair, reversed": '{"\\udc00\\ud800":ENTRY}',
        "half a surrogate pair in a value": '{"__metadata__":{"a":"\\ud800"}}',
        "65 levels": '{"w":' + "[" * 64 + "]" * 64 + "}",
        "66 levels of objects": '{"a":' * 66 + "1" + "}" * 66,
        "100,000 levels": '{"w":' + "[" * 100_000 + "]" * 100_000 + "}",
    }.items():
        yield word, raw(text.replace("ENTRY", entry()), bytes(2)), NO_JSON
    deep = '{"w":' + "[" * 63 + "]" * 63 + "}"
    yield "64 levels", raw(deep), f"tensor: tensor 'w': expected an object, got {'[' * 60}..."
    yield "brackets in a string", raw(f'{{"__metadata__":{{"a":"{"[" * 65}"}}}}'), None
    yield "brackets after an escaped quote", raw(f'{{"__metadata__":{{"a":"\\"{"[" * 65}"}}}}'), None
    yield "a surrogate pair", raw('{"__metadata__":{"a":"\\ud83d\\ude00"}}'), None
    for word, letters in {
        "a continuation byte alone": b"\x80",
        "a start byte alone": b"\xc3",
        "0xff": b"\xff",
        "an overlong NUL": b"\xc0\x80",
        "an overlong slash": b"\xe0\x80\xaf",
        "a surrogate in UTF-8": b"\xed\xa0\x80",
        "beyond Unicode": b"\xf4\x90\x80\x80",
        "half of three bytes": b"\xe2\x82",
    }.items():
        yield f"{word} in a name", raw(b'{"w' + letters + b'":1}'), NO_JSON
        yield f"{word} in metadata", raw(b'{"__metadata__":{"a":"' + letters + b'"}}'), NO_JSON
    for word, letters in {"two bytes": "é", "three bytes": "€", "four bytes": "😀"}.items():
        yield f"UTF-8 of {word} in metadata", raw(f'{{"__metadata__":{{"{letters}":"{letters}"}}}}'), None


def keys_that_stand_twice():
    for word, text, key in (
        ("a name", '{"w":ENTRY,"w":ENTRY}', "w"),
        ("a name, escaped", '{"w":ENTRY,"\\u0077":ENTRY}', "w"),
        ("a name, then more", '{"w":ENTRY,"w":ENTRY,"a":1}', "w"),
        ("a name after another", '{"v":ENTRY,"w":1,"w":2}', "w"),
        ("the first of two names", '{"v":1,"w":1,"w":1,"v":1}', "w"),
        ("the outer before the inner", '{"w":1,"w":{"a":1,"a":1}}', "w"),
        ("the inner before the outer", '{"w":{"a":1,"a":1},"w":1}', "a"),
        ("an empty name", '{"":1,"":1}', ""),
        ("a long name", f'{{"{"x" * 300}":1,"{"x" * 300}":1}}', "x" * 60 + "..."),
        ("a name beyond ASCII", '{"é":1,"é":1}', "\\u00e9"),
        ("a name with a newline", '{"\\n":1,"\\n":1}', "\\n"),
        ("dtype", '{"w":{"dtype":"U8","dtype":"U8","shape":[2],"data_offsets":[0,2]}}', "dtype"),
        ("shape", '{"w":{"dtype":"U8","shape":[2],"shape":[2],"data_offsets":[0,2]}}', "shape"),
        ("data_offsets", '{"w":{"dtype":"U8","shape":[2],"data_offsets":[0,2],"data_offsets":[0,2]}}', "data_offsets"),
        ("an unknown field", '{"w":{"a":1,"a":1}}', "a"),
        ("a key of the metadata", '{"__metadata__":{"a":"","a":""}}', "a"),
        ("the metadata", '{"__metadata__":{},"__metadata__":{}}', "__metadata__"),
        ("a key inside a list", '{"w":[{"a":1,"a":1}]}', "a"),
    ):
        yield f"{word} twice", raw(text.replace("ENTRY", entry()), bytes(2)), f"duplicate: duplicate key '{key}'"
    yield "a name in two cases", file({"w": entry(), "W": entry(offsets="[2,4]")}, bytes(4)), None
    yield "a name twice after what is no JSON", raw('{"w":1,"w":1,}'), NO_JSON
    yield "a name twice and 65 levels", raw('{"w":1,"w":' + "[" * 64 + "]" * 64 + "}"), NO_JSON
    yield "half a surrogate in a value that a second drops", raw('{"w":"\\ud800","w":1}'), NO_JSON


def metadata():
    for word, text in NO_OBJECTS.items():
        yield f"metadata: {word}", file({}, metadata=text), f"metadata: expected an object, got {text}"
    for text in ("null", "true", "1", "1.5", "[]", "{}"):
        said = f"metadata: expected strings, got {text}"
        yield f"metadata with {text} alone", file({}, metadata=f'{{"a":{text}}}'), said
        yield f"metadata with {text} last", file({}, metadata=f'{{"a":"","b":{text}}}'), said
        yield f"metadata with {text} before another", file({}, metadata=f'{{"b":[1],"a":{text}}}'), said
    for text in ("{}", '{"":""}', '{"a":"b"}', '{"a":"","b":"\\u0000"}', '{"dtype":"F32"}'):
        yield f"metadata {text}", file({"w": entry()}, bytes(2), text), None
    for count in (1024, 1025):
        text = json.dumps({str(index): "" for index in range(count)})
        refused = None if count == 1024 else "metadata: expected at most 1024 keys, got 1025"
        yield f"{count} keys of metadata", file({}, metadata=text), refused
    for letter in ("x", "é"):
        for size in (1 << 19, (1 << 19) + 2):
            text = json.dumps({"ab": letter * ((size - 2) // len(letter.encode()))}, ensure_ascii=False)
            refused = None if size == 1 << 19 else f"metadata: expected at most 524288 bytes, got {size}"
            yield f"{size} bytes of metadata in {letter}", file({}, metadata=text), refused
    halves = json.dumps({"a" * (1 << 18): "b" * (1 << 18), "c": ""})
    yield (
        "metadata over the limit by a key",
        file({}, metadata=halves),
        "metadata: expected at most 524288 bytes, got 524289",
    )


def names():
    for letter in [*" !\"#$%&'()*+,/:;<=>?@[\\]^`{|}~", "\0", "\t", "\n", "\x7f", "é", "０", "😀"]:
        for word, name in (("alone", letter), ("first", f"{letter}w"), ("last", f"w{letter}")):
            shown = json.dumps(name) if letter != "\x7f" else json.dumps(name).replace("\x7f", "\\u007f")
            said = f"name: expected 1 to 256 letters, digits, '_', '.' and '-', got {shown}"
            yield f"{letter!r} {word} in a name", file({name: entry()}, bytes(2)), said
    for name in ("a", "Z", "0", "_", ".", "-", "..", "a.b-c_D9", "__metadata", "_metadata__", "dtype"):
        yield f"the name {name}", file({name: entry()}, bytes(2)), None
    begin = "name: expected 1 to 256 letters, digits, '_', '.' and '-', got "
    yield "an empty name", file({"": entry()}, bytes(2)), f'{begin}""'
    yield "a name of 256", file({"x" * 256: entry()}, bytes(2)), None
    yield "a name of 257", file({"x" * 257: entry()}, bytes(2)), f'{begin}"{"x" * 59}...'
    for count in (4096, 4097):
        entries = {f"t{i}": entry(shape="[1]", offsets=f"[{i},{i + 1}]") for i in range(count)}
        refused = None if count == 4096 else "name: expected at most 4096 tensors, got 4097"
        yield f"{count} tensors", file(entries, bytes(count)), refused
        yield f"{count} tensors and metadata", file(entries, bytes(count), "{}"), refused


def fields():
    for word, text in NO_OBJECTS.items():
        said = f"tensor: tensor 'w': expected an object, got {text}"
        yield f"a tensor: {word}", one(text), said
        yield f"the second tensor: {word}", file({"a": entry(), "w": text}, bytes(2)), said
    parts = {"dtype": '"U8"', "shape": "[2]", "data_offsets": "[0,2]"}
    for order in permutations(parts):
        text = ",".join(f'"{key}":{parts[key]}' for key in order)
        yield f"fields as {', '.join(order)}", one(f"{{{text}}}"), None
    begin = "tensor: tensor 'w': expected exactly dtype, shape, data_offsets, got "
    for chosen in ((), *((key,) for key in parts), *permutations(parts, 2)):
        text = ",".join(f'"{key}":{parts[key]}' for key in chosen)
        got = json.dumps(sorted(chosen), separators=(",", ":"))
        yield f"the fields [{', '.join(chosen)}] alone", one(f"{{{text}}}"), f"{begin}{got}"
    for key in ("extra", "Dtype", "", "\u00e9", "strides"):
        got = json.dumps(sorted([*parts, key]), separators=(",", ":"))
        yield f"a further field {key!r}", one(entry()[:-1] + f",{json.dumps(key)}:1}}"), f"{begin}{got}"
    for key in parts:
        got = json.dumps(sorted({*parts, key.upper()} - {key}), separators=(",", ":"))
        yield f"{key} in capitals", one(entry().replace(key, key.upper())), f"{begin}{got}"


def dtypes():
    for name, size in DTYPES.items():
        for shape in ("[]", "[1]", "[3]", "[1,3]", "[0]", "[2,0,3]"):
            count = 1
            for part in json.loads(shape):
                count *= part
            end = count * size
            text = entry(name, shape, f"[0,{end}]")
            where = f"{name} {shape}"
            yield f"{where} with its bytes", one(text, end), None
            for change, word in (
                (1, "a byte more"),
                (size, "an item more"),
                (-1, "a byte less"),
                (-size, "an item less"),
            ):
                if (
                    end + change >= 0
                    and (abs(change) == 1 or shape == "[3]")
                    and (size > 1 or abs(change) != size or word[2] == "b")
                ):
                    said = f"bytes: tensor 'w': expected {end} bytes, got {end + change}"
                    yield f"{where}, {word}", one(entry(name, shape, f"[0,{end + change}]"), end + change), said
        texts = {"a": entry(offsets="[0,8]", shape="[8]"), "w": entry(name, "[1]", f"[8,{9 + size}]")}
        said = f"bytes: tensor 'w': expected {size} bytes, got {size + 1}"
        yield f"{name} at 8, a byte more", file(texts, bytes(9 + size)), said
        for begin in range(1, size):
            texts = {
                "a": entry("U8", f"[{begin}]", f"[0,{begin}]"),
                "w": entry(name, "[1]", f"[{begin},{begin + size}]"),
            }
            said = f"alignment: tensor 'w': expected a multiple of {size}, got {begin}"
            yield f"{name} at {begin}", file(texts, bytes(begin + size)), said
        texts = {"a": entry("U8", f"[{size}]", f"[0,{size}]"), "w": entry(name, "[1]", f"[{size},{2 * size}]")}
        yield f"{name} at {size}", file(texts, bytes(2 * size)), None
    for name in OTHER_DTYPES.split():
        yield f"the dtype {name}", one(entry(name)), f"dtype: tensor 'w': expected one of {KNOWN}, got \"{name}\""
    for text in ('""', '"U8 "', "null", "1", "true", '["U8"]', "{}"):
        said = f"dtype: tensor 'w': expected one of {KNOWN}, got {text}"
        yield f"a dtype {text}", one(entry().replace('"U8"', text)), said


def shapes():
    for text in ("null", "true", "2", '"[2]"', "{}"):
        said = f"shape: tensor 'w': expected a list of sizes, got {json.dumps(json.loads(text))}"
        yield f"a shape {text}", one(entry(shape=text)), said
    for word, (text, shown) in NO_SIZES.items():
        for place, shape in (("alone", f"[{text}]"), ("first", f"[{text},2]"), ("last", f"[1,2,{text}]")):
            said = f"shape: tensor 'w': expected sizes {PLAIN}, got {shown}"
            yield f"{word} {place} in a shape", one(entry(shape=shape)), said
    for rank in range(9):
        yield f"rank {rank}", one(entry(shape=json.dumps([1] * rank), offsets="[0,1]"), 1), None
    for rank in (9, 10, 64):
        said = f"shape: tensor 'w': expected at most 8 sizes, got {rank}"
        yield f"rank {rank}", one(entry(shape=json.dumps([1] * rank), offsets="[0,1]"), 1), said
    yield "a size of 2^53 - 1 and a size of 0", one(entry(shape="[0,9007199254740991]", offsets="[0,0]"), 0), None
    for name, size in DTYPES.items():
        for last in (2**13 // size - 1, 2**13 // size):
            for order in ([0, 2**50, last], [last, 0, 2**50], [2**50, last, 0]):
                shape = json.dumps(order, separators=(",", ":"))
                said = (
                    None if last * size < 2**13 else f"shape: tensor 'w': expected fewer than 2^63 bytes, got {shape}"
                )
                yield f"{name} {shape}", one(entry(name, shape, "[0,0]"), 0), said
    said = "shape: tensor 'w': expected fewer than 2^63 bytes, got "
    for shape in ("[4294967296,4294967296]", "[2,9007199254740991,1024]", "[1048576,1048576,1048576,16]"):
        yield f"{shape}, whose product wraps", one(entry(shape=shape)), f"{said}{shape}"


def offsets():
    for text in ("null", "true", "2", '"[0,2]"', "{}"):
        said = f"offsets: tensor 'w': expected a list of offsets, got {json.dumps(json.loads(text))}"
        yield f"offsets {text}", one(entry(offsets=text)), said
    for word, (text, shown) in NO_SIZES.items():
        said = f"offsets: tensor 'w': expected offsets {PLAIN}, got {shown}"
        yield f"{word} as begin", one(entry(offsets=f"[{text},2]")), said
        yield f"{word} as end", one(entry(offsets=f"[0,{text}]")), said
    for text in ("[]", "[0]", "[0,1,2]", "[2,0]", "[1,0]", "[9007199254740991,0]"):
        said = f"offsets: tensor 'w': expected begin and end, begin <= end, got {text}"
        yield f"the offsets {text}", one(entry(offsets=text)), said
    for begin in (1, 8):
        said = f"offsets: tensor 'w': expected begin 0, got {begin}"
        yield f"a hole of {begin} at the begin", one(entry(offsets=f"[{begin},{begin + 2}]"), begin + 2), said
    far = (1 << 53) - 3
    said = f"offsets: tensor 'w': expected begin 0, got {far}"
    yield "a tensor beyond the file", one(entry(offsets=f"[{far},{far + 2}]")), said
    for begin in (0, 1, 3, 4):
        said = f"offsets: tensor 'b': expected begin 2, got {begin}"
        texts = {"a": entry(), "b": entry(shape="[3]", offsets=f"[{begin},{begin + 3}]")}
        yield f"a second tensor at {begin} for 2", file(texts, bytes(begin + 3)), said
    yield "a second tensor at 2", file({"a": entry(), "b": entry(offsets="[2,4]")}, bytes(4)), None
    yield "tensors against the order of names", file({"b": entry(), "a": entry(offsets="[2,4]")}, bytes(4)), None
    said = "offsets: tensor 'b': expected begin 2, got 0"
    yield "one span for two", file({"b": entry(), "a": entry()}, bytes(2)), said
    for size in (0, 1, 3, 100):
        yield f"{size} bytes of data for 2", one(entry(), size), f"offsets: expected tensors over {size} bytes, got 2"
    yield "2 bytes of data", GOOD, None
    yield "no tensor and no data", raw("{}"), None
    yield "no tensor and a byte", raw("{}", b"\0"), "offsets: expected tensors over 1 bytes, got 0"
    said = "offsets: expected tensors over 1 bytes, got 0"
    yield "metadata alone and a byte", raw('{"__metadata__":{}}', b"\0"), said
    for place in range(4):
        empty = entry(shape="[0]", offsets=f"[{place},{place}]")
        said = f"offsets: tensor 'e': expected begin 2, got {place}" if place % 2 else None
        yield f"an empty tensor at {place} of 2", file({"w": entry(), "e": empty}, bytes(2)), said
    empty = entry(shape="[0]", offsets="[0,0]")
    for order in permutations("abc"):
        texts = {name: entry() if name == "b" else empty for name in order}
        yield f"two empty tensors at one begin, written as {''.join(order)}", file(texts, bytes(2)), None


def booleans():
    for place in range(3):
        for byte in (2, 128, 255):
            data = bytearray(b"\0\1\0")
            data[place] = byte
            said = f"bool: tensor 'w': expected bytes 0 and 1, got {byte}"
            yield f"a boolean {byte} at {place}", file({"w": entry("BOOL", "[3]", "[0,3]")}, bytes(data)), said
            yield f"an integer {byte} at {place}", file({"w": entry("U8", "[3]", "[0,3]")}, bytes(data)), None
    for data in (b"\0", b"\1", b"\0\1", b"\0\0\0", b"\1\1\1", b"\0\1\0", b"\0\1" * 500):
        text = entry("BOOL", f"[{len(data)}]", f"[0,{len(data)}]")
        yield f"{len(data)} booleans {data[:3].hex()}", file({"w": text}, data), None
    for name, size in DTYPES.items():
        if name != "BOOL":
            yield f"bytes of 7 as {name}", file({"w": entry(name, "[1]", f"[0,{size}]")}, b"\7" * size), None
    around = {"w": entry("BOOL", "[1]", "[0,1]"), "z": entry(shape="[9]", offsets="[1,10]")}
    yield "a boolean before bytes that could be such", file(around, b"\1" + b"\0\1\0" * 3), None
    around = {"a": entry(), "w": entry("BOOL", "[1]", "[2,3]"), "z": entry(offsets="[3,5]")}
    yield "a boolean between others that are none", file(around, b"\7\7\1\7\7"), None
    said = "bool: tensor 'w': expected bytes 0 and 1, got 3"
    yield "a boolean 3 between others", file(around, b"\7\7\3\7\7"), said
    yield (
        "the first of two booleans by name",
        file({"w": entry("BOOL", "[1]", "[1,2]"), "x": entry("BOOL", "[1]", "[0,1]")}, b"\5\3"),
        said,
    )


def several_faults():
    """The message names the first broken rule in the table's order; among tensors the first by name."""
    faults = [
        ("name: expected 1 to 256 letters, digits, '_', '.' and '-', got \"a/\"", "a/", "1"),
        ("tensor: tensor 'b': expected an object, got 1", "b", "1"),
        (f"dtype: tensor 'c': expected one of {KNOWN}, got \"X\"", "c", entry("X", "1", "1")),
        ("shape: tensor 'd': expected a list of sizes, got 1", "d", entry(shape="1", offsets="1")),
        ("offsets: tensor 'e': expected a list of offsets, got 1", "e", entry(offsets="1")),
        ("bytes: tensor 'f': expected 8 bytes, got 2", "f", entry("I32", "[2]", "[1,3]")),
        ("alignment: tensor 'g': expected a multiple of 2, got 1", "g", entry("F16", "[1]", "[1,3]")),
        ("offsets: tensor 'h': expected begin 0, got 1", "h", entry("BOOL", "[1]", "[1,2]")),
    ]
    for index, (said, *_) in enumerate(faults):
        backwards = {name: text for _, name, text in reversed(faults[index:])}
        yield f"{len(backwards)} faults", file(backwards, b"\7\7"), said
        wrong = file(backwards, b"\7\7", '{"b":2,"a":1}')
        yield f"{len(backwards)} faults and metadata", wrong, "metadata: expected strings, got 1"
    said = "shape: tensor 'w': expected sizes in plain digits, below 2^53, got -1"
    yield "a wrong size in a shape of rank 9", one(entry(shape="[1,1,1,1,1,1,1,1,-1]")), said


GROUPS = (
    sizes_of_the_file, texts_of_the_header, keys_that_stand_twice, metadata, names, fields, dtypes, shapes, offsets,
    booleans, several_faults,
)  # fmt: skip


def cases() -> dict[str, Case]:
    found: dict[str, Case] = {}
    for group in GROUPS:
        for name, data, message in group():
            key = f"{group.__name__}: {name}"
            if key in found:
                raise ValueError(f"case {key!r}: expected a name of its own.")
            found[key] = data, message
    return found
