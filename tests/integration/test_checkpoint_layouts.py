"""The layouts in which people have checkpoints: each makes the right image, or is refused in one line."""

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from avatarforge.diffusion.engines.prompts import split_prompt
from avatarforge.diffusion.models.catalogue import TextualInversion
from avatarforge.diffusion.models.parts import load_part
from avatarforge.diffusion.models.textual_inversion import add_embeddings
from avatarforge.diffusion.models.weights import read_parts
from avatarforge.domain.errors import ModelUnusable
from tests.checkpoints import img2img, img2img_checkpoint, img2img_manifest, load
from tests.factories import a_manifest
from tests.families import photo, tiny
from tests.single_file import single_file

UNET = "unet/diffusion_pytorch_model.safetensors"
VAE = "vae/diffusion_pytorch_model.safetensors"
TEXT = "text_encoder/model.safetensors"
TEXT_MODEL = "cond_stage_model.transformer.text_model."
PIPELINE = "StableDiffusionImg2ImgPipeline"

Tensors = dict[str, Any]
Spoil = Callable[[Path], None]


def in_file(name: str, change: Callable[[Tensors], Tensors]) -> Spoil:
    """Rewrite the tensors of one of the checkpoint's files."""

    def rewrite(checkpoint: Path) -> None:
        save_file(change(load_file(checkpoint / name)), checkpoint / name, {"format": "pt"})

    return rewrite


def with_prefix(prefix: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {prefix + key: tensor for key, tensor in tensors.items()}


def without(part: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {key: tensor for key, tensor in tensors.items() if part not in key}


def with_text(name: str, start: bytes) -> Spoil:
    return lambda checkpoint: (checkpoint / name).write_bytes(start + b" " * 1000) and None


def renamed(suffix: str) -> Spoil:
    """Give every file of weights the suffix of a variant, such as `.fp16`."""

    def rename(checkpoint: Path) -> None:
        for file in list(checkpoint.rglob("*.safetensors")):
            file.rename(file.with_name(file.name.replace(".safetensors", f"{suffix}.safetensors")))

    return rename


def split(checkpoint: Path) -> None:
    """Split the UNet's tensors into two files with an index, and wrap their names."""
    tensors = with_prefix("module.")(load_file(checkpoint / UNET))
    names = [
        "diffusion_pytorch_model-00001-of-00002.safetensors",
        "diffusion_pytorch_model-00002-of-00002.safetensors",
    ]
    places = {key: names[index % 2] for index, key in enumerate(tensors)}
    for name in names:
        save_file({key: tensors[key] for key in tensors if places[key] == name}, checkpoint / "unet" / name)
    index = {"metadata": {"total_size": 0}, "weight_map": places}
    (checkpoint / f"{UNET}.index.json").write_text(json.dumps(index))
    (checkpoint / UNET).unlink()


def with_channels(number: int) -> Callable[[Tensors], Tensors]:
    """Give the UNet another number of input channels."""

    def change(tensors: Tensors) -> Tensors:
        weight = tensors["conv_in.weight"]
        return tensors | {"conv_in.weight": torch.zeros((weight.shape[0], number, *weight.shape[2:]))}

    return change


WELL = {
    "as saved": lambda checkpoint: None,
    "a compiled UNet": in_file(UNET, with_prefix("_orig_mod.")),
    "a compiled text encoder": in_file(TEXT, with_prefix("_orig_mod.")),
    "a text encoder of several GPUs": in_file(TEXT, with_prefix("module.")),
    "a text encoder of older names": in_file(TEXT, with_prefix("text_model.")),
    "a text encoder with positions": in_file(
        TEXT, lambda tensors: tensors | {"embeddings.position_ids": torch.arange(77)[None]}
    ),
    "half precision alone": renamed(".fp16"),
    "averaged weights alone": renamed(".non_ema"),
    "a UNet in two wrapped files": split,
    "a compiled VAE": in_file(VAE, with_prefix("_orig_mod.")),
}

BROKEN: dict[str, tuple[Spoil, str]] = {
    "no last layer": (
        in_file(TEXT, without("layers.2.")),
        "part 'text_encoder' lacks .*layers.2.*more tensors",
    ),
    "no VAE decoder": (in_file(VAE, without("decoder.")), "part 'vae' lacks decoder"),
    "a head that is not the UNet's": (
        in_file(UNET, lambda tensors: tensors | {"class_embedding.weight": torch.ones(3)}),
        r"part 'unet' holds class_embedding\.weight, for which it has no place",
    ),
    "an inpainting UNet": (in_file(UNET, with_channels(9)), "the file is an inpainting UNet"),
    "an editing UNet": (in_file(UNET, with_channels(8)), "the file is an editing UNet"),
    "a depth UNet": (in_file(UNET, with_channels(5)), "the file is a depth-to-image UNet"),
    "an SDXL UNet": (
        in_file(UNET, lambda tensors: tensors | {"add_embedding.linear_1.weight": torch.ones(3)}),
        "the file is an SDXL UNet",
    ),
    "another part's weights": (
        lambda checkpoint: shutil.copy(checkpoint / TEXT, checkpoint / UNET) and None,
        "part 'unet' lacks .*the file is a text encoder",
    ),
    "a LoRA": (in_file(UNET, lambda _: {"unet.a.lora.down.weight": torch.ones(1)}), "the file is a LoRA"),
    "LyCORIS": (in_file(UNET, lambda _: {"x.hada_w1_a": torch.ones(1)}), "the file is a LyCORIS adapter"),
    "HTML": (with_text(UNET, b"<!DOCTYPE html>"), "holds HTML in place of weights"),
    "a pointer": (with_text(UNET, b"version https://git-lfs"), "holds a pointer of Git LFS"),
    "pickled": (with_text(UNET, b"PK\x03\x04"), "holds pickled data in place of weights"),
    "nothing": (lambda checkpoint: (checkpoint / UNET).write_bytes(b"") and None, "is truncated"),
    "cut off in the header": (
        lambda checkpoint: (checkpoint / UNET).write_bytes((checkpoint / UNET).read_bytes()[:99]) and None,
        "is truncated",
    ),
    "cut off": (
        lambda checkpoint: (checkpoint / UNET).write_bytes((checkpoint / UNET).read_bytes()[:-1]) and None,
        "is truncated",
    ),
    "not finite": (
        in_file(VAE, lambda tensors: {key: tensor / 0 for key, tensor in tensors.items()}),
        "part 'vae' holds values that are not finite in",
    ),
}


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return Path(shutil.copytree(img2img_checkpoint(), tmp_path / "checkpoint"))


def load_folder(folder: Path, **changes: Any) -> Any:
    return load(a_manifest(name="m", source={"folder": folder, "pipeline": PIPELINE}, **changes))


def draw(pipeline: Any, **options: Any) -> torch.Tensor:
    """The pixels that the pipeline makes of a photo, as diffusers calls it."""
    pipeline.set_progress_bar_config(disable=True)
    prompts = {"prompt": "a portrait of a woman", "negative_prompt": "grey"}
    images = pipeline(
        image=photo(1),
        strength=0.8,
        num_inference_steps=3,
        guidance_scale=4.0,
        generator=torch.Generator().manual_seed(1),
        output_type="pt",
        **prompts | options,
    ).images
    assert isinstance(images, torch.Tensor)
    return images


@pytest.fixture(scope="module")
def expected() -> torch.Tensor:
    """By diffusers' own loading."""
    import diffusers

    return draw(diffusers.StableDiffusionImg2ImgPipeline.from_pretrained(img2img_checkpoint()))


@pytest.mark.parametrize("layout", WELL)
def test_a_layout_makes_the_same_image_on_every_replica(
    checkpoint: Path, expected: torch.Tensor, layout: str
) -> None:
    WELL[layout](checkpoint)
    # What is filled with random numbers differs between two processes.
    torch.manual_seed(2)
    assert torch.equal(draw(load_folder(checkpoint)), expected)


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_a_variant_may_be_there_of_some_parts_alone(
    checkpoint: Path, expected: torch.Tensor, suffix: str
) -> None:
    """As `load_part` is called for a checkpoint of the hub."""
    file = checkpoint / UNET
    tensors = load_file(file)
    if suffix == ".bin":
        file.unlink()
        torch.save(tensors, file.with_suffix(".fp16.bin"))
    else:
        save_file(tensors, file.with_suffix(".fp16.safetensors"), {"format": "pt"})
        in_file(UNET, lambda tensors: {key: tensor * 2 for key, tensor in tensors.items()})(checkpoint)
    parts = {
        name: load_part(
            "m",
            checkpoint / name,
            library,
            kind,
            torch.float32,
            variant="fp16",
            allow_pickle=suffix == ".bin",
        )
        for name, (library, kind) in read_parts(checkpoint).items()
        if name in {"unet", "vae", "text_encoder"}
    }
    pipeline = load_folder(img2img_checkpoint())
    pipeline.register_modules(**parts)
    assert torch.equal(draw(pipeline), expected)


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_checkpoint_is_refused_in_one_line(checkpoint: Path, fault: str) -> None:
    spoil, reason = BROKEN[fault]
    spoil(checkpoint)
    with pytest.raises(ModelUnusable, match=reason) as caught:
        load_folder(checkpoint)
    assert len(str(caught.value)) <= 300
    assert "\n" not in str(caught.value)


# --- single files ---------------------------------------------------------------------------------------


def whole(folder: Path, **changes: Any) -> Path:
    """A single file with these tensors besides; `None` takes one away."""
    source: Any = single_file(folder, img2img()).source
    tensors = load_file(source.file) | changes
    save_file({key: tensor for key, tensor in tensors.items() if tensor is not None}, source.file)
    return Path(source.file)


def load_file_of(folder: Path, **changes: Any) -> Any:
    source = {"file": folder / "w.safetensors", "config": folder / "config", "pipeline": PIPELINE}
    return load(a_manifest(name="m", source=source, **changes))


LEFT_BY_TRAINING = {
    "model_ema.decay": torch.ones(1),
    "alphas_cumprod": torch.ones(3),
    f"{TEXT_MODEL}embeddings.position_ids": torch.arange(77)[None],
    "cond_stage_model.logit_scale": torch.ones(1),
    "first_stage_model.loss.logvar": torch.ones(1),
}


def test_a_single_file_makes_the_same_image_on_every_replica(tmp_path: Path) -> None:
    whole(tmp_path, **LEFT_BY_TRAINING)
    images = []
    for replica in (1, 2):
        torch.manual_seed(replica)
        images.append(draw(load_file_of(tmp_path)))
    assert torch.equal(*images)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (
            {"model.diffusion_model.input_blocks.0.0.weight": torch.zeros(32, 9, 3, 3)},
            "part 'unet' has conv_in.weight of the shape .*: the file is an inpainting UNet",
        ),
        (
            {"conditioner.embedders.1.x": torch.ones(1), "first_stage_model.x": torch.ones(1)},
            "'vae' holds first_stage_model.x, for which it has no place: the file is an SDXL file",
        ),
        ({"model.diffusion_model.label_emb.0.0.weight": torch.ones(1)}, "label_emb.*: the file is a"),
        ({f"{TEXT_MODEL}final_layer_norm.bias": None}, "'text_encoder' lacks final_layer_norm"),
        ({"edm_mean": torch.zeros(4)}, "marked as EDM, but its config names DDIMScheduler"),
    ],
)  # fmt: skip
def test_a_broken_single_file_is_refused_in_one_line(
    tmp_path: Path, changes: dict[str, Any], reason: str
) -> None:
    whole(tmp_path, **changes)
    with pytest.raises(ModelUnusable, match=reason) as caught:
        load_file_of(tmp_path)
    assert len(str(caught.value)) <= 300


def test_a_single_file_says_how_it_was_trained(tmp_path: Path) -> None:
    whole(tmp_path, v_pred=torch.empty(0), ztsnr=torch.empty(0))
    config = tmp_path / "config" / "scheduler" / "scheduler_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"prediction_type": "epsilon"}))
    scheduler = load_file_of(tmp_path).scheduler
    assert scheduler.config.prediction_type == "v_prediction"
    assert scheduler.config.rescale_betas_zero_snr
    assert float(scheduler.alphas_cumprod[-1]) < 1e-6


# --- another VAE, and fewer layers of the text encoder ------------------------------------------------------


@pytest.fixture
def other_vae(tmp_path: Path) -> Path:
    """A VAE in diffusers' layout, whose folder has another name than the part."""
    vae = copy.deepcopy(img2img().vae)
    with torch.no_grad():
        for weight in vae.parameters():
            weight.mul_(1.01)
    vae.save_pretrained(tmp_path / "better")
    return tmp_path / "better"


def test_another_vae_takes_the_place_of_the_checkpoints(checkpoint: Path, other_vae: Path) -> None:
    import diffusers

    pipeline = diffusers.StableDiffusionImg2ImgPipeline.from_pretrained(img2img_checkpoint())
    pipeline.vae = diffusers.AutoencoderTiny.from_pretrained(other_vae)
    # The checkpoint's own need not be there.
    (checkpoint / VAE).unlink()
    assert torch.equal(draw(load_folder(checkpoint, vae=other_vae)), draw(pipeline))


def test_another_vae_of_a_single_file_may_be_a_file_too(tmp_path: Path) -> None:
    file = whole(tmp_path)
    tensors = load_file(file)
    prefix = "first_stage_model."
    left = {"model_ema.decay": torch.ones(1), "model_ema.num_updates": torch.ones(1)}
    save_file(
        {key.removeprefix(prefix): one * 1.01 for key, one in tensors.items() if key.startswith(prefix)}
        | left,
        tmp_path / "better.safetensors",
    )
    own, better = load_file_of(tmp_path), load_file_of(tmp_path, vae=tmp_path / "better.safetensors")
    for key, weight in own.vae.state_dict().items():
        torch.testing.assert_close(better.vae.state_dict()[key], weight * 1.01)


def test_another_vae_may_be_a_file_with_the_names_of_diffusers(tmp_path: Path) -> None:
    whole(tmp_path)
    own = load_file_of(tmp_path).vae.state_dict()
    file = tmp_path / "better.safetensors"
    save_file({key: one * 1.01 for key, one in own.items()}, file, {"format": "pt"})
    better = load_file_of(tmp_path, vae=file).vae.state_dict()
    for key, weight in own.items():
        torch.testing.assert_close(better[key], weight * 1.01)
    save_file(without("decoder.conv_in")(own), file, {"format": "pt"})
    with pytest.raises(ModelUnusable, match=r"part 'vae' lacks decoder\.conv_in"):
        load_file_of(tmp_path, vae=file)


def test_another_vae_is_never_pickled(tmp_path: Path) -> None:
    whole(tmp_path)
    torch.save(load_file_of(tmp_path).vae.state_dict(), tmp_path / "better.pt")
    with pytest.raises(ModelUnusable, match=r"its VAE .*better\.pt is not a \.safetensors file"):
        load_file_of(tmp_path, vae=tmp_path / "better.pt")


def test_another_vae_that_does_not_fit_is_refused(checkpoint: Path, other_vae: Path) -> None:
    weights = other_vae / Path(VAE).name
    save_file(without("decoder.")(load_file(weights)), weights, {"format": "pt"})
    with pytest.raises(ModelUnusable, match="part 'vae' lacks decoder"):
        load_folder(checkpoint, vae=other_vae)
    with pytest.raises(ModelUnusable, match="nowhere is not there"):
        load_folder(checkpoint, vae=other_vae / "nowhere")


def test_the_text_is_taken_from_the_layer_that_the_manifest_names() -> None:
    import diffusers

    pipeline = diffusers.StableDiffusionImg2ImgPipeline.from_pretrained(img2img_checkpoint())
    encoder, tokenizer = pipeline.text_encoder, pipeline.tokenizer
    # As diffusers' `clip_skip`, which does not know the shorter names of newer versions of transformers.
    tokens = tokenizer(["a portrait of a woman", "grey"], padding="max_length", return_tensors="pt").input_ids
    with torch.no_grad():
        hidden = encoder.final_layer_norm(encoder(tokens, output_hidden_states=True).hidden_states[-2])
    embeddings = {"prompt_embeds": hidden[:1], "negative_prompt_embeds": hidden[1:]}
    expected = draw(pipeline, prompt=None, negative_prompt=None, **embeddings)
    assert torch.equal(draw(load_folder(img2img_checkpoint(), clip_skip=2)), expected)
    assert not torch.allclose(draw(load_folder(img2img_checkpoint())), expected, atol=1e-3)


def test_no_text_is_taken_from_a_layer_that_is_not_there() -> None:
    with pytest.raises(ModelUnusable, match="has 3 layers: clip_skip 4 leaves none"):
        load_folder(img2img_checkpoint(), clip_skip=4)


# --- textual inversion ------------------------------------------------------------------------------------


def an_embedding(folder: Path, key: str = "emb_params", vectors: Any = None) -> Path:
    """A file in AUTOMATIC1111's layout, with three vectors by default."""
    if vectors is None:
        vectors = torch.randn((3, 32), generator=torch.Generator().manual_seed(1))
    save_file({key: vectors}, folder / "mine.safetensors")
    return folder / "mine.safetensors"


@pytest.mark.parametrize("key", ["emb_params", "<mine>"])
def test_a_word_of_textual_inversion_counts_as_in_diffusers(tmp_path: Path, key: str) -> None:
    import diffusers

    file = an_embedding(tmp_path, key)
    expected = diffusers.StableDiffusionImg2ImgPipeline.from_pretrained(img2img_checkpoint())
    expected.load_textual_inversion(
        str(tmp_path), weight_name=file.name, token="<mine>", local_files_only=True
    )
    added = load_folder(img2img_checkpoint(), embeddings=({"file": file, "token": "<mine>"},))
    words = {"prompt": "a portrait of <mine>, neon"}
    assert torch.equal(draw(added, **words), draw(expected, **words))
    assert not torch.equal(draw(added, **words), draw(img2img(), **words))
    # Each counts as three tokens, and is not cut in two.
    pieces = split_prompt("<mine> " * 70, added.tokenizer)
    assert [piece.text.count("<mine>") for piece in pieces] == [25, 25, 20]


@pytest.mark.parametrize(
    ("embedding", "reason"),
    [
        ({"vectors": torch.zeros((1, 768))}, "is for a text encoder of width 768, and this one has 32"),
        ({"vectors": torch.full((1, 32), float("nan"))}, "holds values that are not finite"),
        (
            {"key": "double_blocks.0.img_attn.x", "vectors": torch.zeros((1, 8))},
            "is for a text encoder of width 8, and this one has 32",
        ),
    ],
)
def test_an_embedding_that_does_not_fit_is_refused_in_one_line(
    tmp_path: Path, embedding: dict[str, Any], reason: str
) -> None:
    file = an_embedding(tmp_path, **embedding)
    with pytest.raises(ModelUnusable, match=f"its embedding mine.safetensors .*{reason}"):
        load_folder(img2img_checkpoint(), embeddings=({"file": file, "token": "<mine>"},))


def xl_embedding(folder: Path, **changes: Any) -> Path:
    random = torch.Generator().manual_seed(1)
    vectors = {
        "clip_l": torch.randn((2, 32), generator=random),
        "clip_g": torch.randn((2, 32), generator=random),
    }
    save_file(
        {key: vector for key, vector in (vectors | changes).items() if vector is not None},
        folder / "xl.safetensors",
    )
    return folder / "xl.safetensors"


def copy_of(family: str) -> Any:
    """The tiny pipeline, each of whose text encoders has a tokenizer of its own."""
    pipeline = copy.deepcopy(tiny(family))
    if hasattr(pipeline, "tokenizer_2"):
        pipeline.tokenizer_2 = copy.deepcopy(pipeline.tokenizer_2)
    return pipeline


def add_word(family: str, file: Path) -> Any:
    pipeline = copy_of(family)
    word = TextualInversion(file=file, token="<mine>")
    add_embeddings(pipeline, img2img_manifest().model_copy(update={"embeddings": (word,)}))
    return pipeline


@pytest.mark.parametrize("family", ["xl", "xl-refiner"])
def test_a_word_of_both_text_encoders_counts_as_in_diffusers(tmp_path: Path, family: str) -> None:
    file = xl_embedding(tmp_path)
    expected, vectors = copy_of(family), load_file(file)
    for number, key in (("", "clip_l"), ("_2", "clip_g")):
        tokenizer, encoder = (getattr(expected, f"{name}{number}") for name in ("tokenizer", "text_encoder"))
        if encoder is not None:
            expected.load_textual_inversion(
                vectors[key], token="<mine>", text_encoder=encoder, tokenizer=tokenizer
            )
    added = add_word(family, file)
    words = "a portrait of <mine>, neon"
    ours, theirs, without = (
        one.encode_prompt(words, device="cpu", do_classifier_free_guidance=False)[0]
        for one in (added, expected, tiny(family))
    )
    assert torch.equal(ours, theirs)
    assert not torch.allclose(ours, without, atol=1e-3)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"clip_l": None}, "a textual inversion embedding, with clip_g: it must hold clip_l and clip_g"),
        ({"clip_g": torch.zeros((2, 768))}, "width 768, and this one has 32"),
        ({"clip_g": torch.zeros((3, 32))}, "not as many vectors for one text encoder"),
    ],
)
def test_a_word_that_one_of_two_text_encoders_lacks_is_refused(
    tmp_path: Path, changes: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ModelUnusable, match=f"its embedding xl.safetensors .*{reason}"):
        add_word("xl", xl_embedding(tmp_path, **changes))
    with pytest.raises(ModelUnusable, match=r"with clip_g, clip_l: it must hold one tensor"):
        add_word("sd-epsilon", xl_embedding(tmp_path))


def test_an_embedding_needs_a_word_of_its_own(tmp_path: Path) -> None:
    file = an_embedding(tmp_path)
    with pytest.raises(ModelUnusable, match="already in tokenizer vocabulary"):
        load_folder(img2img_checkpoint(), embeddings=({"file": file, "token": "portrait</w>"},))


# --- schedulers -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("own", "options", "reason"),
    [
        ("EDMEulerScheduler", {}, "its noise is that of EDMEulerScheduler"),
        ("FlowMatchEulerDiscreteScheduler", {}, "its noise is that of FlowMatchEulerDiscreteScheduler"),
        ("EulerDiscreteScheduler", {"timestep_type": "continuous", "steps_offset": 1}, "continuous"),
    ],
)  # fmt: skip
def test_a_scheduler_that_does_not_suit_the_checkpoint_is_refused(
    checkpoint: Path, own: str, options: dict[str, Any], reason: str
) -> None:
    import diffusers

    getattr(diffusers, own)(**options).save_pretrained(checkpoint / "scheduler")
    index = checkpoint / "model_index.json"
    index.write_text(index.read_text().replace("DDIMScheduler", own))
    with pytest.raises(
        ModelUnusable, match=f"the sampler 'DDIM' of its manifest does not suit it: .*{reason}"
    ):
        load_folder(checkpoint, scheduler="ddim")
