"""Known vulnerabilities of what is installed, through pip-audit. Says plainly when nothing could be looked up.

    python install/audit.py [--strict]

Ends with 1 when a vulnerability is found that is not listed below; with --strict also when packages were not audited.
"""

import json
import subprocess
import sys

# Vulnerability -> why it does not concern us. Remove an entry when its fix is out.
KNOWN: dict[str, str] = {}

# Not from the index of packages, or built for one device: no database knows them under these versions.
OURS = ("onlyseen",)


def main(arguments: list[str]) -> int:
    command = [sys.executable, "-m", "pip_audit", "--progress-spinner", "off", "--format", "json"]
    done = subprocess.run(command, capture_output=True, text=True)
    try:
        packages = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError):
        print("NOT AUDITED: pip-audit had no answer from its database.", *done.stderr.splitlines()[-1:], sep="\n")
        return int("--strict" in arguments)
    skipped = [each["name"] for each in packages if "skip_reason" in each and each["name"] not in OURS]
    found = [(each["name"], flaw["id"]) for each in packages for flaw in each.get("vulns", ())]
    for name, flaw in found:
        print(f"{name}: {flaw} ({KNOWN.get(flaw, 'NOT KNOWN TO US')})")
    print(f"audited {len(packages) - len(skipped)} of {len(packages)} packages, {len(found)} vulnerabilities")
    if skipped:
        print(f"NOT AUDITED, since the database does not know them or cannot be reached: {', '.join(skipped)}")
    return int(any(flaw not in KNOWN for _, flaw in found) or ("--strict" in arguments and bool(skipped)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
