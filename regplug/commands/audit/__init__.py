"""Audits a network: does the width of what reaches each FiLM input follow the network's sizes?"""

from regplug.commands.audit.network import Audit, Refusal, audit_network
from regplug.commands.audit.verdict import Finding

__all__ = ["Audit", "Finding", "Refusal", "audit_network"]
