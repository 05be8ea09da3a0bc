"""What the service is asked and what it answers, as it stands in the OpenAPI document.

Requests are strict: a number is no string, unknown fields are refused, and what a field means is said where it is declared.
Limits that an owner can set (images and steps of one request) are checked where the request is handled, not here.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from atonce.core.choices import Fit

Format = Literal["png", "webp", "jpeg", "npz"]
Response = Literal["json", "binary", "grid"]

MOST_IMAGES = 1_000_000
MOST_STEPS = 1_000
MOST_PICTURES = 1_024
MOST_SIZE = 4096  # pixels, of one side of an outpainting
_SIGNED = 1 << 63

EXAMPLE_PICTURE = (
    "iVBORw0KGgoAAAANSUhEUgAAAAgAAAAICAAAAADhZOFXAAAARklEQVR42gXBYRVAMBgAwHt7/vsiaGCaLIJGIqyCBp4EI4E1III7lLYFaG99i0Gelh55"
    "T+LqbpI4GUm+WeQP01PqAdZW8QOg+BHx1aT2vAAAAABJRU5ErkJggg=="
)
"""An 8x8 grey PNG of a handwritten zero, for examples that run."""
EXAMPLE_MASK = "iVBORw0KGgoAAAANSUhEUgAAAAgAAAAICAAAAADhZOFXAAAAFklEQVR42mNkYGBg+M/AwMDEAAXkMQBFRQEPJug6iwAAAABJRU5ErkJggg=="
"""An 8x8 PNG whose right half is white, for examples that run."""


def _as_whole(value: Any) -> Any:
    """In JSON 2.0 is a whole number too."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


_WHOLE = BeforeValidator(_as_whole)
Number = Annotated[float, Field(allow_inf_nan=False)]
Name = Annotated[str, Field(min_length=1, max_length=200)]
Seed = Annotated[int, Field(ge=-_SIGNED, le=_SIGNED - 1), _WHOLE]
Label = Annotated[int, Field(ge=0, le=1 << 31), _WHOLE] | Name
Labels = Label | Annotated[list[Label], Field(min_length=1, max_length=MOST_IMAGES, fail_fast=True)]
Sigmas = Annotated[list[Annotated[Number, Field(ge=0)]], Field(min_length=1, max_length=MOST_STEPS, fail_fast=True)]
Steps = Annotated[int, Field(ge=1, le=MOST_STEPS), _WHOLE]
Count = Annotated[int, Field(ge=1, le=MOST_IMAGES), _WHOLE]
Picture = Annotated[str, Field(min_length=1)]
Pictures = Picture | Annotated[list[Picture], Field(min_length=1, max_length=MOST_PICTURES, fail_fast=True)]
Side = Annotated[int, Field(ge=1, le=MOST_SIZE), _WHOLE]
Place = Annotated[int, Field(ge=0, le=MOST_SIZE), _WHOLE]
Guidance = Annotated[Number | None, Field(description="Scale of classifier-free guidance, for models that know it")]


class Strict(BaseModel):
    """A request: nothing is converted, nothing is ignored."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Wanted(Strict):
    """Which model, and how its images come back."""

    model: Name | None = Field(default=None, description="Name of a model that is served; default: the first one")
    version: Name | None = Field(default=None, description="A version of it; default: the one that serves this caller")
    format: Format = Field(
        default="png", description="How images are written; npz: arr_0, uint8 [N, H, W, C], and arr_1, labels"
    )
    response: Response | None = Field(
        default=None,
        description="json: base64 with the seed and the label of each; binary: the image itself, several as a zip, an npz "
        "always as one; grid: one picture of all, so not with npz. Default: what the Accept header asks for, else json",
    )


class GenerateRequest(Wanted):
    """Images from noise."""

    model_config = ConfigDict(json_schema_extra={"example": {"n": 4, "seed": 7}})

    n: Count | None = Field(default=None, description="Number of images; default: as many as labels or seeds are given, else 1")
    seed: Seed | None = Field(
        default=None, description="Seed of the noise and of labels that are not given; default: drawn, and said"
    )
    seeds: Annotated[list[Seed], Field(min_length=1, max_length=MOST_IMAGES, fail_fast=True)] | None = Field(
        default=None, description="One seed for each image, instead of seed and first"
    )
    first: Annotated[int, Field(ge=0, le=1 << 53), _WHOLE] = Field(
        default=0, description="Index of the first image: image 500 of a seed is the same in every request that makes it"
    )
    labels: Labels | None = Field(
        default=None,
        description="Classes by number or name, one for all or one for each; default: drawn, where the model has classes",
    )
    steps: Steps | None = Field(default=None, description="Intervals; default 1 (a denoiser 18). One network call for each")
    sigmas: Sigmas | None = Field(
        default=None, description="Starting noise levels of the intervals, descending, instead of steps"
    )
    guidance: Guidance = None
    ema: Name | None = Field(default=None, description="Name of another set of weights in the model")


class EditRequest(Wanted):
    """What every edit can be told. Pictures are PNG, JPEG or WebP, as base64 or as a ``data:`` address."""

    fit: Fit = Field(
        default="none",
        description="For pictures of another size than the model's: refuse, crop (the middle square, resized), or pad (shrunk "
        "whole, with a border; where an edit has a mask, the border is made)",
    )
    labels: Labels | None = Field(
        default=None,
        description="Classes of the results by number or name: one for all, one for each picture or one for each result; "
        "default: guessed from the picture, where the model needs a class",
    )
    guidance: Guidance = None


class DrawnRequest(EditRequest):
    """What an edit that draws noise can be told besides."""

    image: Pictures = Field(description="One picture, or several")
    n: Count = Field(default=1, description="Results for each picture, each from noise of its own")
    seed: Seed | None = Field(default=None, description="Seed of the noise; default: drawn, and said in the answer")
    steps: Steps | None = Field(default=None, description="Network calls for each result; every edit has a default of its own")
    sigmas: Sigmas | None = Field(
        default=None, description="Noise levels, descending, instead of the default ones for the steps"
    )


_MASK = "Picture of the same size: white where pixels are to be made, black where they stay; a mask with an alpha channel: "
_MASK += "transparent where they are to be made. Default: where the picture is transparent"
_SIGMA = "First noise level, the amount of change; from black to white is 2. "


def _example(**more: Any) -> ConfigDict:
    return ConfigDict(json_schema_extra={"example": {"image": EXAMPLE_PICTURE, "fit": "crop", "seed": 1, **more}})


class InpaintRequest(DrawnRequest):
    """Make the pixels of a mask anew; all others keep their bytes."""

    model_config = _example(mask=EXAMPLE_MASK)

    mask: Picture | None = Field(default=None, description=_MASK)


class OutpaintRequest(DrawnRequest):
    """Make the surroundings of a picture; its own pixels keep their bytes (``fit`` has no meaning here)."""

    model_config = _example(size=[28, 28], steps=4)

    size: Annotated[list[Side], Field(min_length=2, max_length=2, fail_fast=True)] | None = Field(
        default=None,
        description="Height and width of the result; default the model's, larger ones are filled by overlapping windows",
    )
    place: Annotated[list[Place], Field(min_length=2, max_length=2, fail_fast=True)] | None = Field(
        default=None, description="Row and column of the picture's upper left corner; default: the middle"
    )


class ColorizeRequest(DrawnRequest):
    """Give a grey picture colours whose grey values are its own; for models of 3 channels."""

    model_config = _example()


class UpscaleRequest(DrawnRequest):
    """Make a larger picture whose patch means are the pixels of a small one."""

    model_config = _example(factor=2)

    factor: Annotated[int, Field(ge=1, le=MOST_SIZE), _WHOLE] = Field(
        description="How many times higher and wider the result is; it must divide the model's size"
    )


class RestoreRequest(DrawnRequest):
    """Make what is not known of a picture, for any combination of mask, grey values and patch means."""

    model_config = _example(factor=2, mask=EXAMPLE_MASK)

    mask: Picture | None = Field(default=None, description=_MASK)
    grey: bool = Field(default=False, description="Of the colours only the grey values are known")
    factor: Annotated[int, Field(ge=1, le=MOST_SIZE), _WHOLE] = Field(
        default=1, description="Only means of patches of this side are known"
    )
    either: bool = Field(
        default=False, description="What any of the parts knows is known, instead of what all of them know together"
    )


class StrokeRequest(DrawnRequest):
    """Turn a sketch of coarse strokes into an image."""

    model_config = _example(sigma=2.0)

    sigma: Number | None = Field(default=None, description=_SIGMA + "Default 10.8 times sigma_data")


class VariationsRequest(DrawnRequest):
    """Make images that are like a given one; with labels of another class they turn into it."""

    model_config = _example(n=4)

    n: Count = Field(default=8, description="Results for each picture")
    sigma: Number | None = Field(default=None, description=_SIGMA + "Default 2 times sigma_data")


class LocalRequest(DrawnRequest):
    """Change a picture inside a mask only, keeping its coarse content there; all other pixels keep their bytes."""

    model_config = _example(mask=EXAMPLE_MASK)

    mask: Picture | None = Field(default=None, description=_MASK)
    sigma: Number | None = Field(default=None, description=_SIGMA + "Default 4 times sigma_data")


class DenoiseRequest(EditRequest):
    """Take white noise away from a picture, in one network call."""

    model_config = ConfigDict(json_schema_extra={"example": {"image": EXAMPLE_PICTURE, "fit": "crop", "sigma": 0.3}})

    image: Pictures = Field(description="One picture, or several")
    sigma: Number | None = Field(
        default=None,
        description="Standard deviation of the noise, where from black to white is 2; default: estimated from the picture",
    )
    seed: Seed | None = Field(
        default=None, description="Seed of the noise by which missing classes are guessed; nothing else is drawn"
    )


class InterpolateRequest(EditRequest):
    """Make the images between two: between two pictures, whose noise is searched for, or between two seeds."""

    model_config = ConfigDict(json_schema_extra={"example": {"seeds": [1, 2], "n": 8, "labels": 0}})

    images: Annotated[list[Picture], Field(min_length=2, max_length=2, fail_fast=True)] | None = Field(
        default=None, description="Two pictures"
    )
    seeds: Annotated[list[Seed], Field(min_length=2, max_length=2, fail_fast=True)] | None = Field(
        default=None, description="Two seeds of the noise instead: the ends are what a request for one image of that seed gives"
    )
    n: Annotated[int, Field(ge=2, le=MOST_IMAGES), _WHOLE] = Field(default=8, description="Images in all, both ends included")
    iterations: Annotated[int, Field(ge=1, le=1000), _WHOLE] = Field(
        default=200, description="Steps of the search for the noise of a picture; there are two searches from different starts"
    )


EDITS: dict[str, type[EditRequest]] = {
    "inpaint": InpaintRequest,
    "outpaint": OutpaintRequest,
    "colorize": ColorizeRequest,
    "upscale": UpscaleRequest,
    "restore": RestoreRequest,
    "stroke": StrokeRequest,
    "variations": VariationsRequest,
    "local": LocalRequest,
    "denoise": DenoiseRequest,
    "interpolate": InterpolateRequest,
}
"""The request of each edit, by its name."""


class LoadRequest(Strict):
    """A version to be loaded."""

    model_config = ConfigDict(json_schema_extra={"example": {"source": "digits", "canary": 0.1}})

    source: Annotated[str, Field(min_length=1, max_length=1000)] = Field(
        description="A registry entry, or what atonce.load takes; seen from the server"
    )
    version: Name | None = Field(default=None, description="What to call it; default: what the source says")
    canary: Annotated[Number, Field(ge=0, le=1)] | None = Field(
        default=None, description="Share of callers that get it first; 0: all at once. Default: as the server was started"
    )


class Seconds(BaseModel):
    """Where the time of a request went."""

    queue: float = Field(description="Waiting for the model")
    network: float = Field(description="Computing")
    encode: float = Field(description="Writing the images")


class ImageAnswer(BaseModel):
    """One image. The same model, version, seed, index (as ``first``), label and sigmas make it again, byte for byte."""

    index: int
    seed: int | None = None
    label: int | None = None
    name: str | None = Field(default=None, description="Name of the class")
    data: str | None = Field(default=None, description="The file as base64; null where the images are in one npz or grid")


class Answer(BaseModel):
    """Images with everything that is needed to make them again."""

    request_id: str | None = None
    created: int = Field(description="Seconds since 1970")
    kind: str = Field(description="generate, or the name of an edit")
    model: str
    version: str
    n: int
    format: Format
    seed: int | None
    sigmas: list[float] = Field(description="Noise levels of the network calls")
    calls: int = Field(description="Network calls for each image")
    seconds: Seconds
    images: list[ImageAnswer]
    data: str | None = Field(default=None, description="All images as one file in base64, for npz and grid")


class EditAnswer(Answer):
    """Results of an edit; those of one picture stand together."""

    guessed: bool = Field(default=False, description="Whether classes were guessed from the pictures")
    clamped: float = Field(
        default=0.0, description="Largest change of what was known, of -1 to 1, where it would have left the range"
    )
    estimated: list[float] | None = Field(default=None, description="denoise: the noise that was estimated in each picture")
    error: list[float] | None = Field(
        default=None, description="interpolate: how far the ends are from the pictures (RMS, of -1 to 1)"
    )


class ErrorDetail(BaseModel):
    """What is wrong, for people and for programs."""

    message: str
    type: str
    code: str
    param: str | None = None


class ErrorAnswer(BaseModel):
    """Every error has this shape, which OpenAI's clients read too."""

    error: ErrorDetail
    request_id: str | None = None
