"""Import of adapter files that other programs wrote, their tensors recognised by shape, rank and order.

    imported = import_adapter(Path("diffusion_asr_small.pt"), backbone_config, audio_encoder_config)
    print(imported.report)

What cannot be told for sure is refused by name; what tensors cannot tell is an explicit setting.
"""

from canvas_asr import configuration  # noqa: F401 - before what needs DiffusionGemma: it says so if there is none

from .adapter import ImportedAdapter, import_adapter
from .settings import ImportSettings

__all__ = ["ImportSettings", "ImportedAdapter", "import_adapter"]
