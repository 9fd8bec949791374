"""requirements.txt: every package that is imported is there, pinned to one version,
and the pins fit together.
"""

import re
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import models

PINS = [
    Requirement(line)
    for line in Path(models.__file__).with_name("requirements.txt").read_text().split()
]


def test_every_dependency_is_pinned_to_one_version():
    """A release of tomorrow changes results, or a package that is imported is not installed."""
    assert all(re.fullmatch(r"==[\d.]+", str(pin.specifier)) for pin in PINS)
    root = Path(models.__file__).parent
    files = [
        *root.glob("*.py"),
        *(f for init in root.glob("*/__init__.py") for f in init.parent.glob("*.py")),
    ]
    assert {"grpo.py", "engine.py", "word_count.py", "controls.py"} <= {path.name for path in files}
    sources = [path.read_text() for path in files]
    imported = set(re.findall(r"^(?:import|from) (\w+)", "\n".join(sources), re.MULTILINE))
    ours = {path.stem for path in files} | {path.parent.name for path in files}
    known = {name for names in (metadata.packages_distributions(),) for name in names}
    outside = {name for name in imported - ours if name in known}
    through_transformers = {"jinja2", "tokenizers", "huggingface_hub", "yaml"}
    assert outside - through_transformers <= {pin.name for pin in PINS}


@pytest.mark.parametrize("pin", PINS, ids=str)
def test_the_pins_fit_together(pin):
    """pip refuses requirements.txt: one pinned package asks for another version of a second one."""
    try:
        installed = metadata.version(pin.name)
    except metadata.PackageNotFoundError:
        pytest.skip(f"{pin.name} is not installed")
    if not pin.specifier.contains(installed.split("+")[0]):
        pytest.skip(f"{pin.name} {installed} is installed, so what {pin} asks for is not known")
    versions = {other.name: str(other.specifier)[2:] for other in PINS}
    for line in metadata.requires(pin.name) or []:
        need = Requirement(line)
        if need.name in versions and (need.marker is None or need.marker.evaluate({"extra": ""})):
            assert need.specifier.contains(versions[need.name]), f"{pin} needs {need}"
