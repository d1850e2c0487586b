"""Adapters of every kind and spelling: merged as their trainers apply them, or refused in one line."""

import copy
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from avatarforge.diffusion.models.catalogue import Lora
from avatarforge.diffusion.models.loras import merge_loras
from avatarforge.domain.errors import ModelUnusable
from tests.factories import a_manifest
from tests.families import tiny

LINEAR = "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"
OUTPUT = "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_out.0"
CONV = "up_blocks.0.resnets.1.conv1"
TEXT = "encoder.layers.1.self_attn.q_proj"
RANK = 4

Tensors = dict[str, torch.Tensor]


class Adapter:
    """An adapter's file, and the weight that it makes of a layer's."""

    def __init__(
        self,
        tensors: Tensors,
        weight: Callable[[torch.Tensor], torch.Tensor],
        layer: str = LINEAR,
        *,
        part: str = "unet",
        family: str = "sd-epsilon",
        metadata: Mapping[str, Any] | None = None,
        strength: float = 0.5,
    ) -> None:
        self.tensors, self.weight, self.layer, self.part = tensors, weight, layer, part
        self.family, self.metadata, self.strength = family, metadata, strength


def copy_parts(family: str) -> Any:
    """A copy of the family's parts that adapters change."""
    components = tiny(family).components
    names = ("unet", "text_encoder", "text_encoder_2")
    return SimpleNamespace(**{name: copy.deepcopy(components.get(name)) for name in names})


def merge_into(parts: Any, folder: Path, tensors: Tensors, strength: float, metadata: Any = None) -> None:
    extra = {"lora_adapter_metadata": json.dumps(metadata)} if metadata else None
    save_file({key: tensor.clone() for key, tensor in tensors.items()}, folder / "a.safetensors", extra)
    lora = Lora(file=folder / "a.safetensors", weight=strength)
    merge_loras(parts, a_manifest(name="m", loras=(lora,)))


def merge(folder: Path, tensors: Tensors, strength: float, family: str, metadata: Any = None) -> Any:
    """A copy of the family's parts with the adapter merged."""
    copied = copy_parts(family)
    merge_into(copied, folder, tensors, strength, metadata)
    return copied


def layer_of(parts: Any, part: str, layer: str) -> Any:
    module = getattr(parts, part) if not isinstance(parts, str) else tiny(parts).components[part]
    return module.get_submodule(f"text_model.{layer}" if hasattr(module, "text_model") else layer)


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def low_rank(layer: str, family: str = "sd-epsilon", part: str = "unet") -> tuple[torch.Tensor, torch.Tensor]:
    """The matrices A and B of a layer."""
    out, into, *kernel = layer_of(family, part, layer).weight.shape
    return draw(RANK, into, *kernel), draw(out, RANK, *[1] * len(kernel))


def plain(
    names: tuple[str, str], scale: float = 1.0, layer: str = LINEAR, alpha: str | None = None, **changes: Any
) -> Adapter:
    """A LoRA whose A and B have these names, and its alpha of 2 this one."""
    down, up = low_rank(layer, changes.get("family", "sd-epsilon"), changes.get("part", "unet"))
    tensors = {names[0]: down, names[1]: up}
    if alpha is not None:
        tensors[alpha] = torch.tensor(2.0)
    product = up.flatten(1) @ down.flatten(1)
    return Adapter(tensors, lambda weight: weight + 0.5 * scale * product.view_as(weight), layer, **changes)


def kohya(name: str, scale: float = 2 / RANK, **changes: Any) -> Adapter:
    return plain(
        (f"{name}.lora_down.weight", f"{name}.lora_up.weight"), scale, alpha=f"{name}.alpha", **changes
    )


def peft(name: str, scale: float, **metadata: Any) -> Adapter:
    names = (f"{name}.lora_A.weight", f"{name}.lora_B.weight")
    return plain(names, scale, metadata={f"unet.{key}": value for key, value in metadata.items()})


def lycoris(kind: str, layer: str, strength: float = 1.0, dora: str | None = None, **shape: Any) -> Adapter:
    """An adapter as LyCORIS makes it, and what its own module makes of the layer's weight."""
    import lycoris.modules as modules

    found = {"loha": modules.LohaModule, "lokr": modules.LokrModule, "locon": modules.LoConModule}[kind]
    origin = layer_of("sd-epsilon", "unet", layer)
    torch.manual_seed(3)
    made = found(
        "lora",
        origin,
        strength,
        RANK,
        2.0,
        weight_decompose=dora is not None,
        wd_on_out=dora != "in",
        **shape,
    )
    tensors = {}
    for key, tensor in made.custom_state_dict().items():
        is_small = key in {"alpha", "dora_scale"}
        tensors[key] = tensor.detach() if is_small else draw(*tensor.shape) / 4
    if dora is not None:
        tensors["dora_scale"] = tensors["dora_scale"] * (1 + draw(*tensors["dora_scale"].shape) / 4)
    made.load_state_dict(tensors, strict=False)
    if isinstance(made.scalar, torch.nn.Parameter) or made.scalar != 1:
        made.scalar.data.fill_(1.0)

    def weight(_: torch.Tensor) -> torch.Tensor:
        # The layer's answers to unit vectors are its weight.
        into = origin.weight.shape[1]
        if origin.weight.dim() == 2:
            with torch.no_grad():
                return (made(torch.eye(into)) - origin(torch.zeros(1, into))).T
        size = origin.weight.shape[-1]
        ones = torch.eye(into * size * size).view(-1, into, size, size)
        with torch.no_grad():
            answers = made(ones) - origin(torch.zeros(1, into, size, size))
        return answers[:, :, size // 2, size // 2].T.reshape(origin.weight.shape)

    name = f"lora_unet_{layer.replace('.', '_')}"
    return Adapter({f"{name}.{key}": one for key, one in tensors.items()}, weight, layer, strength=strength)


def dora_of_peft(name: str) -> Adapter:
    """As peft's documentation has it: the strength scales the product, within the length."""
    down, up = low_rank(LINEAR)
    magnitude = draw(len(up)).abs() + 1

    def weight(weight: torch.Tensor) -> torch.Tensor:
        changed = weight + 0.5 * up @ down
        return magnitude[:, None] * changed / changed.norm(dim=1, keepdim=True)

    tensors = {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}
    return Adapter({**tensors, f"{name}.lora_magnitude_vector": magnitude}, weight)


_SGM = "lora_unet_input_blocks_3_1_transformer_blocks_0_attn2_to_k"
_PROCESSOR = f"unet.{LINEAR}".replace("attn2.to_k", "attn2.processor.to_k_lora")
_OUTPUT_PROCESSOR = f"unet.{OUTPUT}".replace("attn2.to_out.0", "attn2.processor.to_out_lora")
_UNET, _TEXT_XL = f"lora_unet_{LINEAR.replace('.', '_')}", TEXT.replace(".", "_")

ADAPTERS: dict[str, Callable[[], Adapter]] = {
    "kohya": lambda: kohya(_UNET),
    "kohya, a convolution": lambda: kohya(f"lora_unet_{CONV.replace('.', '_')}", layer=CONV),
    "kohya without alpha": lambda: plain((f"{_UNET}.lora_down.weight", f"{_UNET}.lora_up.weight")),
    "kohya, text": lambda: kohya(f"lora_te_text_model_{_TEXT_XL}", layer=TEXT, part="text_encoder"),
    "kohya, SDXL": lambda: kohya(_SGM, family="xl"),
    "kohya, SDXL, a convolution": lambda: kohya(
        "lora_unet_output_blocks_1_0_in_layers_2", family="xl", layer=CONV
    ),
    "kohya, SDXL, text": lambda: kohya(
        f"lora_te1_text_model_{_TEXT_XL}", family="xl", layer=TEXT, part="text_encoder"
    ),
    "kohya, SDXL, second text": lambda: kohya(
        f"lora_te2_text_model_{_TEXT_XL}", family="xl", layer=TEXT, part="text_encoder_2"
    ),
    "diffusers": lambda: plain((f"unet.{LINEAR}.lora.down.weight", f"unet.{LINEAR}.lora.up.weight")),
    "diffusers, processors": lambda: plain((f"{_PROCESSOR}.down.weight", f"{_PROCESSOR}.up.weight")),
    "diffusers, output": lambda: plain(
        (f"{_OUTPUT_PROCESSOR}.down.weight", f"{_OUTPUT_PROCESSOR}.up.weight"), layer=OUTPUT
    ),
    "diffusers, bare": lambda: plain((f"{_PROCESSOR[5:]}.down.weight", f"{_PROCESSOR[5:]}.up.weight")),
    "diffusers, text": lambda: plain(
        tuple(
            f"text_encoder.text_model.encoder.layers.1.self_attn.to_q_lora.{way}.weight"
            for way in ("down", "up")
        ),  # type: ignore[arg-type]
        layer=TEXT,
        part="text_encoder",
    ),
    "peft": lambda: plain((f"unet.{LINEAR}.lora_A.weight", f"unet.{LINEAR}.lora_B.weight")),
    "peft, wrapped": lambda: plain(
        tuple(f"base_model.model.unet.{LINEAR}.lora_{one}.default.weight" for one in "AB")  # type: ignore[arg-type]
    ),
    "peft, alpha in the metadata": lambda: peft(f"unet.{LINEAR}", 4.0, r=RANK, lora_alpha=16),
    "peft, alphas by layer": lambda: peft(
        f"unet.{LINEAR}", 8 / RANK, r=RANK, lora_alpha=1, alpha_pattern={"attn2.to_k": 8}
    ),
    "peft, ranks by layer": lambda: peft(
        f"unet.{LINEAR}", 3 / RANK, r=64, lora_alpha=3, rank_pattern={r".*\.to_k": RANK}
    ),
    "peft, rank-stabilized": lambda: peft(f"unet.{LINEAR}", 3.0, r=RANK, lora_alpha=6, use_rslora=True),
    "DoRA of peft": lambda: dora_of_peft(f"unet.{LINEAR}"),
    "DoRA of kohya": lambda: lycoris("locon", LINEAR, dora="out"),
    "DoRA of kohya, columns": lambda: lycoris("locon", LINEAR, dora="in"),
    "DoRA of kohya, a convolution": lambda: lycoris("locon", CONV, dora="out"),
    "LoCon with a core": lambda: lycoris("locon", CONV, 0.7, use_tucker=True),
    "LoHa": lambda: lycoris("loha", LINEAR, 0.7),
    "LoHa, a convolution": lambda: lycoris("loha", CONV),
    "LoHa with cores": lambda: lycoris("loha", CONV, use_tucker=True),
    "LoHa with DoRA": lambda: lycoris("loha", LINEAR, dora="out"),
    "LoKr": lambda: lycoris("lokr", LINEAR, 0.7, factor=4),
    "LoKr of whole factors": lambda: lycoris("lokr", LINEAR, full_matrix=True),
    "LoKr, both factors of low rank": lambda: lycoris("lokr", CONV, decompose_both=True, factor=16),
    "LoKr, a convolution": lambda: lycoris("lokr", CONV, factor=2),
    "LoKr with a core": lambda: lycoris("lokr", CONV, factor=2, use_tucker=True),
    "LoKr with DoRA": lambda: lycoris("lokr", LINEAR, factor=4, dora="out"),
}


@pytest.mark.parametrize("kind", ADAPTERS)
def test_an_adapter_is_merged_as_its_trainer_applies_it(tmp_path: Path, kind: str) -> None:
    adapter = ADAPTERS[kind]()
    merged = merge(tmp_path, adapter.tensors, adapter.strength, adapter.family, adapter.metadata)
    before = layer_of(adapter.family, adapter.part, adapter.layer).weight.detach()
    after = layer_of(merged, adapter.part, adapter.layer).weight.detach()
    assert not torch.allclose(after, before, atol=1e-2)
    torch.testing.assert_close(after, adapter.weight(before), rtol=1e-4, atol=1e-4)
    others = tiny(adapter.family).components[adapter.part].state_dict()
    changed = [
        key
        for key, one in getattr(merged, adapter.part).state_dict().items()
        if not torch.equal(one, others[key])
    ]
    assert len(changed) == 1


def test_half_of_a_dora_is_half_of_the_way(tmp_path: Path) -> None:
    adapter = lycoris("locon", LINEAR, dora="out")
    before = layer_of("sd-epsilon", "unet", LINEAR).weight.detach()
    after = layer_of(merge(tmp_path, adapter.tensors, 0.5, "sd-epsilon"), "unet", LINEAR).weight
    torch.testing.assert_close(after.detach(), (before + adapter.weight(before)) / 2, rtol=1e-4, atol=1e-4)


_ONE = torch.ones((2, 2))
_NAN = {key: tensor / 0 for key, tensor in kohya(_UNET).tensors.items()}


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        ({f"{_UNET}.on_input": _ONE, f"{_UNET}.weight": _ONE}, "a LyCORIS adapter of a kind that is not"),
        ({f"{_UNET}.oft_blocks": _ONE}, "a LyCORIS adapter of a kind that is not supported"),
        ({f"{_UNET}.a1.weight": _ONE, f"{_UNET}.b1.weight": _ONE}, "a LyCORIS adapter of a kind that is not"),
        ({f"{_UNET}.lora_down.weight": _ONE, f"{_UNET}.diff_b": _ONE}, "diff_b: this kind of LyCORIS"),
        ({f"{_UNET}.diff": _ONE}, "holds nothing for any layer of the model"),
        ({"lora_unet_nowhere.lora_down.weight": _ONE}, "is for another model, which has lora_unet_nowhere"),
        ({"lora_te2_x.lora_down.weight": _ONE}, "is for another model, which has lora_te2_x"),
        ({f"{_UNET}.lora_down.weight": _ONE, f"{_UNET}.lora_up.weight": _ONE}, "does not fit the model"),
        ({f"{_UNET}.lora_down.weight": _ONE}, "does not fit the model .*'up'"),
        ({f"{_UNET}.lora_up.weight": _ONE}, "does not fit the model"),
        (_NAN, "holds values that are not finite for unet.down_blocks"),
        ({"emb_params": _ONE}, "the file is a textual inversion embedding"),
        ({"control_model.x": _ONE}, "the file is a ControlNet"),
        ({"model.diffusion_model.input_blocks.0.0.weight": _ONE}, "the file is a UNet"),
        ({"double_blocks.0.img_attn.qkv.weight": _ONE}, "the file is a Flux file"),
        ({}, "holds nothing for any layer of the model"),
    ],
)  # fmt: skip
def test_an_adapter_that_does_not_fit_is_refused_in_one_line(
    tmp_path: Path, tensors: Tensors, reason: str
) -> None:
    with pytest.raises(ModelUnusable, match=reason) as caught:
        merge(tmp_path, tensors, 1.0, "sd-epsilon")
    assert len(str(caught.value)) <= 300
    assert "\n" not in str(caught.value)


def test_an_adapter_for_another_model_changes_nothing(tmp_path: Path) -> None:
    parts = copy_parts("sd-epsilon")
    with pytest.raises(ModelUnusable, match="is for another model"):
        merge_into(parts, tmp_path, kohya(_UNET).tensors | kohya("lora_unet_nowhere").tensors, 1.0)
    for key, tensor in tiny("sd-epsilon").unet.state_dict().items():
        assert torch.equal(parts.unet.state_dict()[key], tensor)


def test_dora_leaves_a_row_of_zeros(tmp_path: Path) -> None:
    adapter = dora_of_peft(f"unet.{LINEAR}")
    parts = copy_parts("sd-epsilon")
    weight = layer_of(parts, "unet", LINEAR).weight
    with torch.no_grad():
        weight[0] = 0
    adapter.tensors[f"unet.{LINEAR}.lora_B.weight"][0] = 0
    merge_into(parts, tmp_path, adapter.tensors, 0.5)
    assert not weight[0].any()
    assert torch.isfinite(weight).all()


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"<html>Not found</html>", "HTML in place of weights"), (b"\x10\0\0\0\0\0\0\0{", "truncated")],
)  # fmt: skip
def test_a_file_that_is_no_adapter_is_refused_in_one_line(
    tmp_path: Path, content: bytes, reason: str
) -> None:
    (tmp_path / "a.safetensors").write_bytes(content)
    with pytest.raises(ModelUnusable, match=reason):
        merge_loras(SimpleNamespace(), a_manifest(name="m", loras=(Lora(file=tmp_path / "a.safetensors"),)))
