"""Fuzz the doors guided by coverage, with atheris (`pip install atheris`).

    python -m feature_pipeline_tests.hostile.fuzz_doors --seconds 60
    python -m feature_pipeline_tests.hostile.fuzz_doors --seconds 600 "document manifest" rows

Each door runs in a process of its own, from a good input. An input that raises anything but an
error of this package is written to a file, which is named: add it to the corpus.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path


def fuzz(name: str, arguments: list[str]) -> None:
    """Fuzz one door in this process. Does not return."""
    import atheris

    with atheris.instrument_imports(include=["feature_pipeline", "json"]):
        from feature_pipeline_tests.hostile.targets import targets

    target = targets()[name]
    atheris.Setup([sys.argv[0], *arguments], target)
    atheris.Fuzz()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("doors", nargs="*", help="All if none is given.")
    parser.add_argument("--seconds", type=int, default=60, help="For each door.")
    parser.add_argument("--folder", type=Path, default=Path("fuzz"), help="For what is found.")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    given, arguments = parser.parse_known_args()
    if given.one:
        fuzz(given.one, arguments)
    from feature_pipeline_tests.hostile.targets import targets

    failed = []
    for name, target in targets().items():
        if given.doors and name not in given.doors:
            continue
        given.folder.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory() as corpus:
            (Path(corpus) / "good").write_bytes(target.good)
            command = [sys.executable, "-m", __spec__.name, "--one", name, corpus]
            command += [f"-max_total_time={given.seconds}", "-max_len=20000", "-rss_limit_mb=2048"]
            command += [f"-artifact_prefix={given.folder}/{name.replace(' ', '-')}-", "-timeout=20"]
            ended = subprocess.run(command, check=False, capture_output=True, text=True)
        runs = [line for line in ended.stderr.splitlines() if line.startswith("Done ")]
        sys.stdout.write(f"{name}: {runs[-1] if runs else f'FAILED ({ended.returncode})'}\n")
        sys.stdout.flush()
        if ended.returncode:
            failed.append(name)
            sys.stdout.write(ended.stderr[-4_000:])
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
