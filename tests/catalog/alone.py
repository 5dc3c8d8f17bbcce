"""Programs that use the lease and nothing above it: they begin in a tenth of the time that the whole package takes."""

from pathlib import Path

import tensordb

LEASE_ALONE = f"""
import sys, types
package = types.ModuleType("tensordb")
package.__path__ = [{str(Path(tensordb.__file__).parent)!r}]
sys.modules["tensordb"] = package
"""
"""The beginning of a program: after it `tensordb.catalog.lease` is imported as usual, but nothing that needs torch."""
