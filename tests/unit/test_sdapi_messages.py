"""Requests of AUTOMATIC1111's API, read for models with one dial or the other."""

import json
from typing import Any

import pytest

from avatarforge.domain.errors import InvalidRequest
from avatarforge.domain.jobs import GenerationParameters
from avatarforge.ingress.sdapi.messages import Img2Img
from tests.factories import a_manifest

PLAIN = a_manifest()
EDITING = a_manifest(family="instruct-pix2pix")


def parameters(manifest: Any = EDITING, **fields: Any) -> GenerationParameters:
    return Img2Img.parse(json.dumps(fields).encode()).read_submission(manifest).parameters


@pytest.mark.parametrize(
    ("strength", "image_guidance"), [(0, 3), (0.4, 2.2), (0.75, 1.5), (1, 1), (7, 1), (-1, 3)]
)
def test_the_strength_turns_the_dial_of_a_model_that_edits_and_is_never_refused(
    strength: float, image_guidance: float
) -> None:
    asked = parameters(denoising_strength=strength, cfg_scale=7)
    assert (asked.strength, asked.image_guidance, asked.guidance) == (None, image_guidance, 7)


def test_an_image_guidance_that_is_sent_counts_more_than_the_strength() -> None:
    assert parameters(denoising_strength=0.4, image_cfg_scale=1.8).image_guidance == 1.8


def test_without_a_guidance_above_1_the_dial_has_no_effect_and_is_passed_over() -> None:
    assert parameters(denoising_strength=0.4, image_cfg_scale=1.8, cfg_scale=1).image_guidance is None
    manifest = a_manifest(family="instruct-pix2pix", defaults={"guidance": 1})
    assert parameters(manifest, denoising_strength=0.4).image_guidance is None


def test_what_is_left_out_stays_the_models() -> None:
    asked = parameters()
    assert (asked.strength, asked.image_guidance, asked.guidance) == (None, None, None)


def test_a_model_with_strength_has_no_use_for_an_image_guidance() -> None:
    asked = parameters(PLAIN, denoising_strength=0.4, image_cfg_scale=99)
    assert (asked.strength, asked.image_guidance) == (0.4, None)


def test_a_wrong_image_guidance_is_refused_by_this_apis_name() -> None:
    with pytest.raises(InvalidRequest, match=r"^image_cfg_scale is '9\.0'.* from 1 to 5"):
        parameters(image_cfg_scale=9)
