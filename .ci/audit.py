"""Find packages of this environment with known vulnerabilities: ``make audit``. Exits with 1 if there are any.

pip-audit returns the same exit code for a vulnerability and for a service that cannot be reached. It also succeeds
if the index answers but knows none of the packages, as mirrors do. This script names the packages that were not
audited, and fails only for vulnerabilities.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from typing import Any

SECONDS = 120
COMMAND = [
    *(sys.executable, "-m", "pip_audit", "--local", "--skip-editable"),
    *("--format=json", "--progress-spinner=off", "--timeout=10"),
]
UNREACHABLE = re.compile(r"requests\.exceptions|ConnectionError|ServiceError|vulnerability feed")


def main() -> int:
    """Audit and print the findings."""
    try:
        run = subprocess.run(COMMAND, capture_output=True, text=True, timeout=SECONDS, check=False)
    except subprocess.TimeoutExpired:
        print(f"audit skipped: no answer within {SECONDS} s")
        return 0
    try:
        packages: list[dict[str, Any]] = json.loads(run.stdout)["dependencies"]
    except ValueError:
        if not UNREACHABLE.search(run.stderr):
            print(run.stderr, file=sys.stderr)
            return run.returncode or 1
        why = run.stderr.strip().splitlines()[-1]
        print(f"audit skipped: the vulnerability service cannot be reached ({why[:200]})")
        return 0
    audited = [package for package in packages if "vulns" in package]
    if not audited:
        print(f"audit skipped: the vulnerability service knows none of the {len(packages)} packages")
        return 0
    found = [(package, vulnerability) for package in audited for vulnerability in package["vulns"]]
    for package, vulnerability in found:
        fixed = ", ".join(vulnerability["fix_versions"]) or "no version yet"
        print(f"{package['name']} {package['version']}: {vulnerability['id']}, fixed in {fixed}")
    print(f"audited {len(audited)} of {len(packages)} packages: {len(found)} known vulnerabilities")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
