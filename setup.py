"""Name the packages by pattern: the repository's root is the package, which no `find` of setuptools can say."""

from pathlib import Path

from setuptools import setup

OUTSIDE = {"tests", "benchmarks", "examples", "docs", "build", "dist"}

folders = sorted({path.parent for path in Path().glob("[a-z]*/**/*.py")} - {Path()})
setup(packages=["guerdon", *(".".join(("guerdon", *f.parts)) for f in folders if f.parts[0] not in OUTSIDE)])
