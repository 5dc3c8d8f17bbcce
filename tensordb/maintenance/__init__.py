"""Looking after a database: verify every byte, repair what is damaged, reclaim what is dead."""

from tensordb.maintenance.accessor import Maintenance, ReclaimReport
from tensordb.maintenance.judging import Unreadable
from tensordb.maintenance.reports import DamagedRecord, DamagedTensor, DamagedWeight, RepairReport, VerifyReport

__all__ = [
    "DamagedRecord",
    "DamagedTensor",
    "DamagedWeight",
    "Maintenance",
    "ReclaimReport",
    "RepairReport",
    "Unreadable",
    "VerifyReport",
]
