"""Look for packages of this environment with known vulnerabilities: ``make audit``. Exits with 1 when there are some.

pip-audit by itself ends alike when it found some and when it reached nobody, and is content when the index answered
but knew none of the packages, as mirrors do. Here, what was not audited is said, and only what was found fails.
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
    """Audit; what came out is printed."""
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
