"""Joining loaded parts: the backbone's causal side stays causal."""

from __future__ import annotations

from pathlib import Path

import torch
from small_models import TINY, small_model, small_processor

from canvas_asr.backbone import encode_prefix
from canvas_asr.checkpoint import assemble, save_checkpoint


def test_an_assembled_backbone_does_not_see_later_positions(tmp_path: Path) -> None:
    save_checkpoint(small_model(), small_processor(), tmp_path, whole=True)
    model, _ = assemble(str(tmp_path / "backbone"), str(tmp_path / "audio_encoder"), TINY, {})
    embed = model.backbone.get_input_embeddings()
    ids = torch.arange(20, 32)[None]
    changed = ids.clone()
    changed[0, -1] = 77
    with torch.no_grad():
        before, after = (encode_prefix(model.backbone, embed(x))[0] for x in (ids, changed))
    torch.testing.assert_close(before[:, :-1], after[:, :-1], rtol=0, atol=1e-5)
    assert (before[:, -1] - after[:, -1]).abs().max() > 1e-3


def test_without_an_attention_implementation_the_prefix_is_causal_all_the_same(tmp_path: Path) -> None:
    backbone = small_model().backbone
    backbone.config._attn_implementation = None
    embed = backbone.get_input_embeddings()
    ids = torch.arange(20, 32)[None]
    with torch.no_grad():
        alone = encode_prefix(backbone, embed(ids[:, :6]))[0]
        longer = encode_prefix(backbone, embed(ids))[0][:, :6]
    torch.testing.assert_close(alone, longer, rtol=0, atol=1e-5)
