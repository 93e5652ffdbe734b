"""``BundleMapper``: adds a bundle's outputs to batches, in any data pipeline. Imports torch when it is first called."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from regplug.errors import SpecError, class_name, closest, shorten
from regplug.format.manifest import IMAGES
from regplug.format.read_bundle import BundleFiles, read_bundle
from regplug.registry.layout import REGISTERS, TOKENS, TokenLayout
from regplug.registry.readout_inputs import MASK

if TYPE_CHECKING:
    from torch import Tensor

OTHER_NAMES = {IMAGES: ("image", "img"), REGISTERS: (TOKENS,)}  # columns that data sets call an input by


class BundleMapper:
    """A bundle as a function of batches: each call returns the batch with the bundle's outputs as new columns.

    Ray, Dask, Spark or a pool of processes pickle it for their workers, and each process opens the bundle once. A batch
    is a mapping of NumPy arrays or tensors, an Arrow table or record batch, or a pandas data frame; the answer is of
    the same kind.

    Args:
        bundle: The bundle's folder, which every worker must have at this path; or what ``regplug.read_bundle``
            returned, which is pickled with all its bytes.
        digest: The digest that the bundle must have. Workers accept only the bundle that was found here.
        program: The export backend of the program that runs; None for the installed module.
        columns: The column of each input, where it is not the input's name.
        layout: Where the registers are, if the column holds all tokens ``[n, T, D]``; for a column ``tokens`` it is by
            default what the bundle says.
        cast: Round values to the input's dtype; otherwise only exact conversions are made.
        preprocess: For encoded images, ``MODULE:FUNCTION`` from a Pillow image to an input; None for the
            backbone's own.

    Raises:
        BundleError: The bundle is damaged, or not the one with this digest.
        SpecError: ``columns`` names an input that the bundle does not have.

    Example:
        mapper = BundleMapper("bundle/")
        vectors = mapper({"registers": numpy.zeros((2, 4, 384), "float32")})["conditioning"]  # [2, cond_dim]
    """

    def __init__(
        self,
        bundle: str | os.PathLike[str] | BundleFiles,
        *,
        digest: str | None = None,
        program: str | None = None,
        columns: Mapping[str, str] | None = None,
        layout: TokenLayout | None = None,
        cast: bool = False,
        preprocess: str | None = None,
    ) -> None:
        self.program = program
        self._columns = dict(columns or {})
        self._layout = layout
        self._cast = cast
        self._preprocess = preprocess
        if isinstance(bundle, BundleFiles):
            self._path = None
            self._files: BundleFiles | None = bundle
            if digest is not None and digest.lower() != bundle.digest:
                raise SpecError(f"bundle {bundle.path}: expected the digest {digest}, got {bundle.digest}.")
        elif not isinstance(bundle, str | os.PathLike):
            raise SpecError(
                f"bundle: expected a folder, or what regplug.read_bundle returned, got {class_name(bundle)}."
            )
        else:
            self._path = str(Path(bundle).absolute())
            self._files = read_files(self._path, digest=digest, program=program)
        self.digest = self._files.digest
        self.manifest = self._files.manifest
        self._check()

    def _check(self) -> None:
        """Refuse choices that this bundle does not have."""
        owner, manifest, files = f"bundle {self._bundle().path}", self.manifest, self._bundle()
        for name in self._columns:
            if name not in manifest.input_names:
                raise SpecError(f"input {name!r}: not an input of the bundle{closest(name, manifest.input_names)}.")
        if self._layout is not None and (manifest.holds != "readout" or manifest.backbone is not None):
            raise SpecError(f"layout: expected none, as {owner} finds the registers itself, got one.")
        if self._preprocess is not None and manifest.input.name != IMAGES:
            raise SpecError(f"preprocess: expected none, as {owner} takes {manifest.input.name}, got one.")
        if self.program is not None:
            backend = self.program.rpartition(":")[2]
            records = [one for one in manifest.programs if one.backend == backend]
            if not records:
                known = closest(backend, sorted({one.backend for one in manifest.programs}))
                raise SpecError(f"program {self.program!r}: not in {owner}{known}.")
            if not all(one.file in files.files for one in records):
                raise SpecError(
                    f"program {self.program!r}: expected its files, got a bundle that was read without; "
                    "use regplug.read_bundle(path, keep=lambda program: True)."
                )

    def __call__(self, batch: Any) -> Any:
        """The batch with the outputs: ``conditioning`` ``[n, cond_dim]``, or ``gamma_0``, ``beta_0`` and so on.

        Raises:
            SpecError: A column is missing, has another shape or dtype, or has NaN or infinite values.
        """
        from regplug.commands.run.batches import add_columns, columns_of

        return add_columns(batch, self.outputs(columns_of(batch)))

    def outputs(self, columns: Mapping[str, Any], first: int = 0) -> dict[str, Tensor]:
        """The outputs alone, as tensors by name.

        Args:
            columns: A column for each input, and any others: Arrow arrays, NumPy arrays or tensors.
            first: The row of the first sample, for messages.
        """
        from regplug.commands.run.opened import opened, run_columns
        from regplug.commands.run.reading import Reading

        names = self.input_columns(list(columns))
        reading = Reading(names, self._layout_for(names), self._cast, self._preprocess)
        return run_columns(opened(self._bundle(), self.program), self.manifest, reading, columns, first)

    def input_columns(self, names: Sequence[str]) -> dict[str, str]:
        """Which of some columns is which input; without a mask's, lists of tokens say which are padding.

        Raises:
            SpecError: There is none for an input.
        """
        wanted = self.manifest.input_names
        if MASK not in self._columns and MASK not in names and self.manifest.input.min_tokens is not None:
            wanted = tuple(one for one in wanted if one != MASK)  # of lists of tokens, it is their lengths
        return {one: self._column(one, names) for one in wanted}

    def choices(self) -> dict[str, Any]:
        """How columns become inputs, as JSON values."""
        return {
            "columns": self._columns,
            "layout": None if self._layout is None else str(self._layout),
            "cast": self._cast,
            "preprocess": self._preprocess,
        }

    def _column(self, name: str, names: Sequence[str]) -> str:
        wanted = [self._columns[name]] if name in self._columns else [name, *OTHER_NAMES.get(name, ())]
        found = next((one for one in wanted if one in names), None)
        if found is None:
            hint = "" if name in self._columns else f"; say which, with --column {name}=COLUMN or columns="
            raise SpecError(
                f"input {name!r}: expected a column {' or '.join(map(repr, wanted))}, got {shorten(list(names))}{hint}."
            )
        return found

    def _layout_for(self, columns: Mapping[str, str]) -> TokenLayout | None:
        """Where the registers are, if their column holds all tokens."""
        if self._layout is not None or columns.get(REGISTERS) != TOKENS:
            return self._layout
        layout = self.manifest.token_layout
        if layout is None:
            raise SpecError(
                f"column {TOKENS!r}: expected a layout that says which tokens are registers, got none, as the "
                "bundle has none; use --layout, or layout=."
            )
        return layout

    def _bundle(self) -> BundleFiles:
        if self._files is None:
            self._files = read_files(str(self._path), digest=self.digest, program=self.program)
        return self._files

    def __getstate__(self) -> dict[str, Any]:
        state = dict(vars(self))
        if self._path is not None:
            state["_files"] = None  # read again where it is used; the digest pins it
        return state


def read_files(
    bundle: str | os.PathLike[str], *, digest: str | None = None, program: str | None = None, follow_links: bool = False
) -> BundleFiles:
    """The bundle with the files that a program needs, or the module; raises as ``read_bundle`` does."""
    name = program and program.rpartition(":")[2]  # `program` may be distribution:name
    return read_bundle(bundle, digest=digest, follow_links=follow_links, keep=lambda one: one.backend == name)
