"""Installs the library; the scripts run from the folder they stand in. Versions are pinned in requirements.txt."""

from setuptools import find_packages, setup

setup(
    name="sd-atelier",
    version="0.1.0",
    description="A training toolkit for Stable Diffusion",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["library", "library.*", "networks", "networks.*"]),
    package_data={"library.text": ["clip_vocabulary/*"]},
)
