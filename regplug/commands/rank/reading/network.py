"""The backbone whose tokens are read: what determines its tokens, and building it when it is needed."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from regplug.commands.rank.reading.model_weights import digest_of_model, digest_of_weights_file, load_weights
from regplug.commands.rank.reading.preprocess import Pipeline, own_pipeline, published_pipeline
from regplug.commands.rank.reading.source import stamp_of_files
from regplug.errors import RegplugError, SpecError, class_name, is_out_of_memory, one_line
from regplug.nn.backbone import (
    ask_layout,
    ask_preprocess,
    build_backbone,
    inside,
    measure_backbone,
    named_backbone,
    recognise,
)
from regplug.nn.image_input import as_inputs
from regplug.nn.tokens import tokens_of
from regplug.registry.entries import BackboneEntry
from regplug.registry.layout import TokenLayout
from regplug.registry.references import reference_of
from regplug.registry.registry import Registry

SEED = 0  # of random weights: a second run has the same tokens
RANDOM = "random"


@dataclass(frozen=True)
class Network:
    """A backbone, chosen but not built.

    Args:
        entry: Its entry.
        model: Which of its models; None for its default.
        options: Options for building the model.
        instance: The user's own model, or None.
        weights: The file with the whole model's weights, or None.
        weights_digest: ``"random"``, or the sha256 of the file or of the instance's weights.
        normalized: Whether the final norm is applied; None for as the model does.
        own: The user's preprocessing, or None.
    """

    entry: BackboneEntry
    model: str | None
    options: Mapping[str, Any]
    instance: nn.Module | None
    weights: str | None
    weights_digest: str
    normalized: bool | None
    own: Pipeline | None

    def check_pictures(self) -> None:
        """Refuse image files if nobody says how they become inputs.

        Raises:
            SpecError: The backbone's plugin does not say it, and the user does not.
        """
        if self.own is None and self.entry.preprocess is None:
            raise self._unknown_preprocessing()

    def _unknown_preprocessing(self) -> SpecError:
        return SpecError(
            f"backbone {self.entry.name!r}: expected a backbone that says how image files become its input, got none; "
            "use --preprocess MODULE:FUNCTION, a function from a Pillow image to a tensor [C, H, W]."
        )

    def determined_by(self, pictures: bool) -> dict[str, Any]:
        """What the tokens depend on, as JSON values; nothing is built for it."""
        references = [self.entry.build, *self.entry.classes]
        packages = {reference_of(one).partition(":")[0].partition(".")[0] for one in references}
        published = None if self.entry.preprocess is None else reference_of(self.entry.preprocess)
        preprocessing = self.own.text if self.own else published
        return {
            "backbone": self.entry.full_name,
            "version": self.entry.provenance.version if self.entry.provenance else None,
            "packages": {name: _version(name) for name in sorted(packages)},
            "model": self.model,
            "model_files": _stamp_of_model(self.model),
            "options": {name: repr(value) for name, value in sorted(self.options.items())},
            "weights": self.weights_digest if self.weights_digest != RANDOM else f"{RANDOM}, seed {SEED}",
            "normalized": self.normalized,
            "preprocessing": preprocessing if pictures else None,
            "dtype": "float32",
        }

    def facts(self) -> dict[str, Any]:
        """What a report says of it."""
        return {
            "backbone": self.entry.full_name,
            "model": self.model,
            "model_options": {name: _json_of(value) for name, value in self.options.items()},
            "weights": self.weights_digest,
            "weights_file": self.weights,
        }

    def layout(self) -> TokenLayout:
        """Where its registers are; a model that has no instance is built on the meta device.

        Raises:
            RegplugError: The model has no registers, or its plugin fails.
        """
        if self.instance is not None:
            return ask_layout(self.entry, inside(self.instance))
        return measure_backbone(self.entry, self.model, **self.options).layout

    def build(self, pictures: bool) -> BuiltNetwork:
        """Build it, with its weights, in eval mode.

        Raises:
            RegplugError: It has no registers, cannot be built, or the weights are not its own.
        """
        model = self.instance if self.instance is not None else self._made()
        model = inside(model)
        module, layout = tokens_of(self.entry, model, self.normalized)
        pipeline = None
        if pictures:
            published = None if self.own else ask_preprocess(self.entry, model)
            if self.own is None and published is None:
                raise self._unknown_preprocessing()
            pipeline = self.own if published is None else published_pipeline(published)
        return BuiltNetwork(self.entry.name, module, layout, pipeline)

    def _made(self) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(SEED)
            model: nn.Module = build_backbone(self.entry, self.model, **self.options)
        if self.weights is not None:
            load_weights(model, self.weights)
        return model


@dataclass(frozen=True)
class BuiltNetwork:
    """A backbone that was built.

    Args:
        name: Its name in messages.
        module: From inputs to tokens.
        layout: Where the registers are in the tokens.
        pipeline: From image files to inputs, or None.
    """

    name: str
    module: nn.Module
    layout: TokenLayout
    pipeline: Pipeline | None

    def tokens(self, inputs: Tensor) -> Tensor:
        """The tokens ``[B, T, D]`` of inputs, in eval mode and without gradients.

        Raises:
            SpecError: The model does not take these inputs.
        """
        modes = {part: part.training for part in self.module.modules()}
        try:
            with torch.inference_mode():
                found = self.module.eval()(as_inputs(inputs, self.module))
        except RegplugError:
            raise
        except Exception as error:  # a model may raise anything for inputs of another size
            if is_out_of_memory(error):
                raise SpecError(
                    f"backbone {self.name!r}: expected memory for {len(inputs)} inputs at a time, got none; "
                    "use a smaller batch."
                ) from error
            raise SpecError(
                f"backbone {self.name!r}: expected inputs that it takes, got {list(inputs.shape)}: "
                f"{class_name(error)}: {one_line(error)}"
            ) from error
        finally:
            for part, mode in modes.items():
                part.training = mode
        if not (isinstance(found, Tensor) and found.ndim == 3):
            raise SpecError(f"backbone {self.name!r}: expected tokens [B, T, D], got {class_name(found)}.")
        return found


def choose_network(
    backbone: str | nn.Module,
    *,
    model_options: Mapping[str, Any] | None = None,
    weights: str | os.PathLike[str] | None = None,
    normalized: bool | None = None,
    preprocess: str | Callable[..., Any] | None = None,
    registry: Registry | None = None,
) -> Network:
    """The backbone that a user chose; it is not built.

    Raises:
        NameLookupError: No plugin knows the name or the model.
        SpecError: The weights cannot be read, the preprocessing cannot be imported, or an instance comes with options
            or weights.
    """
    own = None if preprocess is None else own_pipeline(preprocess)
    options = dict(model_options or {})
    if isinstance(backbone, str):
        entry, model = named_backbone(backbone, registry)
        file = None if weights is None else os.fspath(weights)
        digest = RANDOM if file is None else digest_of_weights_file(file)
        return Network(entry, model, options, None, file, digest, normalized, own)
    if options or weights is not None:
        raise SpecError(
            f"model {type(backbone).__name__}: expected neither options nor weights with an instance, got some; "
            "build it and load its weights yourself, or give its name."
        )
    entry = recognise(backbone, None, registry)
    name = reference_of(type(inside(backbone)))
    return Network(entry, name, {}, backbone, None, digest_of_model(backbone), normalized, own)


def _version(package: str) -> str | None:
    with suppress(metadata.PackageNotFoundError, ValueError):
        return metadata.version(package)
    return None


def _stamp_of_model(model: str | None) -> str | None:
    """What changes if the files change, where a model's name is a folder."""
    folder = None if model is None else Path(model)
    if folder is None or not folder.is_dir():
        return None
    return stamp_of_files(folder, sorted(one for one in folder.iterdir() if one.is_file()))


def _json_of(value: Any) -> Any:
    return value if isinstance(value, (str, int, float, bool, type(None), list, dict)) else repr(value)
