"""Memory of the 26B backbone under each quantisation, measured on its layers at full width, without a GPU.

    pip install accelerate compressed-tensors bitsandbytes torchao optimum-quanto
    python benchmarks/quantised_memory.py                        # 5 GB of memory, 6 GB of disk
    python benchmarks/quantised_memory.py --small --out results  # every line, on a small geometry

A checkpoint with random weights is written that lacks most layers: it has one of sliding and one of full
attention, at full width, with some of the experts, the whole vocabulary, self-conditioning and one layer of
the vision tower. It is loaded by this package in every way, and the bytes of all distinct tensors are
counted. The whole is what was measured times the number of layers, or of experts, which are all alike.
``python benchmarks/full_size.py --estimate`` then puts the table on its page.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
import transformers
from fp8_layouts import NOT_CONVERTED as NOT_CONVERTED
from fp8_layouts import block_backbone, compress_backbone
from full_size import DOCS, SMALL_TEXT, small_config
from full_size_report import memory_section
from torch import Tensor, nn
from transformers import DiffusionGemmaConfig, DiffusionGemmaForBlockDiffusion, WhisperConfig
from transformers.models.whisper.modeling_whisper import WhisperEncoder
from transformers.quantizers.quantizer_finegrained_fp8 import FineGrainedFP8HfQuantizer

from canvas_asr.backbone import denoise, encode_prefix, output_logits
from canvas_asr.configuration import CanvasASRConfig, text_config
from canvas_asr.parts import LoadOptions, Part, load_frozen, read_part_config
from canvas_asr.published import published_config

KINDS = ("sliding_attention", "full_attention")
VISION = "vision layers"
PER_EXPERT = (".experts.", "router.proj", "per_expert_scale")  # as large as there are experts
N_EXPERTS = 16  # of 128: all of them, in two layers, need three times the memory
BLOCK = (64, 64)  # the usual 128 does not divide the experts' 704 and the dense layers' 2112
SKIP = ["lm_head"]
LIBRARIES = ("torch", "transformers", "accelerate", "compressed-tensors", "bitsandbytes", "torchao")


def thin(config: DiffusionGemmaConfig, n_experts: int) -> DiffusionGemmaConfig:
    """A configuration with one layer of each kind, one of vision and some experts, all else the same."""
    content = config.to_dict()
    text = content["text_config"]
    content["vision_config"]["num_hidden_layers"] = 1
    text.pop("per_layer_config")
    full: Any = text_config(config).per_layer_config[text["layer_types"].index(KINDS[1])]
    text.update(global_head_dim=full.head_dim, num_global_key_value_heads=full.num_key_value_heads)
    top_k = min(text["top_k_experts"], n_experts)
    text.update(num_hidden_layers=2, layer_types=[*KINDS], num_experts=n_experts, top_k_experts=top_k)
    return DiffusionGemmaConfig(**content)


def write_backbone(config: DiffusionGemmaConfig, folder: Path, dtype: torch.dtype) -> Path:
    """Write a backbone with random weights: rows alike, which is quick to make and as large as any."""
    torch.manual_seed(0)
    with torch.device("meta"):
        backbone = DiffusionGemmaForBlockDiffusion(config)
    state = {}
    for name, tensor in backbone.state_dict().items():
        if name not in backbone.all_tied_weights_keys:  # which have the memory of others
            state[name] = torch.empty(tensor.shape, dtype=dtype)
            state[name].copy_(torch.randn(tensor.shape[-1:]) * (tensor.shape or (1,))[-1] ** -0.5)
    backbone.save_pretrained(folder, state_dict=state)
    return folder


def tensors_of(thing: Any, depth: int = 3) -> Iterator[Tensor]:
    """Yield the plain tensors of something: quantised ones wrap them, or have them as attributes."""
    if isinstance(thing, Tensor):
        names = thing.__tensor_flatten__()[0] if hasattr(thing, "__tensor_flatten__") else []
        if not names:
            yield thing
        for name in names:
            yield from tensors_of(getattr(thing, name), depth)
    if depth and not isinstance(thing, nn.Module):
        for value in getattr(thing, "__dict__", {}).values():
            yield from tensors_of(value, depth - 1)


def measure_bytes(backbone: DiffusionGemmaForBlockDiffusion) -> dict[str, dict[str, int]]:
    """Count the bytes of every distinct memory of a model, by part and type.

    Returns:
        Bytes by type, for layers of each kind, their experts, layers of vision, and ``rest``.
    """
    found: dict[str, Counter[str]] = {}
    seen: set[int] = set()
    named = [
        *backbone.named_parameters(remove_duplicate=False),
        *backbone.named_buffers(remove_duplicate=False),
    ]
    for name, whole in named:
        part = VISION if "vision_tower" in name and ".layers." in name else "rest"
        for layer, kind in enumerate(KINDS):
            if f"language_model.layers.{layer}." in name or f"decoder.layers.{layer}." in name:
                part = f"{kind} experts" if any(mark in name for mark in PER_EXPERT) else kind
        for tensor in tensors_of(whole):
            memory = tensor.untyped_storage()
            if memory.data_ptr() and memory.data_ptr() not in seen:
                seen.add(memory.data_ptr())
                dtype = str(tensor.dtype).removeprefix("torch.")
                found.setdefault(part, Counter())[dtype] += memory.nbytes()
    return {part: dict(counts) for part, counts in found.items()}


def compose(
    parts: dict[str, dict[str, int]], config: DiffusionGemmaConfig, n_experts: int
) -> dict[str, float]:
    """Bytes of the whole backbone and of its experts, in GB, from those of the parts."""
    text: Any = text_config(config)
    sums = {part: sum(counts.values()) for part, counts in parts.items()}
    experts = dense = 0.0
    for kind in KINDS:
        n_layers = text.layer_types.count(kind)
        experts += n_layers * sums[f"{kind} experts"] * text.num_experts / n_experts
        dense += n_layers * sums[kind]
    rest = sums["rest"] + sums[VISION] * int(config.vision_config.num_hidden_layers)
    return {
        "total_gb": (experts + dense + rest) / 1e9,
        "experts_gb": experts / 1e9,
        "other_layers_gb": dense / 1e9,
        "rest_gb": rest / 1e9,
    }


def run_once(backbone: DiffusionGemmaForBlockDiffusion) -> str:
    """Run a prefix and a pass; gives what happened."""
    ids = torch.arange(20, 26)[None]
    try:
        with torch.no_grad():
            embeds = backbone.get_input_embeddings()(ids)
            _, prefix = encode_prefix(backbone, embeds)
            states = denoise(backbone, ids, prefix, torch.tensor([ids.shape[1]]))
            finite = bool(torch.isfinite(output_logits(backbone, states)).all())
    except Exception as error:  # what a kernel that is not for this device raises is not known here
        return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
    return "yes" if finite else "not finite"


Method = tuple[str, Path, Callable[[], Any]]


def methods(plain: Path, blocks: Path, compressed: Path) -> list[Method]:
    """Name every way, its folder, and what makes its ``quantization_config``."""

    def bits_and_bytes(bits: int, skip: list[str] | None) -> Any:
        from transformers import BitsAndBytesConfig

        return BitsAndBytesConfig(**{f"load_in_{bits}bit": True, "llm_int8_skip_modules": skip})

    def quanto() -> Any:
        from transformers import QuantoConfig

        return QuantoConfig(weights="int8", modules_to_not_convert=SKIP)

    def torchao(experts: bool) -> Any:
        from torchao.quantization import Float8WeightOnlyConfig, FqnToConfig
        from transformers import TorchAoConfig

        kind: Any = Float8WeightOnlyConfig()
        if experts:
            kind = FqnToConfig({r"re:.*\.experts\.(gate_up_proj|down_proj)": kind, "_default": kind})
        return TorchAoConfig(kind, modules_to_not_convert=SKIP)

    def blocks_of_128() -> Any:
        from transformers import FineGrainedFP8Config

        return FineGrainedFP8Config(modules_to_not_convert=SKIP)

    return [
        ("as published, bfloat16", plain, lambda: None),
        ("compressed-tensors FP8 checkpoint", compressed, lambda: None),
        ("FP8 checkpoint of transformers, blocks of 64", blocks, lambda: None),
        ("FP8 on loading, blocks of 128", plain, blocks_of_128),
        ("bitsandbytes 8 bit", plain, lambda: bits_and_bytes(8, None)),
        ("bitsandbytes 8 bit, layers too", plain, lambda: bits_and_bytes(8, SKIP)),
        ("bitsandbytes 4 bit", plain, lambda: bits_and_bytes(4, None)),
        ("bitsandbytes 4 bit, layers too", plain, lambda: bits_and_bytes(4, SKIP)),
        ("quanto int8, layers too", plain, quanto),
        ("torchao FP8, layers too", plain, lambda: torchao(False)),
        ("torchao FP8, layers and experts", plain, lambda: torchao(True)),
    ]


def measure(method: Method, config: DiffusionGemmaConfig, n_experts: int, encoder: Path) -> dict[str, Any]:
    """Load a backbone in one way, count its bytes and run it."""
    label, folder, quantization = method
    record: dict[str, Any] = {"method": label}
    gc.collect()
    started = time.perf_counter()
    try:
        options = LoadOptions(dtype=torch.bfloat16, quantization_config=quantization())
        part = Part(str(folder))
        stored = read_part_config(DiffusionGemmaConfig, part, options.access)
        backbone, _ = load_frozen(part, Part(str(encoder)), stored, options)
    except Exception as error:  # a library that is not there, or does not know these modules
        reason = " ".join(str(error).replace(str(folder), folder.name).split())
        return {**record, "refused": f"{type(error).__name__}: {reason[:300]}"}
    parts = record["measured_bytes"] = measure_bytes(backbone)
    record.update(compose(parts, config, n_experts), runs_here=run_once(backbone))
    return {**record, "seconds": round(time.perf_counter() - started, 1)}


def write_checkpoints(
    config: DiffusionGemmaConfig, n_experts: int, folder: Path, block: tuple[int, int]
) -> tuple[list[Method], Path]:
    """Write the thin backbone in all layouts, and a small audio encoder; gives the ways to load them."""
    plain = write_backbone(thin(config, n_experts), folder / "plain", torch.bfloat16)
    encoder = WhisperEncoder(WhisperConfig(d_model=8, encoder_layers=1, encoder_attention_heads=1))
    encoder.save_pretrained(folder / "encoder")
    found = methods(
        plain,
        block_backbone(plain, folder / "blocks", block),
        compress_backbone(plain, folder / "compressed"),
    )
    return found, folder / "encoder"


def environment() -> dict[str, str]:
    """Versions of the libraries that are there."""
    found = {}
    for name in (*LIBRARIES, "optimum-quanto"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def small_system() -> CanvasASRConfig:
    """A geometry whose sides blocks of 64 divide."""
    text = {**SMALL_TEXT, "hidden_size": 128, "intermediate_size": 192, "moe_intermediate_size": 192}
    text |= {"head_dim": 64, "global_head_dim": 64, "num_hidden_layers": 3}
    text["layer_types"] = [KINDS[0], KINDS[0], KINDS[1]]
    backbone = small_config().backbone_config.to_dict() | {"text_config": text}
    return published_config(backbone_config=backbone)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--small", action="store_true", help="a small geometry; needs --out")
    parser.add_argument("--experts", type=int, help=f"of a layer (default {N_EXPERTS})")
    parser.add_argument("--out", type=Path, help="folder to write to (default: docs)")
    options = parser.parse_args(sys.argv[1:] if argv is None else argv)
    if options.small and options.out is None:
        parser.error("--small measures nothing worth keeping in docs/: give --out")
    transformers.logging.set_verbosity_error()
    # Without a GPU it would unpack FP8; what is measured is what it keeps on one.
    FineGrainedFP8HfQuantizer.validate_environment = lambda *_, **__: None
    config = (small_system() if options.small else published_config()).backbone_config
    n_experts = options.experts or (2 if options.small else N_EXPERTS)
    out = options.out or DOCS
    out.mkdir(parents=True, exist_ok=True)
    text: Any = text_config(config)
    content: dict[str, Any] = {
        "command": "python benchmarks/quantised_memory.py" + (" --small" if options.small else ""),
        "versions": environment(),
        "experts_measured": n_experts,
        "experts": text.num_experts,
        "layers": {kind: text.layer_types.count(kind) for kind in KINDS},
        "methods": [],
    }
    with tempfile.TemporaryDirectory() as folder:
        ways, encoder = write_checkpoints(config, n_experts, Path(folder), BLOCK)
        for way in ways:
            record = measure(way, config, n_experts, encoder)
            content["methods"].append(record)
            print(json.dumps(record), flush=True)
            written = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
            (out / "quantised_memory.json").write_text(written, encoding="utf-8")
    print(memory_section(content))
    return 0


if __name__ == "__main__":
    sys.exit(main())
