"""scvi-tools' own tests of SCVI, at the installed version, with QBMVI in SCVI's place.

    python tests/peer/run.py [pytest's arguments]

The tests come with the version's source distribution on PyPI; swap.py says what is changed in
them, what does not apply, and why. They are unpacked to <environment>/peer/<version>.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import time
from collections import Counter, defaultdict
from importlib.metadata import version
from pathlib import Path

from swap import EDITS, FILES

# sha256 of the source distributions.
KNOWN = {
    "1.4.2": "c3d2e6e4cd7d41fccdaeead63c72a4d9a1681bb51f2ace107461217a182eb6e2",
    "1.5.1": "413cab3a8b8865bb42712c1239ab3b1e78960e0739df844128d3577c1556fb18",
}


def download(wanted: str, cache: Path) -> Path:
    archive = cache / f"scvi_tools-{wanted}.tar.gz"
    if not archive.exists():
        cache.mkdir(parents=True, exist_ok=True)
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q", "download"]
        what = [f"scvi-tools=={wanted}", "--no-deps", "--no-binary", "scvi-tools"]
        subprocess.run([*pip, *what, "--dest", str(cache)], check=True)
    found = hashlib.sha256(archive.read_bytes()).hexdigest()
    if wanted not in KNOWN:
        print(f"warning: no sha256 is known for scvi-tools {wanted}; this one is {found}")
    elif found != KNOWN[wanted]:
        sys.exit(f"{archive} has sha256 {found}, not {KNOWN[wanted]}. Remove it and try again.")
    return archive


def unpack(archive: Path, root: Path) -> None:
    """A fresh copy of the tests, edited."""
    shutil.rmtree(root, ignore_errors=True)
    keep = ("tests", "conftest.py", "pyproject.toml", "LICENSE")
    with tarfile.open(archive) as tar:
        for member in tar.getmembers():
            member.name = member.name.partition("/")[2]
            if member.name.split("/")[0] in keep:
                tar.extract(member, root, filter="data")
    for file, old, new, reason in EDITS:
        path = root / file
        text = path.read_text()
        if old not in text:
            sys.exit(f"{file} has changed, this edit does not apply any more: {reason}")
        path.write_text(text.replace(old, new))


def report(results: dict[str, dict[str, str]]) -> int:
    """Print the summary; the number of failures."""
    counts: dict[str, Counter[str]] = {file: Counter() for file in FILES}
    skipped = defaultdict(list)
    failed = []
    for test, result in results.items():
        outcome = result["outcome"]
        if outcome == "skipped":
            outcome = "n/a" if result["reason"].startswith("n/a: ") else "skipped"
            skipped[result["reason"]].append(test.partition("::")[2])
        elif outcome == "failed":
            failed.append(test)
        counts.setdefault(test.partition("::")[0], Counter())[outcome] += 1
    columns = ("passed", "n/a", "skipped", "failed")
    width = max(map(len, counts))
    print("\n" + " " * width + "".join(f"{c:>9}" for c in ("items", *columns)))
    for file, count in [*counts.items(), ("total", sum(counts.values(), Counter()))]:
        numbers = (count.total(), *(count[c] for c in columns))
        print(f"{file:{width}}" + "".join(f"{n:>9}" for n in numbers))
    if skipped:
        print("\nNot run:")
    for reason, tests in sorted(skipped.items()):
        print(f"  {reason}")
        for name, n in Counter(t.partition("[")[0] for t in tests).items():
            print(f"    {name}" + (f" ({n})" if n > 1 else ""))
    print("\nChanged in the tests:")
    for file, _, _, reason in EDITS:
        print(f"  {file.rpartition('/')[2]}: {reason}")
    if failed:
        print("\nFailed:")
    for test in failed:
        print(f"  {test}")
    return len(failed)


def main() -> int:
    wanted = version("scvi-tools")
    cache = Path(sys.prefix) / "peer"
    root = cache / wanted
    unpack(download(wanted, cache), root)
    results = root / "results.json"
    here = str(Path(__file__).parent)
    env = {"OMP_NUM_THREADS": "1"} | os.environ | {"PEER_RESULTS": str(results)}
    env["PYTHONPATH"] = os.pathsep.join(filter(None, (here, env.get("PYTHONPATH"))))
    quiet = ["-q", "--tb=short", "--show-capture=no", "--disable-warnings"]
    start = time.perf_counter()
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "swap", *quiet, *FILES, *sys.argv[1:]],
        cwd=root,
        env=env,
    )
    if not results.exists():
        return run.returncode or 1
    print(f"\nscvi-tools {wanted}, QBMVI for SCVI, {time.perf_counter() - start:.0f} s")
    return int(report(json.loads(results.read_text())) > 0 or run.returncode != 0)


if __name__ == "__main__":
    sys.exit(main())
