"""Import stand-in for `torchvision`, which SGLang imports for image models. An installation of `torchvision` by name
would also install a CUDA build of torch."""

from _stub import refuse_beside

refuse_beside("torchvision")
__version__ = "0.0.0+treeadv.import.stub"

from torchvision import io, transforms  # noqa: E402

__all__ = ["io", "transforms"]
