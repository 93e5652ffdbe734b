"""A right backbone, and wrong ones that differ from it in one way each, with the check that must fail."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from regplug import BackboneEntry, FiLMSite, ImagePreprocess, NameLookupError, SpecError, TokenGroup, TokenLayout
from regplug.registry.references import reference_of

R, D = 3, 16
PATCHES = 4
IMAGE = (3, 8, 8)


class Block(nn.Module):
    """Attention and an MLP, with a norm before each; ``[B, T, D] -> [B, T, D]``."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.out(F.scaled_dot_product_attention(*self.qkv(self.norm1(tokens)).chunk(3, -1)))
        return tokens + self.mlp(self.norm2(tokens))


class Kernel(nn.Module):
    """A FiLM site: two layers of eight features."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(8, 8) for _ in range(2))


class Net(nn.Module):
    """``[CLS, REG x 3, patches]``, a final norm on all tokens, a head on the patches. Passes every check."""

    block: Any = Block

    def __init__(self, *, depth: int = 2, width: int = D) -> None:
        super().__init__()
        self.options = {"depth": depth, "width": width}
        self.patches = nn.Conv2d(3, width, 4, 4)
        self.cls_token = nn.Parameter(torch.randn(1, 1, width))
        self.reg_token = nn.Parameter(torch.randn(1, R, width))
        self.positions = nn.Parameter(torch.randn(1, PATCHES, width))
        self.blocks = nn.ModuleList(self.block(width) for _ in range(depth))
        self.kernel = Kernel()
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 10)

    def arrange(self, patches: Tensor) -> Tensor:
        count = len(patches)
        return torch.cat([self.cls_token.expand(count, -1, -1), self.reg_token.expand(count, -1, -1), patches], 1)

    def raw(self, images: Tensor) -> Tensor:
        tokens = self.arrange(self.patches(images).flatten(2).transpose(1, 2) + self.positions)
        for block in self.blocks:
            tokens = block(tokens)
        return tokens

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.norm(self.raw(images))[:, -PATCHES:].mean(1))


class Tokens(nn.Module):
    """Images -> tokens, with the model's norm or without."""

    def __init__(self, model: Any, normalized: bool) -> None:
        super().__init__()
        self.model, self.normalized = model, normalized
        self.input_shape = IMAGE

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.model.raw(images)
        return self.model.norm(tokens) if self.normalized else tokens


def build_of(net: Any) -> Any:
    """A ``build`` function for a network class, with one model: ``small``."""

    def build(name: str = "small", /, **options: Any) -> Any:
        if name != "small":
            raise NameLookupError(f"model {name!r}: not known.")
        if unknown := {*options} - {"depth", "width"}:
            raise SpecError(f"option {min(unknown)!r}: not known.")
        return net(**options)

    return build


def layout_of(model: Any) -> TokenLayout:
    return TokenLayout(R, int(model.reg_token.shape[-1]), start=1, normalized=True)


def entry_of(net: Any = Net, **fields: Any) -> BackboneEntry:
    """The entry of a network class; ``fields`` replace those of the right entry."""
    given: dict[str, Any] = {
        "build": build_of(net),
        "layout": layout_of,
        "film_sites": lambda model: [FiLMSite("kernel", features=8, num_layers=2)],
        "tokens": Tokens,
        "describe": lambda model: ("small", dict(model.options)),
        "preprocess": pictures((8, 8)),
        "classes": (reference_of(Net),),
        "readouts": ("mean", "compress-concat"),
        "default": "compress-concat",
        "options": {"compressed_dim": 4},
    }
    return BackboneEntry("acme-vit", **{**given, **fields})


def pictures(size: tuple[int, int], mean: Any = (0.5, 0.4, 0.3), std: Any = (0.2, 0.3, 0.4)) -> Any:
    """A preprocess function."""
    return lambda model: ImagePreprocess(size, mean, std)


def laid_out(**layout: Any) -> Any:
    """A layout function that differs from the right one in these fields."""
    return lambda model: replace(layout_of(model), **layout)


# ---- faults of the build


class OnTheCPU(Net):
    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.reg_token = nn.Parameter(torch.randn(1, R, D, device="cpu"))


class ComputesMuch(Net):
    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        torch.zeros(2**20, device="cpu")


class DeeperOnMeta(Net):
    def __init__(self, *, depth: int = 2, width: int = D) -> None:
        super().__init__(depth=depth + (torch.get_default_device().type == "meta"), width=width)


def swallows(name: str = "small", /, **options: Any) -> Net:
    if name != "small":
        raise NameLookupError(name)
    return Net(depth=options.get("depth", 2), width=options.get("width", D))


def takes_any_name(name: str = "small", /, **options: Any) -> Net:
    return build_of(Net)(**options)


def refuses_in_its_own_way(*arguments: Any, **options: Any) -> Net:
    return Net(*arguments, **options)


# ---- faults of the tokens


class Copies(Tokens):
    def __init__(self, model: Any, normalized: bool) -> None:
        import copy

        super().__init__(copy.deepcopy(model), normalized)


class Detaches(Tokens):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images).detach()


class DetachesRegisters(Tokens):
    def forward(self, images: Tensor) -> Tensor:
        kept = self.model.reg_token
        self.model._parameters["reg_token"] = kept.detach()
        try:
            return super().forward(images)
        finally:
            self.model._parameters["reg_token"] = kept


class LeavesAHook(Tokens):
    def __init__(self, model: Any, normalized: bool) -> None:
        super().__init__(model, normalized)
        model.norm.register_forward_hook(lambda *given: None)


class TakesTheHead(Tokens):
    def __init__(self, model: Any, normalized: bool) -> None:
        super().__init__(model, normalized)
        model.head = nn.Identity()


class TrainsAgain(Tokens):
    def __init__(self, model: Any, normalized: bool) -> None:
        super().__init__(model.train(), normalized)


class Scales(Tokens):
    def __init__(self, model: Any, normalized: bool) -> None:
        super().__init__(model, normalized)
        with torch.no_grad():
            model.head.weight.mul_(2)


class NamesTwice(Tokens):
    def __init__(self, model: Any, normalized: bool) -> None:
        super().__init__(model, normalized)
        self.norm = model.norm


class Replaces(Tokens):
    def __init__(self, model: Any, normalized: bool) -> None:
        super().__init__(model, normalized)
        model.head.forward = lambda tokens: tokens


class DropsOut(Tokens):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images * (1 + 1e-3 * torch.rand(())))


class LooksAtOthers(Tokens):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images - images.mean(0) * (len(images) > 1))


class PadsTheBatch(Tokens):
    def forward(self, images: Tensor) -> Tensor:
        tokens = super().forward(images)
        return F.pad(tokens, (0, 0, 0, 1)) if len(images) == 2 else tokens


class GivesLogits(Tokens):
    def forward(self, images: Tensor) -> Tensor:
        return self.model(images)


class SaysNoShape(Tokens):
    def __init__(self, model: Any, normalized: bool) -> None:
        super().__init__(model, normalized)
        del self.input_shape


class Narrow(Tokens):
    def forward(self, images: Tensor) -> Tensor:
        return F.pad(super().forward(images), (0, 1))


class IsNaN(Tokens):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images) / 0 * 0


class AlwaysNorms(Tokens):
    def __init__(self, model: Any, normalized: bool) -> None:
        super().__init__(model, True)


class NormsTheOtherWay(Tokens):
    def __init__(self, model: Any, normalized: bool) -> None:
        super().__init__(model, not normalized)


class NormsOtherwise(Tokens):
    def forward(self, images: Tensor) -> Tensor:
        return self.model.raw(images) * (2.0 if self.normalized else 1.0)


class NormsThePooled(Net):
    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.norm(self.raw(images)[:, -PATCHES:].mean(1)))


class ReadsEarly(Tokens):
    """Reads the tokens before the last block."""

    def forward(self, images: Tensor) -> Tensor:
        last = self.model.blocks[-1]
        handle = last.register_forward_hook(lambda module, given, output: given[0])
        try:
            return super().forward(images)
        finally:
            handle.remove()


class LeavesOutPositions(Tokens):
    def forward(self, images: Tensor) -> Tensor:
        kept = self.model.positions
        self.model._parameters["positions"] = nn.Parameter(torch.zeros_like(kept))
        try:
            return super().forward(images)
        finally:
            self.model._parameters["positions"] = kept


class OfAnySize(Tokens):
    """States an example of its input shape."""

    def __init__(self, model: Any, normalized: bool) -> None:
        super().__init__(model, normalized)
        del self.input_shape
        self.example_shape = IMAGE


class WithAnEpsilon(Net):
    """Right: it has an option that changes no shape."""

    def __init__(self, *, depth: int = 2, width: int = D) -> None:
        super().__init__(depth=depth, width=D)
        self.options["width"] = width
        for norm in self.modules():
            if isinstance(norm, nn.LayerNorm):
                norm.eps = width / D - 1 + 1e-5


# ---- positions of registers


class Suffix(Net):
    """Right: ``[patches, CLS, REG x 3]``."""

    def arrange(self, patches: Tensor) -> Tensor:
        return super().arrange(patches).roll(PATCHES, 1)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.norm(self.raw(images))[:, :PATCHES].mean(1))


class Interleaved(Net):
    """Right: ``[P, REG, P, REG, P, REG, P]``; its class token is not used."""

    def arrange(self, patches: Tensor) -> Tensor:
        registers = self.reg_token.expand(len(patches), -1, -1)
        both = [torch.stack([patches[:, i], registers[:, i]], 1) for i in range(R)]
        return torch.cat([*both, patches[:, R:]], 1)


class Backwards(Net):
    """Its registers are in another order than in the parameter."""

    def arrange(self, patches: Tensor) -> Tensor:
        tokens = super().arrange(patches)
        return torch.cat([tokens[:, :1], tokens[:, 1 : 1 + R].flip(1), tokens[:, 1 + R :]], 1)


class RollsAtTheEnd(Net):
    """Rolls tokens after the blocks, in a module that maps tokens to tokens of the same shape."""

    class Roll(nn.Module):
        def forward(self, tokens: Tensor) -> Tensor:
            return tokens.roll(1, 1)

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.blocks.append(self.Roll())


class ListOfRegisters(Net):
    """Right: a parameter for each register."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.registers = nn.ParameterList(torch.randn(D) for _ in range(R))

    def arrange(self, patches: Tensor) -> Tensor:
        tokens = super().arrange(patches)
        own = torch.stack([*self.registers]).expand(len(patches), -1, -1)
        return torch.cat([tokens[:, :1], own, tokens[:, 1 + R :]], 1)


class OnePrefix(Net):
    """Right: CLS and registers in one parameter, as in RADIO, with separate positions."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.cls_register_token = nn.Parameter(torch.randn(1 + R, D))
        self.prefix_positions = nn.Parameter(torch.randn(1 + R, D))

    def arrange(self, patches: Tensor) -> Tensor:
        prefix = self.cls_register_token + self.prefix_positions
        return torch.cat([prefix.expand(len(patches), -1, -1), patches], 1)


class Narrower(Net):
    """Right: registers of half the width, then a projection."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.narrow = nn.Parameter(torch.randn(R, D // 2))
        self.widen = nn.Linear(D // 2, D)

    def arrange(self, patches: Tensor) -> Tensor:
        tokens = super().arrange(patches)
        own = self.widen(self.narrow).expand(len(patches), -1, -1)
        return torch.cat([tokens[:, :1], own, tokens[:, 1 + R :]], 1)


class NormsBehind(Block):
    """A post-norm block, as in the first transformers; there is no norm before attention."""

    def forward(self, tokens: Tensor) -> Tensor:
        found = F.scaled_dot_product_attention(*self.qkv(tokens).chunk(3, -1))
        tokens = self.norm1(tokens + self.out(found))
        return self.norm2(tokens + self.mlp(tokens))


class Latents(Net):
    """Right: only registers, which attend to the patches."""

    class CrossAttention(Block):
        def forward(self, tokens: Tensor, patches: Tensor) -> Tensor:  # type: ignore[override]
            query, _, _ = self.qkv(self.norm1(tokens)).chunk(3, -1)
            _, key, value = self.qkv(self.norm1(patches)).chunk(3, -1)
            return tokens + self.out(F.scaled_dot_product_attention(query, key, value))

    block = CrossAttention

    def raw(self, images: Tensor) -> Tensor:
        patches = self.patches(images).flatten(2).transpose(1, 2) + self.positions
        tokens = self.reg_token.expand(len(images), -1, -1)
        for block in self.blocks:
            tokens = block(tokens, patches)
        return tokens

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.norm(self.raw(images)).mean(1))


class KeepsSizes(Net):
    """Right: its forward stores sizes and a table."""

    def raw(self, images: Tensor) -> Tensor:
        self.seen = tuple(images.shape)
        self.register_buffer("table", images.mean(), persistent=False)
        return super().raw(images)


class Half(Net):
    """Right: in bfloat16."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.to(torch.bfloat16)


class Prompted(Net):
    """Right: ``[CLS, PROMPT x 3, REG x 3, patches]``."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.prompts = nn.Parameter(torch.randn(1, R, self.options["width"]))

    def arrange(self, patches: Tensor) -> Tensor:
        tokens = super().arrange(patches)
        return torch.cat([tokens[:, :1], self.prompts.expand(len(patches), -1, -1), tokens[:, 1:]], 1)


class AnySize(Net):
    """Right: ``[patches, REG x 3]`` for images of any size."""

    def arrange(self, patches: Tensor) -> Tensor:
        return torch.cat([patches, self.reg_token.expand(len(patches), -1, -1)], 1)

    def raw(self, images: Tensor) -> Tensor:
        tokens = self.arrange(self.patches(images).flatten(2).transpose(1, 2) + self.positions.mean(1, keepdim=True))
        for block in self.blocks:
            tokens = block(tokens)
        return tokens


class PostNorm(Net):
    block = NormsBehind


class WrittenOut(Net):
    """Right: all code is in one forward; only norms and linear layers map tokens to tokens."""

    def raw(self, images: Tensor) -> Tensor:
        tokens = self.arrange(self.patches(images).flatten(2).transpose(1, 2) + self.positions)
        for one in self.blocks:
            found = F.scaled_dot_product_attention(*one.qkv(one.norm1(tokens)).chunk(3, -1))
            tokens = tokens + one.out(found)
            tokens = tokens + one.mlp[2](F.gelu(one.mlp[0](one.norm2(tokens))))
        return tokens


EVEN = {"start": None, "indices": (1, 3, 5), "num_tokens": R + PATCHES}
RIGHT = {
    "prefix": entry_of(),
    "suffix": entry_of(Suffix, layout=laid_out(start=-R)),
    "interleaved": entry_of(Interleaved, layout=laid_out(**EVEN)),
    "a parameter for each register": entry_of(ListOfRegisters),
    "one prefix": entry_of(OnePrefix),
    "narrower registers": entry_of(Narrower),
    "post-norm": entry_of(PostNorm),
    "written out": entry_of(WrittenOut),
    "prompts next to registers": entry_of(Prompted, layout=laid_out(start=1 + R)),
    "any size": entry_of(AnySize, tokens=OfAnySize, layout=laid_out(start=-R)),
    "an option without a shape": entry_of(WithAnEpsilon),
    "latents": entry_of(Latents, layout=laid_out(start=0)),
    "keeps sizes": entry_of(KeepsSizes),
    "half precision": entry_of(Half),
    "groups": entry_of(layout=laid_out(groups=(TokenGroup("cls", 0, 1), TokenGroup("patches", 1 + R)))),
    "groups of a suffix": entry_of(Suffix, layout=laid_out(start=-R, groups=(TokenGroup("patches", 0, -R - 1),))),
    "norms the pooled": entry_of(NormsThePooled, layout=laid_out(normalized=False)),
    "refuses in its own way": entry_of(build=refuses_in_its_own_way, describe=None),
}
# name -> the entry, the check that must fail, and words of its message
WRONG = {
    "one too early": (entry_of(layout=laid_out(start=0)), "marks", "class token model.cls_token among them"),
    "one too late": (entry_of(layout=laid_out(start=2)), "marks", "a token at 4 that depends on the input"),
    "one too few": (entry_of(layout=laid_out(num_registers=R - 1)), "marks", "reg_token[2] left out, which is at 3"),
    "one too few in front": (
        entry_of(layout=laid_out(num_registers=R - 1, start=2)), "marks", "reg_token[0] left out, which is at 1",
    ),
    "one too many": (entry_of(layout=laid_out(num_registers=R + 1)), "marks", "a token at 4 that depends on the input"),
    "the class token too": (entry_of(layout=laid_out(num_registers=R + 1, start=0)), "marks", "model.cls_token among"),
    "the class token alone": (
        entry_of(layout=laid_out(num_registers=1, start=0)), "marks", "the class token model.cls_token among them",
    ),
    "prefix for suffix": (entry_of(layout=laid_out(start=-R)), "marks", "a token at 5 that depends on the input"),
    "suffix for prefix": (entry_of(Suffix), "marks", "a token at 1 that depends on the input"),
    "suffix, one too early": (entry_of(Suffix, layout=laid_out(start=-R - 1)), "marks", "model.cls_token among them"),
    "together, though interleaved": (
        entry_of(Interleaved, layout=laid_out(start=1)), "marks", "a token at 2 that depends on the input",
    ),
    "interleaved, one off": (
        entry_of(Interleaved, layout=laid_out(**{**EVEN, "indices": (1, 3, 6)})), "marks", "a token at 6 that depends",
    ),
    "another order": (entry_of(Backwards), "marks", "them in another order than in model.reg_token"),
    "rolled behind the blocks": (entry_of(RollsAtTheEnd), "marks", "model.cls_token among them"),
    "one of a list left out": (
        entry_of(ListOfRegisters, layout=laid_out(num_registers=R - 1)), "marks", "model.registers.2 left out",
    ),
    "one prefix, one too early": (entry_of(OnePrefix, layout=laid_out(start=0)), "marks", "left out, which is at 3"),
    "prompts": (entry_of(Prompted), "marks", "model.prompts, while model.reg_token holds registers by its name"),
    "patches with a register": (
        entry_of(layout=laid_out(groups=(TokenGroup("patches", R),))), "groups", "than registers, got 3 in both",
    ),
    "patches without the first": (
        entry_of(layout=laid_out(groups=(TokenGroup("patches", R + 2),))), "groups", "on the input, 4-7, got 5-7",
    ),
    "patches with the class token": (
        entry_of(Suffix, layout=laid_out(start=-R, groups=(TokenGroup("patches", 0, -R),))), "groups", "0-3, got 0-4",
    ),
    "a patch for a class token": (
        entry_of(layout=laid_out(groups=(TokenGroup("cls", R + 1, R + 2),))), "groups", "rows of a parameter, got 4",
    ),
    "one token in two groups": (
        entry_of(layout=laid_out(groups=(TokenGroup("cls", 0, 1), TokenGroup("summary", 0, 1)))), "groups",
        "expected other tokens than cls, got 0 in both",
    ),
    "patches of one size alone": (
        entry_of(
            AnySize, tokens=OfAnySize, layout=laid_out(start=-R, groups=(TokenGroup("patches", 0, PATCHES),))
        ), "groups", "on the input, 0-15, got 0-3",
    ),
    "a group beyond the end": (
        entry_of(layout=laid_out(groups=(TokenGroup("padding", 50),))), "groups", "got none in 8 tokens",
    ),
    "from the front, of any size": (
        entry_of(AnySize, tokens=OfAnySize, layout=laid_out(start=PATCHES)), "marks", "a token at 4 that depends on",
    ),
    "an earlier block": (
        entry_of(NormsThePooled, tokens=ReadsEarly, layout=laid_out(normalized=False)),
        "own-forward", "got those that blocks.2 still takes",
    ),
    "without positions": (
        entry_of(NormsThePooled, tokens=LeavesOutPositions, layout=laid_out(normalized=False)),
        "own-forward", "no module of it takes or gives them",
    ),
    "another T": (entry_of(layout=laid_out(num_tokens=9)), "tokens", "expected 9 tokens, got 8"),
    "another D": (entry_of(tokens=Narrow), "tokens", "expected [2, T, 16], got [2, 8, 17]"),
    "logits": (entry_of(tokens=GivesLogits), "tokens", "expected floating-point numbers [B, T, D], got torch.float32"),
    "no shape": (entry_of(tokens=SaysNoShape), "tokens", "expected an attribute input_shape"),
    "NaN": (entry_of(tokens=IsNaN), "tokens", "expected finite numbers"),
    "says un-normalised": (entry_of(layout=laid_out(normalized=False)), "normalized", "expected True, because the"),
    "says normalised": (entry_of(NormsThePooled), "normalized", "forward does not apply norm to its registers, got"),
    "says neither": (entry_of(layout=laid_out(normalized=None)), "normalized", "expected True or False of a backbone"),
    "always normed": (entry_of(tokens=AlwaysNorms), "normalized", "got the same tokens"),
    "normed the other way": (entry_of(tokens=NormsTheOtherWay), "normalized", "got it with False"),
    "normed by something else": (entry_of(tokens=NormsOtherwise), "normalized", "no norm that gives one"),
    "others in the batch": (entry_of(tokens=LooksAtOthers), "batch", "tokens of 1 samples: expected outputs within"),
    "another T for two": (entry_of(tokens=PadsTheBatch), "batch", "[2, 8, 16], got torch.float32 [2, 9, 16]"),
    "random": (entry_of(tokens=DropsOut), "deterministic", "expected the same bits"),
    "a copy": (entry_of(tokens=Copies), "shared-weights", "expected the model's own parameter, got another"),
    "two names": (entry_of(tokens=NamesTwice), "shared-weights", "norm.weight: expected one name for each weight"),
    "no gradients": (entry_of(tokens=Detaches), "shared-weights", "got tokens without any"),
    "no gradients for registers": (entry_of(tokens=DetachesRegisters), "shared-weights", "reg_token, got none"),
    "a hook": (entry_of(tokens=LeavesAHook), "untouched", "other hooks: norm"),
    "no head": (entry_of(tokens=TakesTheHead), "untouched", "other modules: head"),
    "another mode": (entry_of(tokens=TrainsAgain), "untouched", "other modes: blocks, blocks.0, blocks.0.mlp"),
    "other weights": (entry_of(tokens=Scales), "untouched", "other weights: head.weight"),
    "another forward": (entry_of(tokens=Replaces), "untouched", "asked for, got other settings: head.forward"),
    "on the CPU": (entry_of(OnTheCPU), "meta", "expected reg_token there, got it on cpu"),
    "much on the CPU": (entry_of(ComputesMuch), "meta", "got 4 MiB of them"),
    "deeper on meta": (entry_of(DeeperOnMeta, describe=None), "meta", "is not among them"),
    "describes no options": (entry_of(describe=lambda model: ("small", {})), "describe", "is missing"),
    "describes no option without a shape": (
        entry_of(lambda **options: WithAnEpsilon(**{"width": 2 * D, **options}),
                 describe=lambda model: ("small", {**model.options, "width": D})),
        "describe", "with the model's weights: tokens: expected outputs within",
    ),
    "describes a path": (entry_of(describe=lambda model: ("/tmp/small", {})), "describe", "a name without '/'"),
    "describes a class": (entry_of(describe=lambda model: ("small", {"depth": int})), "describe", "a JSON value"),
    "swallows options": (entry_of(build=swallows), "refusals", "option no_such_name=1: expected a refusal"),
    "takes any name": (entry_of(build=takes_any_name), "refusals", "model 'no-such-name': expected a refusal"),
    "another's class": (entry_of(classes=("torch.nn:Linear",)), "recognised", "model Net: has no registers"),
    "unknown strategy": (entry_of(readouts=("compress-concat", "meen")), "strategies", "strategy 'meen': not"),
    "option missing": (entry_of(options={}), "strategies", "compressed_dim"),
    "no such site": (
        entry_of(film_sites=lambda model: [FiLMSite("kernels", 8, 2)]), "film-sites", "expected a module of Net",
    ),
    "site twice": (entry_of(film_sites=lambda model: 2 * [FiLMSite("kernel", 8, 2)]), "film-sites", "got it twice"),
    "other features": (entry_of(film_sites=lambda model: [FiLMSite("kernel", 9, 2)]), "film-sites", "of 9 features"),
    "more layers": (entry_of(film_sites=lambda model: [FiLMSite("kernel", 8, 3)]), "film-sites", "expected 3 layers"),
    "pictures of another size": (
        entry_of(preprocess=pictures((12, 12))), "preprocess", "inputs that the model takes, got [3, 12, 12]: ",
    ),
    "grey pictures": (entry_of(preprocess=pictures((8, 8), (0.5,), (0.2,))), "preprocess", "takes, got [1, 8, 8]: "),
    "pictures divided by nothing": (
        entry_of(preprocess=pictures((8, 8), std=(1e-50,) * 3)), "preprocess", "a picture RGB 40x30: expected finite",
    ),
    "no way to read pictures": (
        entry_of(preprocess=lambda model: {"size": 8}), "preprocess", "expected ImagePreprocess, got dict",
    ),
    "no layers": (entry_of(film_sites=lambda model: [FiLMSite("kernel", 8, 0)]), "film-sites", "a positive integer"),
}  # fmt: skip
