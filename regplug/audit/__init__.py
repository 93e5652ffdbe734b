"""Audits a network: does the width of what reaches each FiLM input follow the network's sizes?"""

from regplug.audit.network import Audit, Refusal, audit_network
from regplug.audit.verdict import Finding

__all__ = ["Audit", "Finding", "Refusal", "audit_network"]
