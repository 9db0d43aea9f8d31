"""What the recorded runs of the authors' code say of ours, as a table of families.

Knows what `support.golden` has compared in this process; `make parity` prints it.
"""

from collections import defaultdict

from support.golden import FOLDER, PARITY, Family


def parity_lines() -> list[str]:
    """A row per family: cases compared of those recorded, and the worst in units of tolerance."""
    of_family: dict[str, dict[str, float]] = defaultdict(dict)
    for (family, case), excess in PARITY.items():
        of_family[family][case] = excess
    lines = [f"{'family':<16} {'cases':>9}  {'worst, in tolerances':<22} of"]
    for path in sorted(FOLDER.glob("*.json")):
        recorded = len(Family(path.stem).case_names())
        compared = of_family.get(path.stem, {})
        if not compared:
            lines.append(f"{path.stem:<16} {f'0/{recorded}':>9}")
            continue
        case = max(compared, key=lambda name: compared[name])
        counted = f"{len(compared)}/{recorded}"
        lines.append(f"{path.stem:<16} {counted:>9}  {compared[case]:<22.3g} {case}")
    worst = max(PARITY.values(), default=0.0)
    return [*lines, f"{len(PARITY)} cases, worst {worst:.3g}"]
