"""The list of the public names of ``regplug``; type checkers read it, and so does the package."""

from regplug.bundle.export import export as export
from regplug.bundle.load import load as load
from regplug.bundle.sign import sign as sign
from regplug.bundle.verify import verify as verify
from regplug.commands.audit.network import audit_network as audit_network
from regplug.commands.effect.report import EffectReport as EffectReport
from regplug.commands.effect.run import effect as effect
from regplug.commands.rank.api import rank as rank
from regplug.commands.rank.reading.samples import Samples as Samples
from regplug.commands.rank.reading.tokens import read_samples as read_samples
from regplug.commands.rank.statistics import Comparison as Comparison
from regplug.commands.rank.statistics import Difference as Difference
from regplug.commands.rank.statistics import compare_scores as compare_scores
from regplug.commands.run.mapper import BundleMapper as BundleMapper
from regplug.errors import BundleError as BundleError
from regplug.errors import ConformanceError as ConformanceError
from regplug.errors import ExportError as ExportError
from regplug.errors import NameLookupError as NameLookupError
from regplug.errors import PluginError as PluginError
from regplug.errors import RegplugError as RegplugError
from regplug.errors import ShapeError as ShapeError
from regplug.errors import SpecError as SpecError
from regplug.format.read_bundle import read_bundle as read_bundle
from regplug.nn.attach import attach as attach
from regplug.nn.backbone import layout_of as layout_of
from regplug.nn.backbone import measure_backbone as measure_backbone
from regplug.nn.conditioner import Conditioner as Conditioner
from regplug.nn.film import KernelFiLMGenerator as KernelFiLMGenerator
from regplug.nn.join import Join as Join
from regplug.nn.join import join as join
from regplug.nn.pairing import pair as pair
from regplug.nn.select import SelectRegisters as SelectRegisters
from regplug.nn.tokens import read_registers as read_registers
from regplug.nn.weight_decay import param_groups as param_groups
from regplug.registry.default import backbones as backbones
from regplug.registry.default import create as create
from regplug.registry.default import default_registry as default_registry
from regplug.registry.default import resolve as resolve
from regplug.registry.default import strategies as strategies
from regplug.registry.description import StrategyDescription as StrategyDescription
from regplug.registry.description import describe as describe
from regplug.registry.entries import BackboneEntry as BackboneEntry
from regplug.registry.entries import CheckpointSite as CheckpointSite
from regplug.registry.entries import ExportBackendEntry as ExportBackendEntry
from regplug.registry.entries import FiLMEntry as FiLMEntry
from regplug.registry.entries import FiLMSite as FiLMSite
from regplug.registry.entries import ReadoutEntry as ReadoutEntry
from regplug.registry.hookspecs import hookimpl as hookimpl
from regplug.registry.image_preprocess import ImagePreprocess as ImagePreprocess
from regplug.registry.layout import TokenGroup as TokenGroup
from regplug.registry.layout import TokenLayout as TokenLayout
from regplug.registry.registry import Registry as Registry
from regplug.registry.spec import ReadoutSpec as ReadoutSpec

__version__: str
__all__: list[str]
