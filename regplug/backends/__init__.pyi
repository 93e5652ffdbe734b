"""The list of the public names of ``regplug.backends``; type checkers read it, and so does the package."""

from regplug.backends.graph import WeightsAsInputs as WeightsAsInputs
from regplug.backends.graph import call_site as call_site
from regplug.backends.graph import export_graph as export_graph
from regplug.backends.interface import ExportBackend as ExportBackend
from regplug.backends.interface import Program as Program
from regplug.backends.interface import Run as Run
from regplug.backends.interface import Source as Source
from regplug.backends.interface import arguments_of as arguments_of
from regplug.backends.interface import call_flat as call_flat
from regplug.backends.interface import flatten as flatten
from regplug.backends.program_weights import check_weights as check_weights
from regplug.backends.program_weights import weights_property as weights_property
from regplug.backends.reuse import reused as reused
from regplug.errors import one_line as one_line
from regplug.format.manifest import WEIGHTS as WEIGHTS
from regplug.format.manifest import InputSpec as InputSpec
from regplug.format.manifest import MoreInput as MoreInput
from regplug.format.manifest import TensorSpec as TensorSpec
from regplug.format.safetensors_header import StoredTensor as StoredTensor

__all__: list[str]
