"""Folders of diffusers, read without it, side by side with diffusers itself on small random networks."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import atonce
from atonce.core.errors import InputError, ModelFileError
from atonce.exchange.assemble import most_values
from atonce.exchange.diffusers_in import unet2d_config
from atonce.networks.unet2d import UNet2D, UNet2DConfig


@pytest.fixture(scope="module")
def diffusers() -> Any:
    """The package; it imports torchvision, which needs help beside a torch it was not built for."""
    shim = Path(__file__).resolve().parent.parent / "evaluation" / "torchvision_shim.py"
    spec = importlib.util.spec_from_file_location("torchvision_shim", shim)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if importlib.util.find_spec("torchvision") is not None:
        module.prepare("diffusers")
    package = pytest.importorskip("diffusers")
    package.utils.logging.set_verbosity_error()
    package.utils.logging.disable_progress_bar()
    return package


ADM: dict[str, Any] = {
    "sample_size": 16,
    "block_out_channels": (32, 64, 64),
    "layers_per_block": 1,
    "down_block_types": ("ResnetDownsampleBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D"),
    "downsample_type": "resnet",
    "upsample_type": "resnet",
    "resnet_time_scale_shift": "scale_shift",
    "attn_norm_num_groups": 32,
    "attention_head_dim": 32,
    "num_class_embeds": 5,
}
DDPM: dict[str, Any] = {  # as the public DDPM checkpoints
    "sample_size": 8,
    "block_out_channels": (32, 64),
    "layers_per_block": 2,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": None,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "downsample_padding": 0,
    "norm_eps": 1e-6,
}
PLAIN: dict[str, Any] = {  # the class's own habits, few groups, one channel
    "sample_size": 8,
    "in_channels": 1,
    "out_channels": 1,
    "block_out_channels": (16, 24),
    "layers_per_block": 1,
    "down_block_types": ("AttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "AttnUpBlock2D"),
    "norm_num_groups": 4,
    "mid_block_scale_factor": 1.5,
    "center_input_sample": True,
    "time_embedding_dim": 40,
}
BARE: dict[str, Any] = {
    **PLAIN,
    "add_attention": False,
    "center_input_sample": False,
    "resnet_time_scale_shift": "scale_shift",
    "down_block_types": ("DownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "UpBlock2D"),
}
UNNORMED = {**ADM, "attn_norm_num_groups": None, "num_class_embeds": None}
NETWORKS = {"adm": ADM, "ddpm": DDPM, "plain": PLAIN, "bare": BARE, "middle without norm": UNNORMED}


def network(diffusers: Any, values: dict[str, Any]) -> Any:
    """A network of theirs with weights of ordinary size, the norms' too."""
    made = diffusers.UNet2DModel(**values).eval()
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in made.parameters():
            p.copy_(torch.randn(p.shape, generator=g) * (0.3 if p.dim() == 1 else p[0].numel() ** -0.5) + (p.dim() == 1))
    return made


def saved(folder: Path, net: Any, scheduler: Any, **options: Any) -> Path:
    net.save_pretrained(folder / "unet", **options)
    scheduler.save_pretrained(folder / "scheduler")
    index = {
        "_class_name": "SomePipeline",
        "unet": ["diffusers", "UNet2DModel"],
        "scheduler": ["diffusers", type(scheduler).__name__],
    }
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def inputs(net: Any, n: int = 3) -> tuple[Tensor, Tensor | None]:
    c, size = net.config.in_channels, net.config.sample_size
    x = torch.randn(n, c, size, size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return x, torch.tensor([3, 0, 4])[:n] if net.config.num_class_embeds else None


@torch.no_grad()
@pytest.mark.parametrize("name", NETWORKS)
def test_consistency_networks(name: str, diffusers: Any, tmp_path: Path) -> None:
    """The boundary form of the paper around their network at 1000 ln(sigma) / 4."""
    net = network(diffusers, NETWORKS[name])
    scheduler = diffusers.CMStochasticIterativeScheduler(sigma_min=0.004, sigma_max=60.0, sigma_data=0.4)
    model = atonce.load(saved(tmp_path, net, scheduler))
    assert (model.kind, model.sigma_end, model.sigma_max, model.sigma_data) == ("consistency", 0.004, 60.0, 0.4)
    assert "UNet2DModel" in str(model.card["found"])
    x, label = inputs(net)
    sigma = torch.tensor([60.0, 0.5, 0.01], dtype=torch.float64)
    s = sigma[:, None, None, None]
    x = x * (s**2 + 0.16).sqrt()
    c_skip, c_out = 0.16 / ((s - 0.004) ** 2 + 0.16), (s - 0.004) * 0.4 / (s**2 + 0.16).sqrt()
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 1e-4)):
        u, t = (x / (s**2 + 0.16).sqrt()).to(dtype), (1000 * 0.25 * sigma.log()).to(dtype)
        raw = net.to(dtype)(u, t, class_labels=label).sample
        wanted = c_skip * x + c_out * raw.double()
        found = model.to(dtype)(x.to(dtype), sigma.to(dtype), label).double()
        assert (found - wanted).abs().max() <= tolerance * wanted.abs().max()


@torch.no_grad()
@pytest.mark.parametrize("steps", [1, 2])
def test_the_pipeline_makes_the_same_images(steps: int, diffusers: Any, tmp_path: Path) -> None:
    net = network(diffusers, {**ADM, "num_class_embeds": None})
    pipeline = diffusers.ConsistencyModelPipeline(net, diffusers.CMStochasticIterativeScheduler(num_train_timesteps=40))
    pipeline.set_progress_bar_config(disable=True)
    pipeline.save_pretrained(tmp_path)
    model = atonce.load(tmp_path)
    z = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(5))
    if steps == 1:
        wanted = pipeline(batch_size=2, num_inference_steps=1, latents=z, output_type="pt").images
        found = model.sample(2, noise=z)
    else:  # theirs draws the noise of the second step from a generator; ours is given the same way by hand
        generator = torch.Generator().manual_seed(9)
        wanted = pipeline(
            batch_size=2, timesteps=[22, 0], num_inference_steps=None, latents=z, output_type="pt", generator=generator
        )
        wanted, scheduler = wanted.images, diffusers.CMStochasticIterativeScheduler(num_train_timesteps=40)
        scheduler.set_timesteps(timesteps=[22, 0])
        noise, generator = [], torch.Generator().manual_seed(9)
        noise = [torch.randn(z.shape, generator=generator) for _ in range(2)]
        first, second, *_ = (float(v) for v in scheduler.sigmas)
        # Its grid goes by index, so [22, 0] are the levels at indices 0 and 22, and noise of level sigma_min is added last.
        x = model(z * 80.0, first).clamp(-1, 1) + noise[0] * (second**2 - 0.002**2) ** 0.5
        found = model(x, second).clamp(-1, 1)
    assert ((found / 2 + 0.5).clamp(0, 1) - wanted).abs().max() <= 1e-4


SCHEDULERS: dict[str, dict[str, Any]] = {
    "DDPMScheduler": {},
    "DDIMScheduler": {"prediction_type": "v_prediction", "beta_schedule": "scaled_linear", "num_train_timesteps": 500},
    "PNDMScheduler": {"beta_schedule": "squaredcos_cap_v2"},
    "HeunDiscreteScheduler": {},
    "DDPMParallelScheduler": {"prediction_type": "sample", "beta_schedule": "sigmoid"},
}


@torch.no_grad()
@pytest.mark.parametrize("name", SCHEDULERS)
def test_steps_of_a_variance_preserving_process(name: str, diffusers: Any, tmp_path: Path) -> None:
    """The denoiser at sigma_t is what the scheduler says of the clean image at step t."""
    net = network(diffusers, DDPM)
    scheduler = getattr(diffusers, name)(**SCHEDULERS[name])
    model = atonce.load(saved(tmp_path, net, scheduler))
    assert model.kind == "denoiser"
    abar = scheduler.alphas_cumprod.double()
    every = ((1 - abar) / abar).sqrt()
    assert model.sigma_min == pytest.approx(float(every[0]))
    assert model.sigma_max == pytest.approx(float(every[-1]))
    x, _ = inputs(net)
    t = torch.tensor([0, len(abar) // 2, len(abar) - 10])
    a = abar[t][:, None, None, None]
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 1e-4)):
        raw = net.to(dtype)(x.to(dtype), t).sample.double()
        kind = SCHEDULERS[name].get("prediction_type", "epsilon")
        wanted = {
            "epsilon": (x - (1 - a).sqrt() * raw) / a.sqrt(),
            "v_prediction": a.sqrt() * x - (1 - a).sqrt() * raw,
            "sample": raw,
        }[kind]
        found = model.to(dtype)((x / a.sqrt()).to(dtype), every[t].to(dtype)).double()
        # Each image by its own largest value: at the last steps of an epsilon network the clean image is huge.
        worst = ((found - wanted).abs().amax((1, 2, 3)) / wanted.abs().amax((1, 2, 3))).max()
        assert worst <= tolerance


@torch.no_grad()
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_edm_schedulers(prediction: str, diffusers: Any, tmp_path: Path) -> None:
    net = network(diffusers, PLAIN)
    scheduler = diffusers.EDMEulerScheduler(sigma_min=0.01, sigma_max=50.0, sigma_data=0.6, prediction_type=prediction)
    model = atonce.load(saved(tmp_path, net, scheduler))
    assert (model.kind, model.sigma_end, model.sigma_max, model.sigma_data) == ("denoiser", 0, 50.0, 0.6)
    x, _ = inputs(net)
    for sigma in (50.0, 1.0, 0.02):
        s = torch.tensor(sigma, dtype=torch.float64)
        raw = net.double()(scheduler.precondition_inputs(x * s, s), scheduler.precondition_noise(s)).sample
        wanted = scheduler.precondition_outputs(x * s, raw, s)
        found = model.to(torch.float64)(x * s, sigma)
        assert (found - wanted).abs().max() <= 1e-9 * wanted.abs().max()


@torch.no_grad()
def test_a_teacher_of_steps_samples_what_its_equation_gives(diffusers: Any, tmp_path: Path) -> None:
    """One Euler step from the highest level to 0 is the denoiser there; more steps change it."""
    model = atonce.load(saved(tmp_path, network(diffusers, {**DDPM, "dropout": 0.1}), diffusers.DDPMScheduler()))
    z = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    one = model.sample(2, steps=1, noise=z, sampler="euler")
    assert torch.allclose(one, model(z * model.sigma_max, model.sigma_max).clamp(-1, 1), atol=1e-4)
    assert not torch.equal(one, model.sample(2, steps=4, noise=z))


@torch.no_grad()
def test_every_form_of_weights_is_one(diffusers: Any, tmp_path: Path) -> None:
    """Safetensors, shards, torch.save's .bin, half precision by its name, the network's folder alone."""
    net, scheduler = network(diffusers, PLAIN), diffusers.CMStochasticIterativeScheduler()
    x = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    wanted = atonce.load(saved(tmp_path / "a", net, scheduler))(x, 3.0)
    options: dict[str, dict[str, Any]] = {
        "b": {"safe_serialization": False},
        "c": {"max_shard_size": "20KB"},
        "d": {"variant": "fp16"},
    }
    for name, how in options.items():
        assert torch.equal(atonce.load(saved(tmp_path / name, net, scheduler, **how))(x, 3.0), wanted), name
    assert len(list((tmp_path / "c" / "unet").glob("*.safetensors"))) > 1
    assert torch.equal(atonce.load(tmp_path / "a" / "unet")(x, 3.0), wanted)  # the scheduler lies beside it
    assert torch.equal(atonce.load(tmp_path / "a" / "unet" / "diffusion_pytorch_model.safetensors")(x, 3.0), wanted)
    (tmp_path / "a" / "unet").rename(tmp_path / "alone")
    with pytest.raises(ModelFileError, match=r"without a scheduler.*kind='consistency'"):
        atonce.load(tmp_path / "alone")
    assert torch.equal(atonce.load(tmp_path / "alone", kind="consistency")(x, 3.0), wanted)


def test_names_of_old_attention_layers(diffusers: Any, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = saved(tmp_path, network(diffusers, DDPM), diffusers.DDPMScheduler())
    wanted = atonce.load(folder).sample(1, steps=2)
    file = folder / "unet" / "diffusion_pytorch_model.safetensors"
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    state = load_file(file)
    for new, former in old.items():
        state = {k.replace(f".{new}.", f".{former}.") if "attentions" in k else k: v for k, v in state.items()}
    assert any("proj_attn" in name for name in state)
    save_file(state, file)
    assert torch.equal(atonce.load(folder).sample(1, steps=2), wanted)


PUBLISHED: dict[str, dict[str, Any]] = {
    "cd_imagenet64": {
        "sample_size": 64,
        "block_out_channels": [192, 384, 576, 768],
        "layers_per_block": 3,
        "down_block_types": ["ResnetDownsampleBlock2D", *["AttnDownBlock2D"] * 3],
        "up_block_types": [*["AttnUpBlock2D"] * 3, "ResnetUpsampleBlock2D"],
        "downsample_type": "resnet",
        "upsample_type": "resnet",
        "resnet_time_scale_shift": "scale_shift",
        "attn_norm_num_groups": 32,
        "attention_head_dim": 64,
        "num_class_embeds": 1000,
    },
    "cd_bedroom256": {
        "sample_size": 256,
        "block_out_channels": [256, 256, 512, 512, 1024, 1024],
        "layers_per_block": 2,
        "down_block_types": [*["ResnetDownsampleBlock2D"] * 3, *["AttnDownBlock2D"] * 3],
        "up_block_types": [*["AttnUpBlock2D"] * 3, *["ResnetUpsampleBlock2D"] * 3],
        "downsample_type": "resnet",
        "upsample_type": "resnet",
        "attention_head_dim": 64,
    },
    "ddpm-cifar10-32": {
        **DDPM,
        "sample_size": 32,
        "block_out_channels": [128, 256, 256, 256],
        "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
    },
}


@pytest.mark.parametrize(
    ("name", "count"), [("cd_imagenet64", 295_899_267), ("cd_bedroom256", 526_304_771), ("ddpm-cifar10-32", 35_746_307)]
)
def test_the_published_networks(name: str, count: int, diffusers: Any) -> None:
    """Ours has their names and shapes, and as many values as the files in OpenAI's form."""
    values = json.loads(json.dumps(PUBLISHED[name]))
    with torch.device("meta"):
        ours = UNet2D(unet2d_config(values, {}), None).state_dict()
        theirs = diffusers.UNet2DModel(**PUBLISHED[name]).state_dict()
    assert {k: v.shape for k, v in ours.items()} == {k: v.shape for k, v in theirs.items()}
    assert sum(v.numel() for v in ours.values()) == count
    assert count <= most_values(unet2d_config(values, {})) <= 3 * count


def described(folder: Path, unet_values: dict[str, Any], scheduler_values: dict[str, Any] | None = None, **parts: Any) -> Path:
    for name in ("unet", "scheduler"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    index = {"_class_name": "X", "unet": ["diffusers", "UNet2DModel"], "scheduler": ["diffusers", "DDPMScheduler"], **parts}
    (folder / "model_index.json").write_text(json.dumps(index))
    values = {"_class_name": "UNet2DModel", "sample_size": 8, **unet_values}
    (folder / "unet" / "config.json").write_text(json.dumps(values))
    told = {"_class_name": "DDPMScheduler", **(scheduler_values or {})}
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(told))
    return folder


@pytest.mark.parametrize(
    ("unet", "scheduler", "parts", "text"),
    [
        ({"time_embedding_type": "fourier"}, {}, {}, "time_embedding_type 'fourier'.*it reads positional"),
        ({"down_block_types": ["SkipDownBlock2D"] * 4}, {}, {}, "network down is .*SkipDownBlock2D"),
        ({"class_embed_type": "timestep"}, {}, {}, "class_embed_type"),
        ({"out_channels": 6}, {}, {}, "out_channels '6'"),
        ({"sample_size": [8, 16]}, {}, {}, "square images"),
        ({"sample_size": None}, {}, {}, "sample_size is None"),
        ({"surprise": 1}, {}, {}, "the option 'surprise'"),
        ({"norm_num_groups": 5}, {}, {}, "multiples of the 5 groups"),
        ({"_class_name": "UNet2DConditionModel"}, {}, {}, "holds a 'UNet2DConditionModel'"),
        ({"layers_per_block": 10**9}, {}, {}, "above 64"),
        ({}, {"prediction_type": "flow"}, {}, "prediction 'flow'"),
        ({}, {"trained_betas": [0.1]}, {}, "trained_betas"),
        ({}, {"rescale_betas_zero_snr": True}, {}, "rescale_betas_zero_snr"),
        ({}, {"beta_end": "high"}, {}, "beta_end is 'high'"),
        ({}, {"num_train_timesteps": 10**9}, {}, "1000000000 steps"),
        ({}, {}, {"unet": ["my_code", "MyNet"]}, r"brings its own code for unet \(my_code\).*never executed"),
        ({}, {}, {"scheduler": ["diffusers", "LCMScheduler"]}, "scheduler 'LCMScheduler', which this version does not know"),
        ({}, {}, {"unet": None}, "without unet"),
        ({}, {}, {"vae": ["diffusers", "AutoencoderKL"]}, "with vae beside its network"),
        ({}, {}, {}, "has no weights: diffusion_pytorch_model.safetensors"),
    ],
)
def test_what_is_refused_says_why(
    unet: dict[str, Any], scheduler: dict[str, Any], parts: dict[str, Any], text: str, tmp_path: Path
) -> None:
    wide = {"block_out_channels": [32] * 4, "layers_per_block": 1}
    with pytest.raises(ModelFileError, match=text) as caught:
        folder = described(tmp_path / "m", {**wide, **unet}, scheduler, **parts)
        if "above 64" in text:  # what is too large is seen when the weights are there
            (folder / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{}      ")
        atonce.load(folder)
    assert "\n" not in str(caught.value)


def test_shards_outside_the_folder_are_refused(tmp_path: Path) -> None:
    folder = described(tmp_path / "m", {"block_out_channels": [32] * 4})
    for place in ("../../secret.safetensors", "/etc/passwd", "..", 3):
        index = folder / "unet" / "diffusion_pytorch_model.safetensors.index.json"
        index.write_text(json.dumps({"weight_map": {"conv_in.weight": place}}))
        with pytest.raises(ModelFileError, match="names files outside its folder"):
            atonce.load(folder)


def test_a_kind_that_does_not_fit(tmp_path: Path) -> None:
    folder = described(tmp_path / "m", {"block_out_channels": [32] * 4})
    with pytest.raises(ModelFileError, match="DDPMScheduler is that of a denoiser, kind='consistency' does not fit"):
        atonce.load(folder, kind="consistency")
    with pytest.raises(InputError, match="'consistency' or 'denoiser'"):
        atonce.load(folder, kind="both")


def test_it_can_be_written_and_read_again(diffusers: Any, tmp_path: Path) -> None:
    from atonce.networks.build import ARCHITECTURES

    if UNet2DConfig not in ARCHITECTURES.values():
        pytest.skip("networks/build.py does not list UNet2DConfig yet, so its models are not saved")
    model = atonce.load(saved(tmp_path / "a", network(diffusers, ADM), diffusers.CMStochasticIterativeScheduler()))
    model.save_pretrained(tmp_path / "b")
    x = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    again = atonce.load(tmp_path / "b")
    assert again.config == model.config
    assert torch.equal(again(x, 4.0, 1), model(x, 4.0, 1))
