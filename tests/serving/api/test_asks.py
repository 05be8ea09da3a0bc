"""What requests become for an engine, on small models of each kind; colour, guidance and denoisers, which the gallery lacks."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image

import atonce
from atonce.model import ConsistencyModel, Guidance, ModelConfig
from atonce.networks.unet import UNetConfig
from atonce.preconditioning import Preconditioning
from atonce.serving.answers import calls_of
from atonce.serving.edits import plan_edit, run_edit
from atonce.serving.errors import ServiceError
from atonce.serving.generate import DENOISER_STEPS, ask_of, with_seed
from atonce.serving.schemas import EDITS, GenerateRequest
from atonce.serving.settings import ServeSettings

EDM, BOUNDARY = Preconditioning("edm", 0.5, 0.0), Preconditioning("boundary", 0.5, 0.002)


def model_of(kind: str = "consistency", channels: int = 1, labels: int = 0, **changes) -> ConsistencyModel:
    network = UNetConfig(size=8, image_channels=channels, channels=8, channel_mult=(1,), blocks=1, attention=(), labels=labels)
    preconditioning = EDM if kind == "denoiser" else BOUNDARY
    torch.manual_seed(0)
    return ConsistencyModel(ModelConfig(network, preconditioning, kind=kind, **changes))


class Alone:
    """An engine that is only a model."""

    def __init__(self, model: ConsistencyModel) -> None:
        self.model, self.settings = model, ServeSettings()

    def calls(self, **_):
        import contextlib

        return contextlib.nullcontext(self.model)


def picture(array: np.ndarray) -> str:
    content = io.BytesIO()
    Image.fromarray(array.astype(np.uint8)).save(content, "PNG")
    return base64.b64encode(content.getvalue()).decode()


def request(**values) -> GenerateRequest:
    return GenerateRequest.model_validate(values)


def test_a_denoiser_has_more_steps_by_default():
    denoiser = model_of("denoiser")
    ask = ask_of(denoiser, request())
    assert len(ask.sigmas) == DENOISER_STEPS
    assert calls_of(denoiser, ask) == 2 * DENOISER_STEPS - 1
    assert len(ask_of(denoiser, request(steps=1)).sigmas) == 1
    assert ask_of(denoiser, request(sigmas=[80.0, 1.0])).sigmas == (80.0, 1.0)
    assert len(ask_of(model_of(), request()).sigmas) == 1
    euler = model_of("denoiser", sampler="euler")
    assert calls_of(euler, ask_of(euler, request(steps=5))) == 5


def test_free_guidance_counts_two_calls():
    free = model_of("denoiser", labels=3, guidance=Guidance("free"))
    ask = ask_of(free, request(steps=3, guidance=2.0, labels=1))
    assert calls_of(free, ask) == 2 * 5
    assert calls_of(free, ask_of(free, request(steps=3, labels=1))) == 5


def test_a_fixed_scale_is_the_only_one():
    fixed = model_of(labels=3, guidance=Guidance("fixed", (2.0,)))
    assert ask_of(fixed, request(guidance=2.0, labels=1)).guidance == 2.0
    with pytest.raises(ServiceError, match="was fixed") as caught:
        ask_of(fixed, request(guidance=3.0, labels=1))
    assert caught.value.param == "guidance"


def test_a_missing_seed_is_drawn_once():
    seeds = {ask_of(model_of(), request()).seed for _ in range(5)}
    assert len(seeds) == 5
    assert all(0 <= seed < 1 << 32 for seed in seeds)
    whole = with_seed(request(n=2))
    assert whole.seed is not None
    assert with_seed(whole) is whole
    assert with_seed(request(seeds=[1, 2])).seed is None
    assert "seed" in whole.model_fields_set
    between = EDITS["interpolate"].model_validate({"seeds": [1, 2]})
    assert with_seed(between) is between


def test_denoisers_are_not_edited_but_denoise():
    grey = picture(np.arange(64).reshape(8, 8))
    with pytest.raises(ServiceError, match="is a denoiser"):
        plan_edit(model_of("denoiser"), "stroke", EDITS["stroke"].model_validate({"image": grey}), ServeSettings())
    wanted = EDITS["denoise"].model_validate({"image": grey, "sigma": 0.5})
    assert run_edit(Alone(model_of("denoiser")), "denoise", wanted).images.shape == (1, 1, 8, 8)


def test_models_of_no_pictures_are_not_edited():
    wanted = EDITS["stroke"].model_validate({"image": picture(np.zeros((8, 8)))})
    for model in (model_of(channels=4), model_of(clip=None)):
        with pytest.raises(ServiceError, match="no grey or RGB pictures") as caught:
            plan_edit(model, "stroke", wanted, ServeSettings())
        assert caught.value.param == "model"


def test_colour_models_colorize_and_keep_grey_values():
    model = model_of(channels=3)
    array = np.arange(64).reshape(8, 8) * 3 + 20
    wanted = {"image": picture(array), "seed": 2, "steps": 3, "n": 2}
    made = run_edit(Alone(model), "colorize", EDITS["colorize"].model_validate(wanted)).images
    grey = torch.from_numpy(array).float()[None] / 127.5 - 1
    right = atonce.edit.colorize(model, grey.expand(2, 1, 8, 8), seed=2, steps=3)
    assert torch.allclose(made, right, atol=1e-6)
    assert torch.allclose(atonce.edit.to_grey(made)[:, 0], grey.expand(2, 8, 8), atol=1e-4)
    wanted = {"image": picture(array), "grey": True, "seed": 2}
    made = run_edit(Alone(model), "restore", EDITS["restore"].model_validate(wanted)).images
    assert torch.allclose(atonce.edit.to_grey(made)[:, 0], grey, atol=1e-4)


def test_the_border_of_a_padded_picture_is_made():
    model = model_of()
    wide = np.full((4, 8), 200)
    request_of = {"image": picture(wide), "fit": "pad", "seed": 1, "steps": 2}
    plan = plan_edit(model, "inpaint", EDITS["inpaint"].model_validate(request_of), ServeSettings())
    assert plan.mask[0, 0].all(1).tolist() == [True, True, False, False, False, False, True, True]
    made = run_edit(Alone(model), "inpaint", EDITS["inpaint"].model_validate(request_of)).images
    assert (atonce.to_uint8(made)[0, 0, 2:6] == 200).all()


def test_stopping_ends_the_work_and_a_deadline_is_a_504():
    import threading
    import time
    from concurrent.futures import CancelledError

    wanted = EDITS["stroke"].model_validate({"image": picture(np.zeros((8, 8))), "steps": 5})
    stop = threading.Event()
    stop.set()
    with pytest.raises(CancelledError):
        run_edit(Alone(model_of()), "stroke", wanted, stop=stop)
    with pytest.raises(ServiceError) as caught:
        run_edit(Alone(model_of()), "stroke", wanted, deadline=time.monotonic() - 1)
    assert caught.value.status == 504
