"""What runs in int8, what does not and why, and where the time goes."""

from deploy.audit.found import Audit, AuditedLayer, Times
from deploy.audit.look import audit
from deploy.audit.text import table

__all__ = ["Audit", "AuditedLayer", "Times", "audit", "table"]
