"""`regplug audit`: does the width of the conditioning at each FiLM input follow the network's sizes?"""

from regplug.commands.audit.network import Audit, audit_network
from regplug.commands.audit.runs import Refusal
from regplug.commands.audit.verdict import FiLMInputFinding

__all__ = ["Audit", "FiLMInputFinding", "Refusal", "audit_network"]
