"""Import stand-in for `torchvision`, which SGLang imports for image models and which pulls a CUDA build of torch when
installed by name."""

from _stub import refuse_beside

refuse_beside("torchvision")
__version__ = "0.0.0+treeadv.import.stub"

from torchvision import io, transforms  # noqa: E402

__all__ = ["io", "transforms"]
