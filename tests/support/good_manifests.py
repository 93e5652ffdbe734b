"""Manifests that every reader accepts; the malformed ones are made from them."""

SHA = "0" * 64
CASE = {"case": "batch_1", "batch": 1, "start": None, "length": 4, "eager_error": 0.0, "tolerance": 1e-6}


def readout() -> dict:
    """A readout with one program: the smallest manifest with an item in every list."""
    program = {
        "backend": "onnx",
        "file": "program.onnx",
        "properties": {"opset": "20"},
        "cases": {"batch_1": {"error": 0.0, "tolerance": 1e-6}},
    }
    names = ("weights.safetensors", "golden.safetensors", "program.onnx")
    return {
        "bundle_format": 1,
        "holds": "readout",
        "strategy": "regplug:pool",
        "num_registers": 4,
        "hidden_dim": 8,
        "options": {},
        "cond_dim": 8,
        "layout": None,
        "film": None,
        "backbone": None,
        "input": {"name": "registers", "dtype": "float32", "shape": ["B", 4, 8], "min_batch": 1, "min_tokens": None},
        "outputs": [{"name": "conditioning", "dtype": "float32", "shape": ["B", 8]}],
        "golden": {"truth": "float64", "cases": [dict(CASE)]},
        "programs": [program],
        "files": {name: {"size": 1, "sha256": SHA} for name in names},
        "provenance": {"packages": {"regplug": "1.0"}, "torch": "2.13.0", "python": "3.11.7", "cpu": "AVX2"},
    }


def conditioner() -> dict:
    """Tokens in, FiLM pairs out."""
    film = {"generator": "regplug:kernel-film", "options": {}, "form": "gamma", "order": "gamma-first"}
    layout = {"num_registers": 4, "hidden_dim": 8, "start": 1, "indices": None, "num_tokens": None, "normalized": None}
    tokens = {"name": "tokens", "dtype": "float32", "shape": ["B", "T", 8], "min_batch": 1, "min_tokens": 5}
    pairs = [{"name": name, "dtype": "float32", "shape": ["B", 3]} for name in ("gamma_0", "beta_0")]
    golden = {"truth": "eager", "cases": [CASE | {"length": 9}]}
    return readout() | {
        "holds": "conditioner",
        "film": film,
        "layout": layout,
        "input": tokens,
        "outputs": pairs,
        "golden": golden,
    }


def images() -> dict:
    """A readout behind its backbone."""
    layout = conditioner()["layout"] | {"normalized": True}
    backbone = {"name": "regplug:digits", "model": "small", "options": {"depth": 2}, "normalized": True}
    pixels = {"name": "images", "dtype": "float32", "shape": ["B", 3, 8, 8], "min_batch": 1, "min_tokens": None}
    golden = {"truth": "eager", "cases": [CASE | {"length": 3}]}
    return readout() | {"layout": layout, "backbone": backbone, "input": pixels, "golden": golden}


def join() -> dict:
    """Format 2: any number of tokens with a mask, of which the last two take none, and a vector."""
    tokens = {"name": "tokens", "dtype": "float32", "shape": ["B", "T", 8], "min_batch": 1, "min_tokens": 2}
    parts = [
        {"name": "mean", "width": 3, "tokens": [0, None], "takes_mask": True},
        {"name": "ends", "width": 2, "tokens": [-2, None], "takes_mask": False},
        {"name": "state", "width": 3, "tokens": None, "takes_mask": False},
    ]
    more = [
        {"name": "mask", "dtype": "bool", "shape": ["B", "T"]},
        {"name": "state", "dtype": "float32", "shape": ["B", 7]},
    ]
    sizes = {"bundle_format": 2, "num_registers": None}
    return readout() | sizes | {"input": tokens, "more_inputs": more, "parts": parts}


def any_count() -> dict:
    """Format 2: a conditioner on all tokens after the first."""
    base = conditioner()
    sizes = {"bundle_format": 2, "num_registers": None, "more_inputs": join()["more_inputs"][:1], "parts": None}
    return (
        base
        | sizes
        | {
            "layout": base["layout"] | {"num_registers": None},
            "input": base["input"] | {"min_tokens": 2},
        }
    )


BASES = {"readout": readout, "conditioner": conditioner, "images": images, "join": join, "any_count": any_count}
