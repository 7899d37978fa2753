"""Check the installed packages for known vulnerabilities with pip-audit, and report packages without an audit.

    python install/audit.py [--strict]

The exit status is 1 if there is a vulnerability that is not listed below. With --strict it is also 1 if packages were
not audited.
"""

import json
import subprocess
import sys

# Vulnerabilities that do not affect this project, with the reason. Remove an entry when its fix is released.
ACCEPTED: dict[str, str] = {}

# Packages that no database can know.
OWN_PACKAGES = ("onlyseen",)


def main(arguments: list[str]) -> int:
    """Run the audit and return the exit status."""
    command = [sys.executable, "-m", "pip_audit", "--progress-spinner", "off", "--format", "json"]
    completed = subprocess.run(command, capture_output=True, text=True)
    try:
        packages = json.loads(completed.stdout)["dependencies"]
    except (ValueError, KeyError):
        print("NOT AUDITED: pip-audit got no answer from its database.", *completed.stderr.splitlines()[-1:], sep="\n")
        return int("--strict" in arguments)
    skipped = [
        package["name"] for package in packages if "skip_reason" in package and package["name"] not in OWN_PACKAGES
    ]
    found = [(package["name"], flaw["id"]) for package in packages for flaw in package.get("vulns", ())]
    for name, flaw in found:
        print(f"{name}: {flaw} ({ACCEPTED.get(flaw, 'NOT ACCEPTED')})")
    print(f"audited {len(packages) - len(skipped)} of {len(packages)} packages, {len(found)} vulnerabilities")
    if skipped:
        print(f"NOT AUDITED, because the database does not know them or is not reachable: {', '.join(skipped)}")
    return int(any(flaw not in ACCEPTED for _, flaw in found) or ("--strict" in arguments and bool(skipped)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
