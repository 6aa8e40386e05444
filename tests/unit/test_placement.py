"""A backbone on several GPUs: encoder and decoder stay together, and what does not fit is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small_models import BACKBONE
from transformers import DiffusionGemmaConfig

from canvas_asr.backbone import build_backbone
from canvas_asr.errors import CheckpointError
from canvas_asr.parts import WORKING_BYTES, LoadOptions, place_backbone
from canvas_asr.placement import backbone_bytes, divide_backbone

TEXT: dict[str, Any] = {"num_hidden_layers": 6, "layer_types": ["sliding_attention", "full_attention"] * 3}
CONFIG = DiffusionGemmaConfig(
    **{**BACKBONE, "text_config": {**BACKBONE["text_config"], **TEXT, "vocab_size": 64}}
)
N_BYTES = backbone_bytes(CONFIG, torch.float32) or 0


@pytest.mark.parametrize("shares", [(0.6, 0.6), (0.4, 0.4, 0.4), (0.3, 0.9)])
def test_every_weight_has_one_place_with_its_twin(shares: tuple[float, ...]) -> None:
    room = [int(share * N_BYTES) for share in shares]
    places = divide_backbone(CONFIG, N_BYTES, room)
    assert places is not None
    backbone = build_backbone(CONFIG)
    place_of: dict[int, int] = {}
    used = [0] * len(room)
    for name, parameter in backbone.named_parameters(remove_duplicate=False):
        (place,) = [place for module, place in places.items() if name.startswith(f"{module}.")]
        if id(parameter) not in place_of:
            used[place] += 4 * parameter.numel()
        assert place_of.setdefault(id(parameter), place) == place, f"{name} is apart from its twin"
    assert all(0 < bytes_ <= limit for bytes_, limit in zip(used, room, strict=True))
    in_order = [places[f"model.decoder.layers.{i}"] for i in range(6)]
    assert in_order == sorted(in_order)
    assert places["lm_head"] == places["model.decoder.norm"] == 0


def test_one_gpu_that_has_room_takes_it_all() -> None:
    assert divide_backbone(CONFIG, N_BYTES, [N_BYTES]) == {"": 0}
    assert divide_backbone(CONFIG, N_BYTES, [N_BYTES - 1, N_BYTES, N_BYTES]) == {"": 1}


@pytest.mark.parametrize("shares", [(0.9,), (0.3, 0.3, 0.3), (0.01, 0.9)])
def test_too_little_room_is_told(shares: tuple[float, ...]) -> None:
    assert divide_backbone(CONFIG, N_BYTES, [int(share * N_BYTES) for share in shares]) is None


def test_a_map_by_name_becomes_places(monkeypatch: pytest.MonkeyPatch) -> None:
    options = LoadOptions(device_map="auto")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert place_backbone("some/backbone", CONFIG, options) == {"": "cpu"}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    free = [int(0.6 * N_BYTES) + WORKING_BYTES]
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda gpu: (free[0], 0))
    places = place_backbone("some/backbone", CONFIG, options)
    assert places["model.decoder.layers.5"] == places["model.encoder.language_model.layers.5"] == 1
    free[0] = WORKING_BYTES
    with pytest.raises(
        CheckpointError, match=r"some/backbone: needs 0\.0 GB on 2 GPUs in float32, and 4\.3 GB"
    ):
        place_backbone("some/backbone", CONFIG, options)
    explicit = {"": "cuda:1"}
    assert place_backbone("some/backbone", CONFIG, LoadOptions(device_map=explicit)) is explicit
