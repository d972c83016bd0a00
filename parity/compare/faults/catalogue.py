"""The catalogue: single mistakes that people make when they write or port such a program, plantable in either
backend."""

from parity.compare.faults.data import DATA, INIT
from parity.compare.faults.forward import FORWARD, GRADIENTS, LOSS
from parity.compare.faults.plant import Fault
from parity.compare.faults.record_40 import OF_RECORD_40
from parity.compare.faults.record_58 import OF_RECORD_58
from parity.compare.faults.records import NARROW, OF_8_BITS, OF_RECORDS
from parity.compare.faults.training import LAYOUT, RUNS, UPDATE
from parity.errors import InputError, nearest

OF_ALL_RECORDS = (*OF_RECORDS, *OF_8_BITS, *OF_RECORD_40, *OF_RECORD_58)
FAULTS = {
    fault.name: fault for fault in (*DATA, *INIT, *FORWARD, *LOSS, *GRADIENTS, *UPDATE, *RUNS, *LAYOUT, *OF_ALL_RECORDS)
}
LOW_PRECISION_FAULTS = {fault.name: fault for fault in NARROW}
"""What only a comparison in low precision can see."""


def fault_for(name: str) -> Fault:
    """The fault of a name; InputError with the nearest where there is none."""
    known = FAULTS | LOW_PRECISION_FAULTS
    if name not in known:
        raise InputError(f"unknown fault {name!r}; {nearest(name, known)}")
    return known[name]
