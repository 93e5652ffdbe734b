"""Declares two operators that torchvision's import asks for, where its own library does not load beside a CPU torch.

The Makefile puts this file into the test environment with a ``.pth`` line that imports it in every interpreter, so it
waits for the import of torchvision before it imports torch.
"""

import sys


class DeclareOperators:
    """The first to be asked where torchvision is; it does not know, but it has declared the operators then."""

    library = None

    def find_spec(self, name, path=None, target=None):
        if name == "torchvision" and self.library is None:
            import torch

            # kept alive: the operators vanish with it
            self.library = torch.library.Library("torchvision", "DEF")
            for operator in ("nms", "qnms"):
                self.library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


sys.meta_path.insert(0, DeclareOperators())
