"""Import this before timm or transformers: torchvision is built for another torch here, and lacks these operators."""

import torch

if not hasattr(torch.ops.torchvision, "nms"):
    LIBRARY = torch.library.Library("torchvision", "DEF")  # kept alive: they vanish with it
    for name in ("nms", "qnms"):
        LIBRARY.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
