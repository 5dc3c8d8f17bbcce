"""The attacks on the storage engine in their long form, and a table of what it withstood.

    python -m tests.proof                               every attack, ten minutes in all
    python -m tests.proof --minutes 300 kill model      these two, five hours in all
    python -m tests.proof --seed 7 model                what failed once, again

The time is shared out evenly; that of ``fuzz`` among the fuzzers of container, catalog and importers. A failure is
printed with the seed that repeats it, the other attacks go on, and the command ends with 1. To be run from the root of
the repository, with the extra ``test`` installed. The suite runs each attack in a short form: `tests/stateful`,
`tests/faults`, `tests/hostile`.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
import traceback

import torch

from tests.proof.attacks import ATTACKS


def main(arguments: list[str] | None = None) -> int:
    """Run the attacks that are asked for, and print a table; 1 if one of them found something."""
    parser = argparse.ArgumentParser(prog="python -m tests.proof", description="Attack the engine, and count.")
    parser.add_argument("kinds", nargs="*", metavar="kind", help=f"any of: {', '.join(ATTACKS)} (default: all)")
    parser.add_argument("--minutes", type=float, default=10, help="for all of them together (default: 10)")
    parser.add_argument("--seed", type=int, help="where to begin (default: drawn, and printed)")
    chosen = parser.parse_args(arguments)
    if unknown := [kind for kind in chosen.kinds if kind not in ATTACKS]:
        parser.error(f"no attack is named {unknown[0]!r}; there are: {', '.join(ATTACKS)}")
    seed = random.SystemRandom().randrange(2**20) if chosen.seed is None else chosen.seed
    kinds = chosen.kinds or list(ATTACKS)
    print(f"seed {seed}, {chosen.minutes / len(kinds):.3g} minutes each", flush=True)
    failed = [kind for kind in kinds if not _attack(kind, chosen.minutes * 60 / len(kinds), seed)]
    print(f"broken by: {', '.join(failed)}" if failed else "nothing was broken")
    return 1 if failed else 0


def _attack(kind: str, seconds: float, seed: int) -> bool:
    begun = time.monotonic()
    try:
        figures = ATTACKS[kind](seconds, seed)
    except Exception:
        traceback.print_exc(file=sys.stdout)
        print(f"{kind:<8}FAILED after {time.monotonic() - begun:.0f} s; seed {seed}", flush=True)
        return False
    shown = {**figures, "seconds": round(time.monotonic() - begun)}
    for position, (name, value) in enumerate(shown.items()):
        print(f"{kind if position == 0 else '':<8}{name:<32}{value:>14,}", flush=True)
    return True


if __name__ == "__main__":
    torch.set_num_threads(1)
    sys.exit(main())
