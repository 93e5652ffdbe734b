"""The functions of regplug::runtime that programs call, called from Python."""

import ctypes

import torch

NUMBERS = {torch.float64: 0, torch.float32: 1, torch.float16: 2, torch.bfloat16: 3}  # the order of regplug::Dtype


class Runtime:
    """The runtime's functions, called with torch's tensors."""

    def __init__(self, path):
        self.library = ctypes.CDLL(str(path))
        self.library.runtime_function.restype = ctypes.c_void_p
        self.library.runtime_error.restype = ctypes.c_char_p

    def call(self, name, *arguments):
        address = self.library.runtime_function(name.encode())
        assert address, name
        return ctypes.CFUNCTYPE(ctypes.c_int32)(address)(*arguments)

    def handle(self, tensor):
        made = ctypes.c_void_p()
        shape = [(ctypes.c_int64 * tensor.dim())(*values) for values in (tensor.shape, tensor.stride())]
        data = ctypes.c_void_p(tensor.data_ptr())
        number = NUMBERS[tensor.dtype]
        rank, offset = ctypes.c_int64(tensor.dim()), ctypes.c_int64(0)
        assert not self.call(
            "aoti_torch_create_tensor_from_blob", data, rank, *shape, offset, number, 0, 0, ctypes.byref(made)
        )
        return made

    def tensor(self, handle, dtype):
        """A copy of what a handle holds, and its strides; the handle is deleted."""
        rank, data = ctypes.c_int64(), ctypes.c_void_p()
        sizes, strides = ctypes.POINTER(ctypes.c_int64)(), ctypes.POINTER(ctypes.c_int64)()
        for name, place in (("dim", rank), ("sizes", sizes), ("strides", strides), ("data_ptr", data)):
            name = f"aoti_torch_get_{name}"
            address = self.library.runtime_function(name.encode()) or 0
            if not address:  # programs never ask for the rank
                assert name == "aoti_torch_get_dim"
            assert not self.call(name, handle, ctypes.byref(place))
        sizes, strides = sizes[: rank.value], strides[: rank.value]
        items = 1 + sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True))
        memory = (ctypes.c_char * (items * dtype.itemsize)).from_address(data.value)
        copied = torch.frombuffer(bytearray(memory), dtype=dtype).as_strided(sizes, strides)
        self.call("aoti_torch_delete_tensor_object", handle)
        return copied
