"""Settings of every test: four virtual CPU devices, strict shapes, a compilation cache."""

import os
from importlib import metadata
from pathlib import Path

# Tests compile a lot and compute little: a third of the compile time for slower programs. XLA ends
# the process over a flag that it does not know, so only the versions they were seen in get them.
if metadata.version("jax").startswith("0.10."):
    os.environ["XLA_FLAGS"] = " ".join(
        [
            os.environ.get("XLA_FLAGS", ""),
            "--xla_backend_optimization_level=0",
            "--xla_llvm_disable_expensive_passes=true",
            "--xla_cpu_use_fusion_emitters=false",
        ]
    )

import jax  # noqa: E402

CACHE = Path(__file__).resolve().parent.parent / ".pytest_cache" / "jax"

# Before anything asks for a device: the backends read these once.
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 4)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_compilation_cache_dir", str(CACHE))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def pytest_configure(config):
    """Let two runs that share the cache meet: a half-written entry means compiling, not failing."""
    config.addinivalue_line(
        "filterwarnings", "ignore:Error (reading|writing) persistent compilation cache entry"
    )
