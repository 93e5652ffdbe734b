"""Random mutants of good files and manifests: Python and C++ must agree, and accept nothing the reference refuses."""

import json
import random
import re
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from support import good_manifests, malformed_files
from support.cpp_build import compiled

from torture import Figure
from torture.verdicts import FILE, MANIFEST, Record, compare

FILES, MANIFESTS = 100_000, 30_000
BATCH = 500
LARGEST = 1 << 16  # of a good file; longer ones take longer and show no more
TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*"|-?[0-9][0-9.eE+-]*|true|false|null|[][{}:,]')
PIECES = [
    *(b"{", b"}", b"[", b"]", b",", b":", b'""', b"null", b"true", b"0", b"1", b"-1", b"-0", b"1.0", b"1e0", b"01"),
    *(b"2", b"8", b"9007199254740991", b"9007199254740992", b"9223372036854775807", b"9223372036854775808", b"1e400"),
    *(b"NaN", b"18446744073709551615", b"18446744073709551616", b'"dtype"', b'"shape"', b'"data_offsets"'),
    *(b'"F32"', b'"BOOL"', b'"U8"', b'"I64"', b'"F8_E4M3"', b'"C64"', b'"\\ud800"', b'"\\u0077"', b'"w"'),
    *(b'"__metadata__"', b'"a/b"', b" ", b"\0", b"\xff", b"\xc3\xa9", b"\xef\xbb\xbf", b"[" * 65, b"[0,0]", b"{}"),
    *(b"[]", b'"B"', b'"T"', b'"regplug:pool"'),
]  # fmt: skip


def flipped(data: bytes, draw: random.Random, _: Sequence[bytes]) -> bytes:
    changed = bytearray(data)
    for _ in range(draw.randint(1, 4)):
        if changed:
            changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def inserted(data: bytes, draw: random.Random, _: Sequence[bytes]) -> bytes:
    at = draw.randint(0, len(data))
    return data[:at] + draw.choice([draw.randbytes(draw.randint(1, 8)), draw.choice(PIECES)]) + data[at:]


def deleted(data: bytes, draw: random.Random, _: Sequence[bytes]) -> bytes:
    at = draw.randint(0, len(data))
    return data[:at] + data[at + draw.choice([1, 1, 2, 8, 64]) :]


def repeated(data: bytes, draw: random.Random, _: Sequence[bytes]) -> bytes:
    begin, end = sorted((draw.randint(0, len(data)), draw.randint(0, len(data))))
    return data[:end] + data[begin:end] + data[end:]


def spliced(data: bytes, draw: random.Random, others: Sequence[bytes]) -> bytes:
    other = draw.choice(others)
    return data[: draw.randint(0, len(data))] + other[draw.randint(0, len(other)) :]


def retold(data: bytes, draw: random.Random, _: Sequence[bytes]) -> bytes:
    """Replace one token of JSON by another, from the same text or from those that matter."""
    tokens = list(TOKEN.finditer(data))
    if not tokens:
        return data
    old = draw.choice(tokens)
    new = draw.choice([draw.choice(PIECES), draw.choice(tokens)[0], b""])
    return data[: old.start()] + new + data[old.end() :]


def renumbered(data: bytes, draw: random.Random, _: Sequence[bytes]) -> bytes:
    """Make one number a little larger or smaller."""
    numbers = list(re.finditer(rb"[0-9]{1,15}", data))
    if not numbers:
        return data
    old = draw.choice(numbers)
    new = max(0, int(old[0]) + draw.choice([-8, -4, -2, -1, 1, 2, 4, 8]))
    return data[: old.start()] + str(new).encode() + data[old.end() :]


WAYS = (flipped, inserted, deleted, repeated, spliced, retold, retold, renumbered, renumbered)
HEADER_WAYS = (flipped, inserted, deleted, repeated, retold, retold, retold, renumbered, renumbered, renumbered)


def mutant_of_file(good: Sequence[bytes], draw: random.Random) -> bytes:
    """Mostly a change inside the header with a corrected length, because a wrong length is refused at once."""
    data = draw.choice(good)
    if draw.random() < 0.25:
        return draw.choice(WAYS)(data, draw, good)
    if draw.random() < 0.05:
        return (
            draw.choice([0, 1, 8, 1 << 20, (1 << 20) + 1, 1 << 63, len(data) - 8, len(data) - 7]).to_bytes(8, "little")
            + data[8:]
        )
    end = 8 + int.from_bytes(data[:8], "little")
    header, rest = data[8:end], data[end:]
    for _ in range(draw.choice([1, 1, 1, 2, 3])):
        header = draw.choice(HEADER_WAYS)(header, draw, good)
    if draw.random() < 0.1:
        rest = draw.choice(WAYS)(rest, draw, [rest])
    return len(header).to_bytes(8, "little") + header + rest


def mutant_of_manifest(good: Sequence[bytes], draw: random.Random) -> bytes:
    data = draw.choice(good)
    for _ in range(draw.choice([1, 1, 1, 2, 3])):
        data = draw.choice(WAYS)(data, draw, good)
    return data


MAKERS = {FILE: mutant_of_file, MANIFEST: mutant_of_manifest}


def good_files(work: Path) -> tuple[list[bytes], list[bytes]]:
    """Accepted files and manifests: the named ones, and those of real exports."""
    from support import consumer

    import regplug

    files = [data for data, said in malformed_files.cases().values() if said is None and len(data) <= LARGEST]
    manifests = [json.dumps(base()).encode() for base in good_manifests.BASES.values()]
    for name, (spec, module) in {"r": consumer.readout("compress-concat"), "c": consumer.conditioner("prefix")}.items():
        regplug.export(spec, module, work / name)
        manifests.append((work / name / "manifest.json").read_bytes())
        files += [path.read_bytes() for path in (work / name).glob("*.safetensors")] * 10  # as often as all named ones
    return files, manifests


def batch(program: Path, kind: str, good: Sequence[bytes], seed: str, count: int) -> tuple[Counter[str], list[str]]:
    draw = random.Random(seed)
    records: list[Record] = [(kind, MAKERS[kind](good, draw)) for _ in range(count)]
    return compare(program, records)


def run(work: Path, share: float, seed: int, progress: Callable[[str], None]) -> list[Figure]:
    program = compiled("verdict.cpp", "-O1")
    files, manifests = good_files(work)
    figures = []
    with ProcessPoolExecutor(2, mp_context=get_context("forkserver")) as pool:
        for what, kind, good, full in (("files", FILE, files, FILES), ("manifests", MANIFEST, manifests, MANIFESTS)):
            count = max(int(full * share), 1)
            jobs = [
                pool.submit(batch, program, kind, good, f"{seed} {kind} {begin}", min(BATCH, count - begin))
                for begin in range(0, count, BATCH)
            ]
            counted: Counter[str] = Counter()
            shown: list[str] = []
            for done, job in enumerate(jobs):
                found, examples = job.result()
                counted += found
                shown += examples
                progress(f"{what}: {done * BATCH}")
            words = ("disagreements", "different messages", "looser than the reference")
            note = f"{counted['accepted']:,} accepted, {counted['stricter']:,} refused that the reference takes"
            (work / f"{what}.txt").write_text("\n".join(shown))
            figures.append(
                Figure(
                    f"random mutants of {len(good)} good {what}",
                    count,
                    {word: counted[word] for word in words},
                    seed=seed,
                    note=shown[0][:300] if shown else note,
                )
            )
    return figures
