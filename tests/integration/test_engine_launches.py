"""What a step asks of a GPU, seen without one.

The device `meta` stands for it: its tensors have no values, so that whatever waits for one fails. What waits
without reading, a blocking copy to the device, is seen by its arguments.
"""

import copy
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from avatarforge.diffusion.engines.architectures import Embedding, find_architecture
from avatarforge.diffusion.engines.cpu_pool import CpuPool
from avatarforge.diffusion.engines.denoiser import Denoiser
from avatarforge.diffusion.engines.engine import EngineRequest
from avatarforge.diffusion.engines.samplers import Sampler, Trajectory
from tests.families import photo, scheduled, tiny

# Euler's schedulers in diffusers convert tensors in a way that NumPy gives up.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

GPU = torch.device("meta")
REQUEST = EngineRequest(
    image=photo(1), prompt="neon portrait", seed=1, strength=1.0, steps=4, guidance=4.0, image_guidance=1.5
)


class Launches(TorchDispatchMode):
    """Counts the calls that reach the GPU, and notes copies for which the host waits."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()
        self.waits: list[str] = []

    def __torch_dispatch__(
        self,
        function: Any,
        types: Any,
        arguments: tuple[Any, ...] = (),
        options: Mapping[str, Any] | None = None,
    ) -> Any:
        options = dict(options or {})
        result = function(*arguments, **options)
        given = _tensors((arguments, options))
        name = function.overloadpacket.__name__
        # Of what may return its argument only copies take a launch.
        is_launch = not function.is_view or given[0].device != GPU
        if is_launch and any(one.device == GPU for one in (*given, *_tensors(result))):
            self.calls[name] += 1
            names = [each.name for each in function._schema.arguments]
            if _waits(name, given, dict(zip(names, arguments, strict=False)) | options):
                self.waits.append(name)
        return result


def _tensors(values: Any) -> list[torch.Tensor]:
    return [one for one in tree_leaves(values) if isinstance(one, torch.Tensor)]


def _waits(name: str, given: Sequence[torch.Tensor], arguments: Mapping[str, Any]) -> bool:
    if name in {"index", "index_put", "index_put_", "_index_put_impl_"}:
        # An index on the CPU is copied and waited for; of a mask the number of places is read.
        return any(one.device != GPU or one.dtype is torch.bool for one in given[1:])
    if name in {"to", "_to_copy", "copy_"}:
        return given[-1].device != GPU and not arguments.get("non_blocking")
    # The end of `torch.tensor` with a device, which copies what it is given.
    return name == "detach_"


def launch_step(pipeline: Any, guidances: Sequence[float], compilation: Any = "none") -> Launches:
    """Run the last of four steps of images with these guidances."""
    kind = find_architecture(pipeline)
    assert kind is not None
    architecture, launches = kind(pipeline), Launches()
    architecture.compile = lambda mode: None  # type: ignore[method-assign]  # only its padding is of interest
    sampler = Sampler(pipeline.scheduler, kind.strength_use)
    plan = sampler.plan(REQUEST.steps, 1.0)
    unet = type(pipeline.unet).from_config(pipeline.unet.config).eval().to(GPU)
    architecture.device, architecture._unet = GPU, unet
    text = Embedding(hidden=torch.empty((1, 77, unet.config.cross_attention_dim), device=GPU))
    latents = torch.empty((unet.config.out_channels, 8, 8), device=GPU)
    trajectories, conditions = [], []
    with torch.inference_mode():
        for guidance in guidances:
            request = replace(REQUEST, guidance=guidance)
            texts = dict.fromkeys(architecture.list_texts(request), text)
            conditions.append(architecture.build_conditions(request, texts, latents, (32, 32)))
            trajectory = Trajectory.start(plan, latents, torch.Generator())
            trajectory.steps_done = len(plan) - 1
            trajectories.append(trajectory)
        denoiser = Denoiser(architecture, CpuPool(GPU, 1), compilation)
        with launches:
            denoiser.step(trajectories, conditions)
    return launches


@pytest.mark.parametrize(
    "wait",
    [
        lambda tensor, index: tensor[index],
        lambda tensor, index: index.to(GPU),
        lambda tensor, index: torch.tensor([0, 1], device=GPU),
        lambda tensor, index: tensor[:2].copy_(torch.zeros((2, 2))),
    ],
)
def test_it_is_seen_what_makes_the_host_wait(wait: Callable[[torch.Tensor, torch.Tensor], Any]) -> None:
    with torch.inference_mode(), Launches() as launches:
        wait(torch.empty((3, 2), device=GPU), torch.tensor([0, 1]))
    assert launches.waits


@pytest.mark.parametrize(
    ("family", "scheduler", "compilation"),
    [
        ("sd-epsilon", "ddim", "none"),
        ("edit", "euler-ancestral", "none"),
        ("sd-distilled", "dpm++-2m-karras", "none"),
        ("sd-v", "ddim", "compile"),
    ],
)
def test_no_step_waits_for_the_gpu(family: str, scheduler: str, compilation: str) -> None:
    launches = launch_step(scheduled(tiny(family), scheduler), [4.0, 1.0, 7.5], compilation)
    assert launches.calls["conv2d"]
    assert launches.waits == []


@pytest.mark.parametrize("family", ["sd-epsilon", "edit"])
def test_eight_images_take_as_many_launches_as_two(family: str) -> None:
    pipeline = tiny(family)
    assert launch_step(pipeline, [4.0] * 8).calls == launch_step(pipeline, [4.0] * 2).calls


@pytest.mark.parametrize(
    ("family", "decoded_in"), [("sd-epsilon", "float16"), ("edit", "float16"), ("xl", "float32")]
)
def test_only_the_autoencoder_of_xl_is_kept_from_half_precision(family: str, decoded_in: str) -> None:
    pipeline = copy.deepcopy(tiny(family)).to(torch.float16)
    kind = find_architecture(pipeline)
    assert kind is not None
    assert pipeline.vae.config.force_upcast
    kind(pipeline)
    assert str(pipeline.vae.dtype) == f"torch.{decoded_in}"
